"""Progressing: whether pods come or go, or rounds advance."""

from __future__ import annotations

from swarmgame_operator.plan.condition_policy import ConditionPolicy, ConditionUpdate, Reason
from swarmgame_operator.plan.progress import is_silent, progress_status, stalled_after
from swarmgame_operator.plan.reconcile_context import ReconcileContext, write_time
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
    "The specification of the peers' pods has changed: they {how}.",
)
STALLED = Reason(
    "Progressing",
    "False",
    "Stalled",
    "No round has ended for more than {limit}; {last}.",
    warning=True,
)
NO_ANSWER = Reason(
    "Progressing",
    "Unknown",
    "NoAnswer",
    "Since {since} no peer has answered the operator on port 8080: {error}. The peers may go on unseen: allow the "
    "operator to reach them (network policies, a service mesh; else set the chart's operator.reachPods to Proxy), or "
    "look at their logs.",
    warning=True,
)
NOT_POLLED = Reason(
    "Progressing",
    "Unknown",
    "NotPolled",
    "{ready} of {desired} peers are in the swarm; the operator does not ask them for their rounds, as "
    "operator.progressSeconds is 0.",
    quiet=True,
)
FINISHED = Reason("Progressing", "False", "Finished", "The game is over.", quiet=True)


def progressing_condition(context: ReconcileContext) -> ConditionUpdate:
    active, leaving, desired = len(context.active_pods), len(context.leaving_pods), context.desired
    if context.over:
        return FINISHED()
    if context.stopped_by_author:
        return SCALING_DOWN(leaving=active + leaving, desired=0) if active + leaving else SCALED_DOWN()
    if is_rolling_out(context):
        return ROLLING_OUT(
            how="save their state and start again from it" if context.keeps_rounds else "start again; no round is lost"
        )
    if context.suspended:
        return NOT_STARTED(why="the Job waits for its queue.")
    if context.job is None:
        return STARTING(ready=0, desired=desired) if context.accepted else NOT_STARTED(why="the game is not accepted.")
    failed = {index for index in context.failed_indexes if index < desired}
    expected = desired - len(context.finished_indexes) - len(failed)
    if active > expected or (
        leaving and active == expected and context.job.completions < _leaving_completions(context)
    ):
        return SCALING_DOWN(leaving=max(leaving, active - expected), desired=desired)
    progress, poll = progress_status(context), context.observed.poll
    if poll.silent_since is not None and is_silent(context):
        return NO_ANSWER(since=write_time(poll.silent_since), error=poll.error or "no answer")
    last = context.last("Progressing")
    if last is not None and last.reason in (STALLED.name, NO_ANSWER.name) and _not_asked_yet(context):
        return ConditionUpdate("Progressing", last.status, last.reason, last.message)
    limit = stalled_after(context, progress)
    if limit is not None:
        answer = context.observed.progress
        ended = answer.round_finished if answer is not None else None
        newest = f"the last one ended at {write_time(ended)}" if ended is not None else "none has ended yet"
        return STALLED(limit=_duration(limit), last=newest)
    if active < expected:
        return SCALING_UP(active=active, desired=desired)
    if not poll.enabled and context.begun:
        return NOT_POLLED(ready=len(context.ready_indexes), desired=desired)
    if progress.last_updated_time is None:
        return STARTING(ready=len(context.ready_indexes), desired=desired)
    return ROUND_ADVANCING(round=progress.round, rounds=progress.max_rounds)


def _not_asked_yet(context: ReconcileContext) -> bool:
    """Return whether the operator has just started and has not polled the ready peers yet: nothing is known anew."""
    observed = context.observed
    unknown = observed.progress is None and observed.poll.silent_since is None
    return unknown and observed.poll.enabled and bool(context.ready_indexes)


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
        NO_ANSWER,
        NOT_POLLED,
        FINISHED,
    ),
    progressing_condition,
)
