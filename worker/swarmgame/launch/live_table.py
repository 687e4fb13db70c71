"""The live table of a run on a terminal, and one JSON line for each round on a pipe.

Only draws; the data comes from `swarmgame.observability.peer_progress`. Invariant: on a pipe every round that was
played appears once, in order, and besides only lines with `event`: where peers can be reached, and each process that
ended too early.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any, Protocol, TextIO

from rich.box import SIMPLE
from rich.console import Console, JustifyMethod
from rich.live import Live
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from swarmgame.observability.metrics import clip_ratio_of, entropy_of, kl_of
from swarmgame.observability.peer_progress import (
    Line,
    PeerProgress,
    mean,
    mean_rewards,
    number,
    numbers,
    tokens_per_second,
)
from swarmgame.observability.text import duration

BARS = "▁▂▃▄▅▆▇█"
SPARKS = 16
ENDS = 10
"""Rounds at the start and at the end whose mean rewards are compared."""
LAG = 2
"""On a pipe a round is written when all live peers have played it, or one is this many rounds ahead."""
GONE = frozenset({"finished", "failed", "stopped"})


class RunEvent(Protocol):
    """An event of a run: a message for people, and an object with `event` for machines."""

    def __str__(self) -> str: ...

    def as_json(self) -> dict[str, Any]: ...


class View(Protocol):
    """Shows a run."""

    def show(self, peers: Sequence[PeerProgress]) -> None:
        """Show what is new; called whenever there may be something."""

    def close(self, peers: Sequence[PeerProgress]) -> None:
        """Show the last state."""

    def set_caption(self, line: str) -> None:
        """Set the line below the table; has no effect on a pipe."""

    def print(self, line: str) -> None:
        """Print a message to the user."""

    def print_event(self, event: RunEvent) -> None:
        """Print an event of the run."""


def make_view(title: str, max_rounds: int, *, output: TextIO | None = None) -> View:
    """Return the table on a terminal, else JSON lines."""
    stream = sys.stdout if output is None else output
    return LiveTable(title, max_rounds, Console(file=stream)) if stream.isatty() else JsonLines(stream)


class LiveTable:
    """The table, redrawn in place."""

    def __init__(self, title: str, max_rounds: int, console: Console) -> None:
        self._title = title
        self._max_rounds = max_rounds
        self._console = console
        self._caption = ""
        self._before: int | None = None
        self._first: tuple[float, int] | None = None
        self._live = Live(console=console, auto_refresh=False, transient=False)
        self._live.start()

    def show(self, peers: Sequence[PeerProgress]) -> None:
        self._live.update(self._table(peers, self._seconds_left(peers)), refresh=True)

    def _table(self, peers: Sequence[PeerProgress], seconds_left: float | None) -> Table:
        return make_table(self._title, peers, self._max_rounds, seconds_left, self._caption, console=self._console)

    def _seconds_left(self, peers: Sequence[PeerProgress]) -> float | None:
        """Estimate from the pace since the first new round, without the time of the start; None until there is one."""
        now, total = time.monotonic(), sum(peer.finished for peer in peers)
        if self._before is None:
            self._before = total
        if self._first is None:
            self._first = (now, total) if total > self._before else None
            return None
        began, first = self._first
        return (now - began) / (total - first) * (self._max_rounds * len(peers) - total) if total > first else None

    def close(self, peers: Sequence[PeerProgress]) -> None:
        self._live.update(self._table(peers, None), refresh=True)
        self._live.stop()

    def set_caption(self, line: str) -> None:
        self._caption = line

    def print(self, line: str) -> None:
        # A line may hold what a model wrote: it is text, not rich's markup.
        self._live.console.print(line, highlight=False, markup=False)

    def print_event(self, event: RunEvent) -> None:
        self.print(str(event))


class JsonLines:
    """A line for each round: the means over the peers that played it."""

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self._next: int | None = None

    def show(self, peers: Sequence[PeerProgress]) -> None:
        heads = [max(peer.rounds, default=-1) for peer in peers]
        live = [head for head, peer in zip(heads, peers, strict=True) if peer.state not in GONE]
        self._write(peers, max(min(live, default=max(heads, default=-1)), max(heads, default=-1) - LAG))

    def close(self, peers: Sequence[PeerProgress]) -> None:
        self._write(peers, max((max(peer.rounds, default=-1) for peer in peers), default=-1))

    def set_caption(self, line: str) -> None:
        return

    def print(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def print_event(self, event: RunEvent) -> None:
        print(json.dumps(event.as_json()), file=self._output, flush=True)
        self.print(str(event))

    def _write(self, peers: Sequence[PeerProgress], until: int) -> None:
        if self._next is None:
            begun = [min(peer.rounds) for peer in peers if peer.rounds]
            if not begun:
                return
            self._next = min(begun)
        for played in range(self._next, until + 1):
            lines = [peer.rounds[played] for peer in peers if played in peer.rounds]
            if lines:
                print(json.dumps(round_line(played, lines)), file=self._output, flush=True)
        self._next = max(self._next, until + 1)

    def skip(self, peers: Sequence[PeerProgress]) -> None:
        """Skip what was played before: a resumed run writes only its own rounds."""
        heads = [max(peer.rounds) for peer in peers if peer.rounds]
        if heads:
            self._next = min(heads) + 1


def round_line(played: int, lines: Sequence[Line]) -> dict[str, Any]:
    """Return one round as means over the peers (missing, external and tokens: sums)."""
    exchange = mean(number(line, "seconds", "exchange") for line in lines)
    found: dict[str, Any] = {
        "round": played,
        "peers": len(lines),
        "reward": _rounded(mean(number(line, "reward") for line in lines)),
        "entropy": _rounded(mean(entropy_of(numbers(line, "metrics")) for line in lines)),
        "kl": _rounded(mean(kl_of(numbers(line, "metrics")) for line in lines)),
        "clip_ratio": _rounded(mean(clip_ratio_of(numbers(line, "metrics")) for line in lines)),
        "tokens": int(sum(number(line, "tokens") or 0 for line in lines)),
        "tokens_per_second": _rounded(mean(tokens_per_second(line) for line in lines), 1),
        "exchange_ms": None if exchange is None else round(exchange * 1000, 1),
        "seconds": _rounded(mean(number(line, "seconds", "round") for line in lines)),
        "missing": sum(len(line.get("missing") or ()) for line in lines),
        "external": int(sum(sum(numbers(line, "external").values()) for line in lines)),
    }
    for key in ("first_evaluation", "evaluation"):
        evaluated = mean(number(line, key, "average", "all") for line in lines)
        if evaluated is not None:
            found[key] = _rounded(evaluated)
    return found


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of the table.

    Args:
        heading, footer: of the column.
        cells: one a peer.
        importance: of two columns that do not both fit, the one with the lower number stays; 0 always does.
    """

    heading: str
    cells: Sequence[str | Text]
    importance: int
    footer: str | Text = ""
    justify: JustifyMethod = "right"


def make_table(
    title: str,
    peers: Sequence[PeerProgress],
    max_rounds: int,
    seconds_left: float | None,
    caption: str = "",
    *,
    console: Console | None = None,
) -> Table:
    """Return the table of the present, with the columns that fit into the console, the most important ones."""
    console = console or Console()
    columns = _columns_of(peers, max_rounds, seconds_left)
    chosen: list[_Column] = []
    for column in sorted(columns, key=lambda column: column.importance):
        with_it = [each for each in columns if each is column or each in chosen]
        drawn = _table(title, with_it, caption)
        needed = Measurement.get(console, console.options.update(width=10_000), drawn).maximum
        if column.importance == 0 or needed <= console.width:
            chosen = with_it
    return _table(title, chosen, caption)


def _table(title: str, columns: Sequence[_Column], caption: str) -> Table:
    drawn = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="dim",
        show_footer=True,
        footer_style="bold",
        expand=False,
        box=SIMPLE,
        show_edge=False,
    )
    if caption:
        drawn.caption, drawn.caption_justify = caption, "left"
    for column in columns:
        drawn.add_column(column.heading, column.footer, justify=column.justify, no_wrap=True)
    for row in zip(*(column.cells for column in columns), strict=True):
        drawn.add_row(*row)
    return drawn


def _columns_of(peers: Sequence[PeerProgress], max_rounds: int, seconds_left: float | None) -> list[_Column]:
    rewards = list(mean_rewards(peers).values())
    finished = min((peer.finished for peer in peers), default=0)
    last = [peer.last for peer in peers]
    speeds = [tokens_per_second(line) for line in last]
    exchange = [number(line, "seconds", "exchange") for line in last]
    held_out = [peer.held_out for peer in peers]
    columns = [
        _Column("peer", [str(peer.index) for peer in peers], 0, "all"),
        _Column(
            "state",
            [_state(peer) for peer in peers],
            0,
            "" if seconds_left is None else f"{_left(seconds_left)} left",
            "left",
        ),
        _Column("round", [_shown(_round(peer), ".0f") for peer in peers], 0, f"{finished}/{max_rounds}"),
        _Column("stage", [_shown(number(peer.status, "stage") if _plays(peer) else None, ".0f") for peer in peers], 7),
        _Column("held-out", [_shown(value, ".3f") for value in held_out], 2, _shown(mean(held_out), ".3f")),
        _Column("reward", [_shown(number(line, "reward"), ".3f") for line in last], 1, _rise(rewards)),
        _Column("", [Text(sparkline(peer.rewards)) for peer in peers], 3, Text(sparkline(rewards)), "left"),
        _Column("entropy", [_shown(entropy_of(numbers(line, "metrics")), ".2f") for line in last], 6),
        _Column("tokens/s", [_shown(speed, ".0f") for speed in speeds], 4, _shown(_sum(speeds), ".0f")),
        _Column("peers", [str(_members(peer) or "·") for peer in peers], 5),
        _Column("exchange", ["·" if each is None else f"{each * 1000:.0f} ms" for each in exchange], 8),
        _Column("missing", [str(len(line.get("missing") or ())) if line else "·" for line in last], 9),
        _Column(
            "external", [_shown(sum(numbers(line, "external").values()) if line else None, ".0f") for line in last], 10
        ),
    ]
    return [column for column in columns if column.heading != "held-out" or any(h is not None for h in held_out)]


def _state(peer: PeerProgress) -> Text:
    state = peer.state if peer.state and peer.state != "running" else str(peer.status.get("phase") or "starting")
    alone = bool(peer.status.get("alone")) or bool(peer.last and peer.last.get("closed_by") == "alone")
    return Text(f"{state}, alone" if alone and state not in GONE else state, style=_style(state, alone))


def _plays(peer: PeerProgress) -> bool:
    playing = number(peer.status, "round")
    return peer.state not in GONE and playing is not None and playing >= 0


def _round(peer: PeerProgress) -> float | None:
    """Return the round in progress, or else the last one, counted from 1."""
    shown = number(peer.status, "round") if _plays(peer) else max(peer.rounds) if peer.rounds else None
    return None if shown is None else shown + 1


def _members(peer: PeerProgress) -> int:
    return len(peer.status.get("members") or (peer.last or {}).get("members") or ())


def sparkline(values: Sequence[float | None], width: int = SPARKS) -> str:
    """Return the values as bars from the lowest to the highest, averaged into `width` columns when there are more,
    with gaps where nothing was scored.
    """
    columns = _columns(values, width)
    present = [value for value in columns if value is not None]
    if not present:
        return ""
    low, span = min(present), max(present) - min(present)
    return "".join(
        " " if value is None else BARS[int((value - low) / span * 7.999) if span else 0] for value in columns
    )


def _columns(values: Sequence[float | None], width: int) -> list[float | None]:
    if len(values) <= width:
        return list(values)
    edges = [round(i * len(values) / width) for i in range(width + 1)]
    return [mean(values[a:b]) for a, b in pairwise(edges)]


def _rise(rewards: Sequence[float]) -> str:
    """Return the mean reward of the first and of the last rounds, once they do not overlap."""
    if len(rewards) < 2 * ENDS:
        return _shown(rewards[-1] if rewards else None, ".3f")
    return f"{fmean(rewards[:ENDS]):.3f} → {fmean(rewards[-ENDS:]):.3f}"


def _style(state: str, alone: bool) -> str:
    if state in {"failed", "restarting"} or alone:
        return "red"
    return "green" if state in {"running", "finished"} else "yellow"


def _shown(value: float | None, form: str) -> str:
    return "·" if value is None else format(value, form)


def _rounded(value: float | None, digits: int = 4) -> float | None:
    return None if value is None else round(value, digits)


def _sum(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) if present else None


def _left(seconds: float) -> str:
    return duration(seconds) if seconds >= 60 else f"{seconds:.0f} s"
