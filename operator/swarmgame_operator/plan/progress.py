"""Progress: how far the game is, how long the rest will take, and whether it moves at all.

A round's usual time is carried in the status itself: what the last estimate said, corrected by every advance since, so
that no history has to be kept anywhere. Invariant: `lastUpdatedTime` is when a round last ended, as far as is known,
and never moves without one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from swarmgame_api.status import CheckpointStatus, MetricStatus, ProgressStatus
from swarmgame_operator import reasons
from swarmgame_operator.plan.scene import Scene, read_time, write_time
from swarmgame_operator.plan.suspension import by_author
from swarmgame_operator.reasons import Verdict

WEIGHT = 0.3
"""Of the newest rounds in the usual time of one."""
SLIPPING = 2
"""Peers are a round or two apart: a report that is only so much older is another peer's, not a loss."""
PATIENCE = 10
"""Rounds' usual times without a round, after which the game is called stalled."""
SHORTEST_PATIENCE_SECONDS = 300
MAX_METRICS = 32


def progress(scene: Scene, *, ready: bool, complete: bool) -> ProgressStatus:
    """What the status should say of progress.

    Args:
        ready: whether the swarm is ready now: then it has begun, even where no peer has answered yet.
        complete: whether the game has come to its good end.
    """
    rounds, before, heard = scene.spec.game.max_rounds, scene.before.progress, scene.observed.progress
    if complete:
        played = before.round if scene.spec.completion.policy == "Coordinator" else rounds
        return before.model_copy(
            update={
                "round": max(played, before.round),
                "max_rounds": rounds,
                "percentage": 100,
                "estimated_remaining_seconds": 0,
                "last_updated_time": before.last_updated_time or write_time(scene.observed.now),
            }
        )
    if heard is None or heard.seen > scene.observed.now:
        begun = before.last_updated_time or (write_time(scene.observed.now) if ready else None)
        return before.model_copy(update={"max_rounds": rounds, "last_updated_time": begun})
    slipped = 0 < before.round - heard.rounds_finished <= SLIPPING
    played = before.round if slipped else min(heard.rounds_finished, rounds)
    moved = played != before.round or before.last_updated_time is None
    updated = min(heard.round_finished or heard.seen, scene.observed.now) if moved else None
    seconds = _seconds_a_round(scene, played)
    return ProgressStatus(
        round=played,
        stage=max(0, heard.stage),
        max_rounds=rounds,
        percentage=min(100, 100 * played // rounds),
        estimated_remaining_seconds=None if seconds is None else round((rounds - played) * seconds),
        last_updated_time=write_time(updated) if updated is not None else before.last_updated_time,
        metrics=_metrics(heard.metrics),
    )


def _metrics(heard: Mapping[str, float]) -> tuple[MetricStatus, ...]:
    """Figures as text, as the API has no floats; what is no number is left out."""
    finite = sorted((name[:64], figure) for name, figure in heard.items() if name and math.isfinite(figure))
    return tuple(MetricStatus(name=name, value=f"{figure:.6g}") for name, figure in finite[:MAX_METRICS])


def checkpoint(scene: Scene) -> CheckpointStatus | None:
    """The newest checkpoint that was heard of; its time is when that was."""
    heard, before = scene.observed.progress, scene.before.checkpoint
    if heard is None or heard.checkpoint is None or (before is not None and before.round == heard.checkpoint):
        return before
    return CheckpointStatus(round=heard.checkpoint, time=write_time(min(heard.seen, scene.observed.now)))


def progressing(
    scene: Scene, accepted: Verdict, suspended: Verdict, now: ProgressStatus, *, over: bool, rolling: bool
) -> Verdict:
    """Whether anything moves: pods come or go, or rounds advance."""
    active, leaving, desired = len(scene.active_pods), len(scene.leaving_pods), scene.desired
    if over:
        return reasons.finished()
    if by_author(suspended):
        return reasons.scaling_down(active + leaving, 0) if active + leaving else reasons.scaled_down()
    if rolling:
        return reasons.rolling_out()
    if suspended.is_true:
        return reasons.waiting_to_scale_up("the Job waits for its queue.")
    if scene.job is None:
        return (
            reasons.starting(0, desired)
            if accepted.is_true
            else reasons.waiting_to_scale_up("the game is not accepted.")
        )
    wanted = desired - len(scene.completed_indexes) - len({index for index in scene.failed_indexes if index < desired})
    if active > wanted or (leaving and active == wanted and scene.job.completions < _highest(scene)):
        return reasons.scaling_down(max(leaving, active - wanted), desired)
    stall = _stalled_for(scene, now)
    if stall is not None:
        return reasons.stalled(*stall)
    if active < wanted:
        return reasons.scaling_up(active, desired)
    begun = now.last_updated_time is not None
    return (
        reasons.round_advancing(now.round, now.max_rounds)
        if begun
        else reasons.starting(len(scene.ready_indexes), desired)
    )


def seconds_to_stall(scene: Scene, now: ProgressStatus) -> float | None:
    """Until the game may have to be called stalled."""
    if now.last_updated_time is None:
        return None
    return max(1.0, _patience(scene, now) - _quiet_seconds(scene, now.last_updated_time) + 1.0)


def _stalled_for(scene: Scene, now: ProgressStatus) -> tuple[int, int] | None:
    """For how many seconds no round has ended, and how long that may take; None where it is not too long."""
    if now.last_updated_time is None:
        return None
    quiet, patience = _quiet_seconds(scene, now.last_updated_time), _patience(scene, now)
    return (round(quiet), round(patience)) if quiet > patience else None


def _quiet_seconds(scene: Scene, updated: str) -> float:
    """Since a round ended, or since peers could last begin to run: a suspension is no stall."""
    since = [read_time(updated)]
    for type in ("Suspended", "Accepted"):
        condition = next((each for each in scene.before.conditions if each.type == type), None)
        if condition is not None:
            since.append(read_time(condition.last_transition_time))
    return (scene.observed.now - max(since)).total_seconds()


def _patience(scene: Scene, now: ProgressStatus) -> float:
    """A round may take all its stages' deadlines and be well; beyond twice that, or ten usual rounds, it is not."""
    game = scene.spec.game
    deadline = 2.0 * game.stages * game.progression.stage_deadline_seconds
    left, rest = now.estimated_remaining_seconds, now.max_rounds - now.round
    usual = left / rest if left is not None and rest > 0 else 0.0
    return max(SHORTEST_PATIENCE_SECONDS, deadline, PATIENCE * usual)


def _seconds_a_round(scene: Scene, played: int) -> float | None:
    before, heard = scene.before.progress, scene.observed.progress
    rest = before.max_rounds - before.round
    usual = (
        before.estimated_remaining_seconds / rest
        if before.estimated_remaining_seconds is not None and rest > 0
        else None
    )
    advanced = played - before.round
    if heard is None or heard.round_finished is None or before.last_updated_time is None or advanced <= 0:
        return usual
    since = read_time(before.last_updated_time)
    suspended = scene.last("Suspended")
    if suspended is not None and read_time(suspended.last_transition_time) > since:
        return usual  # the time between holds a suspension
    newest = max(0.0, (heard.round_finished - since).total_seconds()) / advanced
    return newest if usual is None else (1 - WEIGHT) * usual + WEIGHT * newest


def _highest(scene: Scene) -> int:
    return 1 + max((pod.index for pod in scene.leaving_pods if pod.index is not None), default=-1)
