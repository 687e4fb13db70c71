"""The plots of a run, as PNG.

Each function draws one plot from `RunData`, or returns None when the run lacks the numbers. The same run gives the
same picture; no window is opened and no global style is changed.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np

from swarmgame.observability.metrics import clip_ratio_of, entropy_of, kl_of
from swarmgame.observability.peer_progress import Line, number, numbers
from swarmgame.report.data import PHASES, RunData, Series, smoothed

matplotlib.use("Agg")

from matplotlib.figure import Figure

INK, MUTED, GRID, ACCENT = "#1c2430", "#6b7685", "#e6e9ee", "#1f5fbf"
COLOURS = ("#1f5fbf", "#d9822b", "#2f9e77", "#b0413e", "#7a5ab5", "#4aa3c7", "#8a6d3b", "#c45a98")
"""Distinct in hue and in lightness; more series than colours are drawn as a heat map."""
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0,
    "xtick.major.size": 0,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.08,
}
WIDTH, HEIGHT, DPI = 8.6, 3.2, 150
MAX_ROWS = 24


@dataclass(frozen=True)
class Plot:
    """One plot.

    Args:
        name: of its file, without `.png`.
        title: its subject.
        caption: how to read it.
        png: the picture.
    """

    name: str
    title: str
    caption: str
    png: bytes


def draw_all(run: RunData) -> list[Plot]:
    """Return every plot for which this run has the numbers."""
    with matplotlib.rc_context(STYLE):
        drawn = (draw(run) for draw in (_reward, _environments, _evaluation, _policy, _seconds, _learning))
        return [plot for plot in drawn if plot is not None]


def _reward(run: RunData) -> Plot | None:
    mean = run.mean(_at("reward"))
    if not mean:
        return None
    figure, axes = _one()
    for peer in run.peers:
        series = run.of(peer, _at("reward"))
        _line(axes, series, color=MUTED, linewidth=0.7, alpha=0.45)
    axes.plot(
        [],
        [],
        color=MUTED,
        linewidth=0.7,
        alpha=0.7,
        label=f"each of {len(run.peers)} peers" if len(run.peers) > 1 else "its only peer",
    )
    width = _width(run)
    _line(
        axes,
        smoothed(mean, width),
        color=ACCENT,
        linewidth=2.4,
        label=f"mean of the peers, over {width} rounds" if width > 1 else "mean",
    )
    evaluated = run.mean(_at("evaluation", "average", "all"))
    if evaluated:
        axes.plot(*_xy(evaluated), "o", color=COLOURS[1], markersize=4, label="held-out questions")
    _ready(axes, "reward")
    _legend(axes)
    return _plot(
        "reward", figure, "Mean reward per round", "The rewards of the peers' own answers. A thin line is one peer."
    )


def _environments(run: RunData) -> Plot | None:
    series = {name: run.mean(_at("environments", name)) for name in run.names_under("environments")}
    if not series:
        return None
    width = _width(run)
    caption = "Which questions the policy answers, and which it does not yet."
    if len(series) > len(COLOURS):
        figure = _map(run, series, "reward")
        return _plot("environments", figure, "Reward by environment", f"{caption} Light is 0, dark is the best.")
    figure, axes = _one()
    for (name, values), colour in zip(series.items(), COLOURS, strict=False):
        _line(axes, values, color=colour, linewidth=0.6, alpha=0.25)
        _line(axes, smoothed(values, width), color=colour, linewidth=2, label=name)
    _ready(axes, "reward")
    _legend(axes)
    return _plot("environments", figure, "Reward by environment", caption)


def _evaluation(run: RunData) -> Plot | None:
    names = run.names_under("evaluation", "average")
    if not names:
        return None
    figure = Figure(figsize=(WIDTH, HEIGHT))
    both = figure.subplots(1, 2, sharey=True)
    shown = [name for name in names if name != "all"]
    shown = shown if 1 < len(shown) <= len(COLOURS) else []
    samples = next(
        (n for p in reversed(run.peers) for a in p.rounds.values() if (n := number(a, "evaluation", "samples"))), None
    )
    k = "k" if samples is None else f"{samples:.0f}"
    for axes, field, title in (
        (both[0], "average", f"avg@{k}: mean reward"),
        (both[1], "passed", f"pass@{k}: solved at least once"),
    ):
        for name, colour in zip(shown, COLOURS, strict=False):
            _line(axes, _evaluated(run, field, name), color=colour, linewidth=1, marker="o", markersize=2.5, label=name)
        _line(axes, _evaluated(run, field, "all"), color=INK, linewidth=2.2, marker="o", markersize=4, label="all")
        axes.set_title(title)
    for axes in both:  # after both are drawn: they share one scale
        _ready(axes, "")
    _legend(both[0])
    return _plot("evaluation", figure, "Held-out questions", "Questions that no round uses, answered without training.")


def _evaluated(run: RunData, field: str, name: str) -> Series:
    return run.mean(_at("evaluation", field, name))


def _policy(run: RunData) -> Plot | None:
    panels: list[tuple[str, Callable[[Mapping[str, float]], float | None]]] = [
        ("entropy, nats", entropy_of),
        ("KL from the reference, nats", kl_of),
        ("share of clipped tokens", clip_ratio_of),
    ]
    found = [(title, pick) for title, pick in panels if run.mean(_reported(pick))]
    if not found:
        return None
    figure = Figure(figsize=(WIDTH, HEIGHT * 0.85))
    for axes, (title, pick) in zip(figure.subplots(1, len(found), squeeze=False)[0], found, strict=True):
        for peer in run.peers:
            series = run.of(peer, _reported(pick))
            _line(axes, series, color=MUTED, linewidth=0.6, alpha=0.4)
        mean = run.mean(_reported(pick))
        _line(axes, smoothed(mean, _width(run)), color=ACCENT, linewidth=2)
        axes.set_title(title)
        _ready(axes, "")
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    return _plot(
        "policy",
        figure,
        "The policy",
        "Entropy near 0 while the reward is low is a collapse; much clipping means steps that are too long.",
    )


def _seconds(run: RunData) -> Plot | None:
    parts = {part: run.mean(_at("seconds", part)) for part in PHASES}
    parts = {part: series for part, series in parts.items() if any(series.values())}
    total = run.mean(_at("seconds", "round"))
    if not total or not parts:
        return None
    rounds = list(total)
    rows = [np.array([series.get(played, 0.0) for played in rounds]) for series in parts.values()]
    # The checkpoint's time is that of the round before, so the phases may add up to slightly more than their round.
    rest = np.maximum(
        np.array(list(total.values()))
        - sum(row for part, row in zip(parts, rows, strict=True) if part != "checkpoint"),
        0.0,
    )
    figure, axes = _one()
    if len(rounds) > 1:
        colours = [*COLOURS[: len(rows)], "#c9ced6"]
        axes.stackplot(
            rounds, [*rows, rest], labels=[*parts, "other"], colors=colours, linewidth=0, alpha=0.9, step="mid"
        )
    else:
        bottom = 0.0
        for label, row, colour in zip(
            [*parts, "other"], [*rows, rest], [*COLOURS[: len(rows)], "#c9ced6"], strict=True
        ):
            axes.bar(rounds, row, bottom=bottom, label=label, color=colour, width=0.5)
            bottom += float(row[0])
    usual = float(np.percentile([sum(column) for column in zip(*rows, rest, strict=True)], 98))
    axes.set_ylim(0, usual * 1.25 or 1.0)
    _ready(axes, "seconds")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _plot(
        "seconds",
        figure,
        "Where the time goes",
        "Wall time of a round by phase, mean of the peers. `exchange` includes waiting for slower peers.",
    )


def _learning(run: RunData) -> Plot | None:
    trained_on = run.trained_on()
    if not any(sum(authors.values()) for authors in trained_on.values()):
        return None
    ours = list(trained_on)
    others = [
        author
        for author, _ in sum(trained_on.values(), start=type(next(iter(trained_on.values())))()).most_common()
        if author not in trained_on
    ]
    authors = [*ours, *others][:MAX_ROWS]
    learners = ours[:MAX_ROWS]
    counts = np.array([[trained_on[learner][author] for author in authors] for learner in learners], dtype=float)
    side = 0.46
    figure = Figure(
        figsize=(min(WIDTH, max(4.2, 1.8 + side * len(authors) * 1.6)), min(6.0, max(2.2, 1.2 + side * len(learners))))
    )
    axes = figure.subplots()
    picture = axes.imshow(counts, cmap="Blues", vmin=0, vmax=max(counts.max(), 1) * 1.15, aspect="auto")
    axes.set_xticks(
        range(len(authors)), [run.name_of(author) for author in authors], rotation=0 if len(authors) <= 8 else 60
    )
    axes.set_yticks(range(len(learners)), [run.name_of(learner) for learner in learners])
    axes.set_xlabel("author of the group")
    axes.set_ylabel("trained on it")
    axes.grid(visible=False)
    if len(authors) <= 16:
        for (row, column), count in np.ndenumerate(counts):
            if learners[row] == authors[column]:
                axes.text(column, row, "–", ha="center", va="center", color=MUTED)
            else:
                dark = count > counts.max() * 0.6
                axes.text(
                    column, row, f"{count:.0f}", ha="center", va="center", color="white" if dark else INK, fontsize=8
                )
    else:
        figure.colorbar(picture, ax=axes, label="groups")
    return _plot("learning", figure, "Groups of other peers", "How many groups of each author every peer trained on.")


# ── picking
def _at(*path: str) -> Callable[[Line], float | None]:
    """Return a function that picks the number at a path of a line."""
    return lambda line: number(line, *path)


def _reported(pick: Callable[[Mapping[str, float]], float | None]) -> Callable[[Line], float | None]:
    """Return a function that picks from the trainer's metrics."""
    return lambda line: pick(numbers(line, "metrics"))


# ── drawing
def _one() -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH, HEIGHT))
    return figure, figure.subplots()


def _xy(series: Series) -> tuple[list[int], list[float]]:
    return list(series), list(series.values())


def _line(axes: Any, series: Series, **style: Any) -> None:
    if len(series) == 1:
        style = {"marker": "o", "markersize": 3, **style}
    axes.plot(*_xy(series), solid_capstyle="round", **style)


def _ready(axes: Any, label: str) -> None:
    axes.set_xlabel("round")
    axes.set_ylabel(label)
    axes.grid(visible=False, axis="x")
    axes.margins(x=0.01)
    left, right = axes.get_xlim()
    if right - left < 1:  # a single round
        axes.set_xlim((left + right - 1) / 2, (left + right + 1) / 2)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))


def _legend(axes: Any) -> None:
    axes.legend(loc="best", fontsize=8, labelcolor=INK)


def _width(run: RunData) -> int:
    """Return the number of rounds to smooth over: a twentieth of the run, odd, at most 15."""
    return min(15, max(1, len(run.rounds) // 20)) // 2 * 2 + 1 if len(run.rounds) >= 10 else 1


def _map(run: RunData, series: Mapping[str, Series], label: str) -> Figure:
    """Draw a heat map: rows by name, columns by round (binned when there are many)."""
    final: Callable[[str], float] = lambda name: float(np.mean(list(series[name].values())[-10:]))  # noqa: E731
    names: Sequence[str] = sorted(series, key=final, reverse=True)[: MAX_ROWS * 2]
    bins = np.array_split(np.array(run.rounds), min(len(run.rounds), 60))
    cells = np.full((len(names), len(bins)), np.nan)
    for row, name in enumerate(names):
        for column, rounds in enumerate(bins):
            values = [series[name][played] for played in rounds.tolist() if played in series[name]]
            cells[row, column] = np.mean(values) if values else np.nan
    figure = Figure(figsize=(WIDTH, max(HEIGHT, 0.8 + 0.19 * len(names))))
    axes = figure.subplots()
    picture = axes.imshow(
        cells, cmap="Blues", vmin=0, aspect="auto", extent=(run.rounds[0], run.rounds[-1] + 1, len(names), 0)
    )
    axes.set_yticks(np.arange(len(names)) + 0.5, names, fontsize=7)
    axes.set_xlabel("round")
    axes.grid(visible=False)
    axes.set_facecolor(GRID)
    figure.colorbar(picture, ax=axes, label=label, shrink=0.6).outline.set_visible(False)
    return figure


def _plot(name: str, figure: Figure, title: str, caption: str) -> Plot:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return Plot(name, title, caption, buffer.getvalue())
