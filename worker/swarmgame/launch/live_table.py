"""The live table of a run on a terminal, and one JSON line for each round on a pipe.

Only draws; the data comes from `swarmgame.observability.peer_progress`. Invariant: on a pipe every round that was
played appears once, in order, and besides only a line with `event` for each process that ended too early.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from swarmgame.launch.peer_end import PeerEnd
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

BARS = "▁▂▃▄▅▆▇█"
SPARKS = 16
ENDS = 10
"""Rounds at the start and at the end whose mean rewards are compared."""
LAG = 2
"""On a pipe a round is written when all live peers have played it, or one is this many rounds ahead."""
GONE = frozenset({"finished", "failed", "stopped"})


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

    def print_end(self, end: PeerEnd) -> None:
        """Print how a peer's process ended."""


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
        self._live.update(
            make_table(self._title, peers, self._max_rounds, self._seconds_left(peers), self._caption), refresh=True
        )

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
        self._live.update(make_table(self._title, peers, self._max_rounds, None, self._caption), refresh=True)
        self._live.stop()

    def set_caption(self, line: str) -> None:
        self._caption = line

    def print(self, line: str) -> None:
        # A line may hold what a model wrote: it is text, not rich's markup.
        self._live.console.print(line, highlight=False, markup=False)

    def print_end(self, end: PeerEnd) -> None:
        self.print(str(end))


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

    def print_end(self, end: PeerEnd) -> None:
        print(json.dumps(end.as_json()), file=self._output, flush=True)
        self.print(str(end))

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
    evaluated = mean(number(line, "evaluation", "average", "all") for line in lines)
    return found if evaluated is None else {**found, "evaluation": _rounded(evaluated)}


def make_table(
    title: str, peers: Sequence[PeerProgress], max_rounds: int, seconds_left: float | None, caption: str = ""
) -> Table:
    """Return the table of the present."""
    drawn = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="dim",
        show_footer=True,
        footer_style="bold",
        expand=False,
    )
    rewards = list(mean_rewards(peers).values())
    finished = min((peer.finished for peer in peers), default=0)
    drawn.add_column("peer", "all", justify="right")
    drawn.add_column("state", "" if seconds_left is None else f"{_duration(seconds_left)} left")
    drawn.add_column("round", f"{finished}/{max_rounds}", justify="right")
    drawn.add_column("stage", justify="right")
    drawn.add_column("reward", _rise(rewards), justify="right")
    drawn.add_column("", Text(sparkline(rewards)), no_wrap=True)
    drawn.add_column("entropy", justify="right")
    drawn.add_column("tokens/s", _shown(_sum([tokens_per_second(peer.last) for peer in peers]), ".0f"), justify="right")
    drawn.add_column("peers", justify="right")
    drawn.add_column("exchange", justify="right")
    drawn.add_column("missing", justify="right")
    drawn.add_column("external", justify="right")
    if caption:
        drawn.caption, drawn.caption_justify = caption, "left"
    for peer in peers:
        drawn.add_row(*_row(peer))
    return drawn


def _row(peer: PeerProgress) -> list[str | Text]:
    last, status = peer.last, peer.status
    state = peer.state if peer.state and peer.state != "running" else str(status.get("phase") or "starting")
    alone = bool(status.get("alone")) or bool(last and last.get("closed_by") == "alone")
    members = status.get("members") or (last or {}).get("members") or ()
    exchange = number(last, "seconds", "exchange")
    playing = number(status, "round") if peer.state not in GONE else None
    shown_round = playing if playing is not None and playing >= 0 else (max(peer.rounds) if peer.rounds else None)
    return [
        str(peer.index),
        Text(f"{state}, alone" if alone and state not in GONE else state, style=_style(state, alone)),
        _shown(None if shown_round is None else shown_round + 1, ".0f"),
        _shown(number(status, "stage") if playing is not None and playing >= 0 else None, ".0f"),
        _shown(number(last, "reward"), ".3f"),
        Text(sparkline(peer.rewards)),
        _shown(entropy_of(numbers(last, "metrics")), ".2f"),
        _shown(tokens_per_second(last), ".0f"),
        str(len(members)) if members else "·",
        "·" if exchange is None else f"{exchange * 1000:.0f} ms",
        str(len(last.get("missing") or ())) if last else "·",
        _shown(sum(numbers(last, "external").values()) if last else None, ".0f"),
    ]


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


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
