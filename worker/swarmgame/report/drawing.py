"""Drawing: the style of all plots, and one figure as PNG and as SVG that follows the page's light or dark colours.

Every plot is drawn twice, wide and narrow; the page shows the one that fits the screen. The same run gives the same
pictures; no window is opened and no global style is changed. Names are drawn as they are: nothing in them is a formula.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np

from swarmgame.report.data import RunData, Series, smoothed

matplotlib.use("Agg")

from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

INK, MUTED, GRID, REST = "#1c2430", "#5b6675", "#e1e5eb", "#b9c0ca"
COLOURS = ("#0f62ae", "#c96a00", "#0f8a5f", "#b3423c", "#7454b8", "#2c93b8", "#8a6a2f", "#bb4d8f")
"""Distinct in hue and in lightness, also for most colour-blind readers; the second four lines are dashed too."""
ACCENT = COLOURS[0]
DASHES = ("-", "-", "-", "-", (0, (4, 2)), (0, (4, 2)), (0, (4, 2)), (0, (4, 2)))
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line", REST: "--rest"} | {
    colour: f"--c{number}" for number, colour in enumerate(COLOURS, 1)
}
"""Colour → the page's CSS variable that replaces it in an SVG."""
HEAT = LinearSegmentedColormap.from_list("heat", [(0.18, 0.5, 0.85, 0.04), (0.18, 0.5, 0.85, 1.0)])
"""From transparent to blue, so that it suits light and dark pages."""
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,
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
    "legend.labelcolor": INK,
    "legend.fontsize": 8,
    "legend.title_fontsize": 9,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.08,
    "svg.fonttype": "none",
}
DPI = 150
MAX_POINTS = 300
"""Longer series are averaged into this many points: a screen shows no more."""
_ID, _SIZE = re.compile(r' id="([^"]*)"'), re.compile(r'(<svg\b[^>]*?) width="([\d.]+)pt" height="[^"]*"')
_PIXELS_PER_POINT = 1.7
"""Largest scale of an SVG on the page: its text is then about as large as the page's."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The space for a plot, in inches.

    Args:
        columns: number of small panels beside each other.
    """

    name: str
    width: float
    height: float
    columns: int

    @property
    def narrow(self) -> bool:
        return self.columns == 1


WIDE = Layout("wide", 8.8, 3.1, 3)
NARROW = Layout("narrow", 3.7, 2.6, 1)


@dataclass(frozen=True)
class Subject:
    """A plot that can be drawn; `draw` returns None where the run lacks the numbers."""

    name: str
    title: str
    caption: str
    draw: Callable[[RunData, Layout], Figure | None]


@dataclass(frozen=True)
class Plot:
    """One plot.

    Args:
        name: of its file, without `.png`.
        title: its subject.
        caption: how to read it.
        png: the wide picture, with light colours.
        wide, narrow: SVG elements, with the page's colours.
    """

    name: str
    title: str
    caption: str
    png: bytes
    wide: str
    narrow: str


def style() -> AbstractContextManager[None]:
    """Return a context in which matplotlib has this style."""
    return matplotlib.rc_context(STYLE)


def plot_of(run: RunData, subject: Subject) -> Plot | None:
    """Draw a subject in both layouts; None where the run lacks the numbers."""
    wide = subject.draw(run, WIDE)
    narrow = subject.draw(run, NARROW)
    if wide is None or narrow is None:
        return None
    for figure in (wide, narrow):
        engine = figure.get_layout_engine()
        assert engine is not None
        with contextlib.suppress(ValueError):  # as `Figure.draw` does: it is drawn as it is
            engine.execute(figure)
    # Placed once, and not again for each file: a figure with an engine for its layout is drawn twice to be saved.
    with matplotlib.rc_context({"figure.constrained_layout.use": False, "figure.autolayout": False}):
        for figure in (wide, narrow):
            figure.set_layout_engine()
        buffer = io.BytesIO()
        wide.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
        svgs = [_svg(figure, f"{subject.name}-{size}") for figure, size in ((wide, "wide"), (narrow, "narrow"))]
    return Plot(subject.name, subject.title, subject.caption, buffer.getvalue(), *svgs)


def _svg(figure: Figure, salt: str) -> str:
    """Return an SVG element without size, namespaces, metadata and unused ids, and with variables as colours."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)
    text = _SIZE.sub(
        lambda found: f'{found[1]} style="max-width: {float(found[2]) * _PIXELS_PER_POINT:.0f}px"', text, count=1
    )
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', text))
    text = _ID.sub(lambda found: found.group(0) if found.group(1) in used else "", text)
    text = text.replace("'DejaVu Sans'", "var(--sans)")
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text


# ── figures
def one(layout: Layout, height: float = 1.0) -> tuple[Figure, Any]:
    """Return a figure with one pair of axes; `height` is a factor."""
    figure = Figure(figsize=(layout.width, layout.height * height))
    return figure, figure.subplots()


def grid(layout: Layout, panels: int, *, columns: int | None = None, height: float = 2.0) -> tuple[Figure, list[Any]]:
    """Return a figure with that many small panels, each `height` inches high."""
    across = 1 if layout.narrow else min(panels, columns or layout.columns)
    down = -(-panels // across)
    figure = Figure(figsize=(layout.width, height * down))
    axes = figure.subplots(down, across, squeeze=False).flatten().tolist()
    for unused in axes[panels:]:
        unused.set_visible(False)
    return figure, axes[:panels]


def line(axes: Any, series: Series, **drawn: Any) -> None:
    """Draw one series; a single point gets a marker."""
    if len(series) == 1:
        drawn = {"marker": "o", "markersize": 3, **drawn}
    shown = thinned(series)
    axes.plot(list(shown), list(shown.values()), solid_capstyle="round", **drawn)


def lines(axes: Any, run: RunData, series: Mapping[str, Series], *, markers: bool = False) -> None:
    """Draw several named series, each with a colour of its own; long ones are smoothed."""
    width = 1 if markers else width_of(run)
    for number, (name, values) in enumerate(series.items()):
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
        if width > 1:
            line(axes, values, color=colour, linewidth=0.6, alpha=0.25)
        shape = {"marker": "o", "markersize": 3} if markers else {}
        line(axes, smoothed(values, width), color=colour, linewidth=1.8, linestyle=dash, label=name, **shape)


def ready(axes: Any, label: str = "", *, below: str = "round", zero: bool = True) -> None:
    """Set the labels and the limits, once everything is drawn.

    Args:
        label: of the vertical axis, with its unit.
        below: label of the horizontal axis.
        zero: whether the vertical axis begins at 0, or below for negative numbers.
    """
    axes.set_xlabel(below)
    axes.set_ylabel(label)
    axes.grid(visible=False, axis="x")
    axes.margins(x=0.01)
    left, right = axes.get_xlim()
    if right - left < 1:  # a single round
        axes.set_xlim((left + right - 1) / 2, (left + right + 1) / 2)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1, nbins=6)
    axes.yaxis.get_major_locator().set_params(nbins=5)
    if zero:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))


def legend(figure: Figure, axes: Any, layout: Layout) -> None:
    """Put the legend of one pair of axes above all panels, where it covers no line."""
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    short = [shortened(label, 36 if layout.narrow else 48) for label in labels]
    across = 1 if layout.narrow and max(map(len, short)) > 16 else 2 if layout.narrow else min(4, len(short))
    figure.legend(handles, short, loc="outside upper left", ncols=across, handlelength=1.6, columnspacing=1.4)


def titled_legend(axes: Any, title: str) -> None:
    """Put title and legend of one of several panels above it, where they cover no line."""
    handles, labels = axes.get_legend_handles_labels()
    short = [shortened(label, 30) for label in labels]
    longest = max(map(len, short), default=0)
    across = max(1, min(len(short), 46 // (longest + 6)))
    axes.legend(
        handles,
        short,
        title=title,
        alignment="left",
        loc="lower left",
        bbox_to_anchor=(0, 1),
        borderaxespad=0.2,
        borderpad=0,
        ncols=across,
        handlelength=1.6,
        columnspacing=1.2,
    )


def heat_map(run: RunData, layout: Layout, series: Mapping[str, Series], label: str, *, rows: int = 48) -> Figure:
    """Draw rows by name, the best at the end first, and columns by round (averaged when there are many)."""
    names: Sequence[str] = sorted(series, key=lambda name: -np.mean(list(series[name].values())[-10:]))[:rows]
    bins = np.array_split(np.array(run.rounds), min(len(run.rounds), 60))
    cells = np.full((len(names), len(bins)), np.nan)
    for row, name in enumerate(names):
        for column, rounds in enumerate(bins):
            values = [series[name][played] for played in rounds.tolist() if played in series[name]]
            cells[row, column] = np.mean(values) if values else np.nan
    figure = Figure(figsize=(layout.width, max(layout.height, 0.9 + 0.19 * len(names))))
    axes = figure.subplots()
    extent = (run.rounds[0], run.rounds[-1] + 1, len(names), 0)
    picture = axes.imshow(cells, cmap=HEAT, vmin=0, aspect="auto", extent=extent, interpolation="nearest")
    short = [shortened(name, 18 if layout.narrow else 40) for name in names]
    axes.set_yticks(np.arange(len(names)) + 0.5, short, fontsize=7)
    axes.set_xlabel("round")
    axes.grid(visible=False)
    where = {"location": "bottom", "shrink": 0.8} if layout.narrow else {"shrink": 0.6}
    figure.colorbar(picture, ax=axes, label=label, **where).outline.set_visible(False)
    return figure


# ── numbers
def width_of(run: RunData) -> int:
    """Return the number of rounds to smooth over: a twentieth of the run, odd, at most 15."""
    return min(15, max(1, len(run.rounds) // 20)) // 2 * 2 + 1 if len(run.rounds) >= 10 else 1


def thinned(series: Series, points: int = MAX_POINTS) -> Series:
    """Return a series of at most that many points: the means of equal parts, at the first round of each."""
    if len(series) <= points:
        return series
    parts = np.array_split(np.array(list(series.items()), dtype=float), points)
    return {int(part[0, 0]): float(part[:, 1].mean()) for part in parts}


def shortened(text: str, longest: int) -> str:
    """Return the text, with its middle left out where it is too long."""
    if len(text) <= longest:
        return text
    kept = longest - 1
    return f"{text[: kept - kept // 3]}…{text[len(text) - kept // 3 :]}"
