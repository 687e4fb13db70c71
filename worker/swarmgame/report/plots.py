"""The plots of a run, in the order of the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from matplotlib.figure import Figure

from swarmgame.game.evaluation import ALL
from swarmgame.observability.peer_progress import Line, number
from swarmgame.report.data import RunData, Series, smoothed
from swarmgame.report.drawing import (
    ACCENT,
    COLOURS,
    MUTED,
    Layout,
    Plot,
    Subject,
    grid,
    heat_map,
    legend,
    line,
    lines,
    one,
    plot_of,
    ready,
    style,
    titled_legend,
    width_of,
)
from swarmgame.report.plots_of_training import LEARNING, OWN_METRICS, POLICY, SECONDS
from swarmgame.report.results import evaluations_of, stage_reward


def draw_all(run: RunData) -> list[Plot]:
    """Return every plot for which this run has the numbers."""
    with style():
        drawn = (plot_of(run, subject) for subject in SUBJECTS)
        return [plot for plot in drawn if plot is not None]


def _held_out(run: RunData, layout: Layout) -> Figure | None:
    total = run.evaluated("average", ALL)
    if not total:
        return None
    panels: list[tuple[str, Mapping[str, Series]]] = []
    ks = sorted({k for p in run.peers for e in evaluations_of(p.rounds.values()).values() for k in _ks(e)}, key=int)
    if ks:
        panels.append(("pass@k: solved by k rollouts", {f"k = {k}": _of_pass(run, k) for k in ks}))
    names = sorted({n for p in run.peers for e in evaluations_of(p.rounds.values()).values() for n in e["average"]})
    names = [name for name in names if name != ALL]
    if 1 < len(names) <= len(COLOURS):
        panels.append(("by environment", {name: run.evaluated("average", name) for name in names}))
    if run.stages > 1:
        stages = {f"stage {s}": _evaluated_stage(run, s) for s in range(run.stages)}
        panels.append(("by stage", {name: series for name, series in stages.items() if series}))
    figure, axes = grid(layout, 1 + len(panels), columns=2, height=2.9)
    for peer in run.peers if len(run.peers) > 1 else ():
        own = {
            at: value
            for at, each in evaluations_of(peer.rounds.values()).items()
            if (value := number(each, "average", ALL)) is not None
        }
        line(axes[0], own, color=MUTED, linewidth=0.7, alpha=0.5, label="_")
    errors = run.evaluated("errors", ALL)
    shown = [errors.get(at, 0.0) for at in total]
    axes[0].errorbar(
        list(total), list(total.values()), yerr=shown, color=ACCENT, linewidth=2.2, marker="o", markersize=4,
        capsize=3, label="mean of the peers ± s.e." if len(run.peers) > 1 else "± standard error",
    )  # fmt: skip
    if sampled := run.evaluated("sampled", "average", ALL):
        line(axes[0], sampled, color=COLOURS[1], linewidth=1.6, marker="o", markersize=3, label="sampled (avg@k)")
    titled_legend(axes[0], "mean reward")
    for each, (title, series) in zip(axes[1:], panels, strict=True):
        lines(each, run, series, markers=True)
        titled_legend(each, title)
    for each in axes:
        ready(each, below="finished rounds")
        low, high = each.get_ylim()
        each.set_ylim(low, max(high, 1.0) if 0.5 < high < 1 else high)
    return figure


def _ks(evaluation: Mapping[str, object]) -> list[str]:
    sampled = evaluation.get("sampled")
    holder = sampled if isinstance(sampled, Mapping) else evaluation
    found = holder.get("pass_at")
    several = (number(holder, "samples") or 1) > 1
    return [str(k) for k in found] if isinstance(found, Mapping) and several else []


def _of_pass(run: RunData, k: str) -> Series:
    return run.evaluated("sampled", "pass_at", k) or run.evaluated("pass_at", k)


def _evaluated_stage(run: RunData, stage: int) -> Series:
    by_round: dict[int, list[float]] = {}
    for peer in run.peers:
        for at, each in evaluations_of(peer.rounds.values()).items():
            if (value := stage_reward({"stage_rewards": each.get("stages")}, stage)) is not None:
                by_round.setdefault(at, []).append(value)
    return {at: sum(by_round[at]) / len(by_round[at]) for at in sorted(by_round)}


def _reward(run: RunData, layout: Layout) -> Figure | None:
    mean = run.mean(_at("reward"))
    if not mean:
        return None
    figure, axes = one(layout)
    for number_, peer in enumerate(run.peers if len(run.peers) > 1 else ()):
        label = f"each of {len(run.peers)} peers" if number_ == 0 else "_"
        line(axes, run.of(peer, _at("reward")), color=MUTED, linewidth=0.7, alpha=0.45, label=label)
    width = width_of(run)
    label = f"mean, over {width} rounds" if width > 1 else "mean"
    line(axes, smoothed(mean, width), color=ACCENT, linewidth=2.4, label=label)
    ready(axes, "reward")
    legend(figure, axes, layout)
    return figure


def _parts(run: RunData, layout: Layout) -> Figure | None:
    panels: list[tuple[str, Mapping[str, Series]]] = []
    if run.stages > 1:
        panels.append(("by stage", {f"stage {s}": run.mean(_stage(s)) for s in range(run.stages)}))
    if run.roles:
        panels.append(("by role", {role: run.mean(_role(role)) for role in run.roles}))
    panels = [(title, {name: each for name, each in series.items() if each}) for title, series in panels]
    panels = [(title, series) for title, series in panels if series]
    if not panels:
        return None
    figure, axes = grid(layout, len(panels), columns=2, height=2.9)
    for each, (title, series) in zip(axes, panels, strict=True):
        lines(each, run, series)
        titled_legend(each, title)
        ready(each, "reward")
    return figure


def _environments(run: RunData, layout: Layout) -> Figure | None:
    series = {name: run.mean(_at("environments", name)) for name in run.names_under("environments")}
    if len(series) < 2:
        return None
    if len(series) > len(COLOURS):
        return heat_map(run, layout, series, "reward")
    figure, axes = one(layout)
    lines(axes, run, series)
    ready(axes, "reward")
    legend(figure, axes, layout)
    return figure


def _at(*path: str) -> Callable[[Line], float | None]:
    """Return a function that picks the number at a path of a line."""
    return lambda line: number(line, *path)


def _stage(stage: int) -> Callable[[Line], float | None]:
    return lambda line: stage_reward(line, stage)


def _role(role: str) -> Callable[[Line], float | None]:
    return lambda line: number(line, "reward") if line.get("role") == role else None


SUBJECTS = (
    Subject(
        "evaluation",
        "Held-out questions",
        "Questions that no round uses, answered without training; 0 finished rounds is before the first update. Bars "
        "are standard errors over questions; a thin line is one peer.",
        _held_out,
    ),
    Subject(
        "reward",
        "Training reward",
        "Mean reward of the rollouts that the peers trained on, as they were sampled. It also rises when a policy "
        "becomes more certain of what it knew before; the held-out questions show what it has learned.",
        _reward,
    ),
    Subject("parts", "Training reward by stage and role", "One mean would hide a stage that gets worse.", _parts),
    Subject(
        "environments",
        "Training reward by environment",
        "Which questions the policy answers, and which it does not yet.",
        _environments,
    ),
    POLICY,
    OWN_METRICS,
    SECONDS,
    LEARNING,
)
