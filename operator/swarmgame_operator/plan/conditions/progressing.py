"""Progressing: whether pods come or go, or rounds advance."""

from __future__ import annotations

from swarmgame_operator.plan.condition_policy import ConditionPolicy, ConditionUpdate, Reason
from swarmgame_operator.plan.progress import progress_status, stalled_for
from swarmgame_operator.plan.reconcile_context import ReconcileContext
from swarmgame_operator.plan.rollout import is_rolling_out

ROUND_ADVANCING = Reason("Progressing", "True", "RoundAdvancing", "{round} of {rounds} rounds are played.")
STARTING = Reason("Progressing", "True", "ScalingUp", "{ready} of {desired} peers are in the swarm.")
SCALING_UP = Reason("Progressing", "True", "ScalingUp", "{active} of {desired} peers have a pod.")
NOT_STARTED = Reason("Progressing", "False", "ScalingUp", "No peer has been started: {why}")
SCALING_DOWN = Reason("Progressing", "True", "ScalingDown", "{leaving} peers are leaving; {desired} stay.")
SCALED_DOWN = Reason("Progressing", "False", "ScalingDown", "No peer runs.")
ROLLING_OUT = Reason(
    "Progressing",
    "True",
    "RollingOut",
    "The pods' specification has changed; the peers save their state and restart.",
)
STALLED = Reason(
    "Progressing",
    "False",
    "Stalled",
    "No round has ended for more than {limit}; the last one ended {quiet} ago.",
    warning=True,
)
FINISHED = Reason("Progressing", "False", "Finished", "The game is over.", quiet=True)


def progressing_condition(context: ReconcileContext) -> ConditionUpdate:
    active, leaving, desired = len(context.active_pods), len(context.leaving_pods), context.desired
    if context.over:
        return FINISHED()
    if context.stopped_by_author:
        return SCALING_DOWN(leaving=active + leaving, desired=0) if active + leaving else SCALED_DOWN()
    if is_rolling_out(context):
        return ROLLING_OUT()
    if context.suspended:
        return NOT_STARTED(why="the Job waits for its queue.")
    if context.job is None:
        return STARTING(ready=0, desired=desired) if context.accepted else NOT_STARTED(why="the game is not accepted.")
    failed = {index for index in context.failed_indexes if index < desired}
    expected = desired - len(context.completed_indexes) - len(failed)
    if active > expected or (
        leaving and active == expected and context.job.completions < _leaving_completions(context)
    ):
        return SCALING_DOWN(leaving=max(leaving, active - expected), desired=desired)
    progress = progress_status(context)
    stall = stalled_for(context, progress)
    if stall is not None:
        quiet, limit = stall
        return STALLED(limit=_duration(limit), quiet=_duration(quiet))
    if active < expected:
        return SCALING_UP(active=active, desired=desired)
    if progress.last_updated_time is None:
        return STARTING(ready=len(context.ready_indexes), desired=desired)
    return ROUND_ADVANCING(round=progress.round, rounds=progress.max_rounds)


def _leaving_completions(context: ReconcileContext) -> int:
    """Return the number of completions that the Job had when its terminating pods were created, at least."""
    return 1 + max((pod.index for pod in context.leaving_pods if pod.index is not None), default=-1)


def _duration(seconds: int) -> str:
    if seconds < 120:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 7_200 else f"{seconds // 3_600} h"


PROGRESSING = ConditionPolicy(
    "Progressing",
    (
        ROUND_ADVANCING,
        STARTING,
        SCALING_UP,
        NOT_STARTED,
        SCALING_DOWN,
        SCALED_DOWN,
        ROLLING_OUT,
        STALLED,
        FINISHED,
    ),
    progressing_condition,
)
