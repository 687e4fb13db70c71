"""The plots of training: the policy, the trainer's own metrics, the time, and which peers trained on which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from swarmgame.observability.metrics import clip_ratio_of, entropy_of, kl_of
from swarmgame.observability.peer_progress import Line, number, numbers
from swarmgame.report.data import PHASES, RunData, Series, smoothed
from swarmgame.report.drawing import (
    ACCENT,
    COLOURS,
    HEAT,
    INK,
    MUTED,
    REST,
    Layout,
    Subject,
    grid,
    line,
    one,
    ready,
    shortened,
    thinned,
    width_of,
)

MAX_ROWS = 24
MAX_PANELS = 24
"""Most metrics of a trainer that are drawn; the report's table has them all."""
Pick = Callable[[Line], float | None]


def mean_length(line: Line) -> float | None:
    """Return the mean length of a peer's own rollouts, in tokens."""
    tokens, rollouts = number(line, "tokens"), number(line, "rollouts")
    return tokens / rollouts if tokens is not None and rollouts else None


STANDARD: tuple[tuple[str, Pick], ...] = (
    ("entropy, nats", lambda line: entropy_of(numbers(line, "metrics"))),
    ("KL from the reference, nats", lambda line: kl_of(numbers(line, "metrics"))),
    ("share of clipped tokens", lambda line: clip_ratio_of(numbers(line, "metrics"))),
    ("gradient norm", lambda line: number(line, "metrics", "grad_norm")),
    ("learning rate", lambda line: number(line, "metrics", "learning_rate")),
    ("loss", lambda line: number(line, "metrics", "loss")),
    ("groups without advantage, share", lambda line: number(line, "zero_advantage_share")),
    ("completion length, tokens", mean_length),
    ("truncated rollouts, share", lambda line: number(line, "truncated_share")),
)
"""Panels of the policy: title, and the number in a line."""
SHOWN_ELSEWHERE = frozenset(
    {"entropy", "kl", "kl_reference", "clip_low", "clip_high", "clip_ratio", "grad_norm", "learning_rate", "loss"}
    | {"zero_advantage_share", "completion_length", "truncated_share"}
)
"""Names of a trainer's metrics that the panels of the policy show."""


def own_metrics(run: RunData) -> dict[str, Series]:
    """Return what the trainer reports besides the standard panels, by its name, as means over the peers."""
    names = [name for name in run.names_under("metrics") if name not in SHOWN_ELSEWHERE]
    return {name: run.mean(lambda line, name=name: number(line, "metrics", name)) for name in names}  # type: ignore[misc]


def _policy(run: RunData, layout: Layout) -> Figure | None:
    found = [(title, pick) for title, pick in STANDARD if _varies(run.mean(pick))]
    return _panels(run, layout, found)


def _own(run: RunData, layout: Layout) -> Figure | None:
    varying = [name for name, series in own_metrics(run).items() if _varies(series)]
    picks: list[tuple[str, Pick]] = [
        (name, lambda line, name=name: number(line, "metrics", name))  # type: ignore[misc]
        for name in varying[:MAX_PANELS]
    ]
    return _panels(run, layout, picks)


def _varies(series: Series) -> bool:
    """Return whether a series is worth a panel: it changes by more than rounding, or is one number that is not 0."""
    if len(series) < 2:
        return any(series.values())
    low, high = min(series.values()), max(series.values())
    return high - low > 1e-5 * max(abs(low), abs(high))


def _panels(run: RunData, layout: Layout, picks: list[tuple[str, Pick]]) -> Figure | None:
    if not picks:
        return None
    figure, panels = grid(layout, len(picks), height=1.75)
    for axes, (title, pick) in zip(panels, picks, strict=True):
        for peer in run.peers if len(run.peers) > 1 else ():
            line(axes, run.of(peer, pick), color=MUTED, linewidth=0.6, alpha=0.4)
        line(axes, smoothed(run.mean(pick), width_of(run)), color=ACCENT, linewidth=2)
        axes.set_title(shortened(title, 36))
        ready(axes)
    return figure


def _seconds(run: RunData, layout: Layout) -> Figure | None:
    parts = {part: run.mean(_at(part)) for part in PHASES}
    parts = {part: series for part, series in parts.items() if any(series.values())}
    total = thinned(run.mean(_at("round")))
    if not total or not parts:
        return None
    rounds = list(total)
    thin = {part: thinned(series) for part, series in parts.items()}
    rows = [np.array([series.get(played, 0.0) for played in rounds]) for series in thin.values()]
    # The checkpoint's time is that of the round before, so the phases may add up to slightly more than their round.
    counted = sum(row for part, row in zip(parts, rows, strict=True) if part != "checkpoint")
    rest = np.maximum(np.array(list(total.values())) - counted, 0.0)
    figure, axes = one(layout, 1.25 if layout.narrow else 1.0)
    names, colours = [*parts, "other"], [*COLOURS[: len(rows)], REST]
    if len(rounds) > 1:
        axes.stackplot(rounds, [*rows, rest], labels=names, colors=colours, linewidth=0, step="mid")
    else:
        bottom = 0.0
        for label, row, colour in zip(names, [*rows, rest], colours, strict=True):
            axes.bar(rounds, row, bottom=bottom, label=label, color=colour, width=0.5)
            bottom += float(row[0])
    usual = float(np.percentile([sum(column) for column in zip(*rows, rest, strict=True)], 98))
    axes.set_ylim(0, usual * 1.25 or 1.0)
    ready(axes, "seconds a round")
    handles, labels = axes.get_legend_handles_labels()
    where = {"loc": "outside upper left", "ncols": 3} if layout.narrow else {"loc": "outside right upper"}
    figure.legend(
        handles[:: 1 if layout.narrow else -1], labels[:: 1 if layout.narrow else -1], handlelength=1.2, **where
    )
    return figure


def _learning(run: RunData, layout: Layout) -> Figure | None:
    trained_on = run.trained_on()
    totals: Counter[str] = Counter()
    for counts in trained_on.values():
        totals.update(counts)
    if not totals.total():
        return None
    ours = list(trained_on)
    most = 8 if layout.narrow else MAX_ROWS
    authors = [*ours, *(author for author, _ in totals.most_common() if author not in trained_on)][:most]
    learners = ours[:most]
    cells = np.array([[trained_on[learner][author] for author in authors] for learner in learners], dtype=float)
    width = layout.width if layout.narrow else min(layout.width, max(4.2, 1.8 + 0.74 * len(authors)))
    figure = Figure(figsize=(width, min(7.0, max(2.2, 1.3 + 0.42 * len(learners)))))
    axes = figure.subplots()
    picture = axes.imshow(cells, cmap=HEAT, vmin=0, vmax=max(cells.max(), 1) * 1.15, aspect="auto")
    upright = len(authors) > (3 if layout.narrow else 8)
    slanted: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if upright else {}
    axes.set_xticks(range(len(authors)), [run.name_of(author) for author in authors], **slanted)
    axes.set_yticks(range(len(learners)), [run.name_of(learner) for learner in learners])
    axes.set_xlabel("author of the group")
    axes.set_ylabel("trained on it")
    axes.grid(visible=False)
    if len(authors) <= 16:
        for (row, column), count in np.ndenumerate(cells):
            own = learners[row] == authors[column]
            colour = MUTED if own else "#ffffff" if count > cells.max() * 0.6 else INK
            text = "–" if own else f"{count:.0f}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    else:
        figure.colorbar(picture, ax=axes, label="groups")
    return figure


def _at(part: str) -> Pick:
    return lambda line: number(line, "seconds", part)


POLICY = Subject(
    "policy",
    "The policy",
    "Entropy near 0 while the reward is low is a collapse. Much clipping, or gradients that grow, mean steps that are "
    "too long. Groups without advantage have equal rewards and teach nothing. A thin line is one peer; what never "
    "changed is in the table of metrics.",
    _policy,
)
OWN_METRICS = Subject(
    "metrics",
    "Other metrics of the trainer",
    "Every other number that the trainer reported, under its own name.",
    _own,
)
SECONDS = Subject(
    "seconds",
    "Where the time goes",
    "Wall time of a round by phase, mean of the peers. Exchange includes waiting for slower peers.",
    _seconds,
)
LEARNING = Subject(
    "learning", "Who learned from whom", "How many groups of each author every peer trained on.", _learning
)
