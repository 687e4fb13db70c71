"""Failed: when the game has ended badly, by its Job or by a deadline.

The Job counts failures by peer and applies the rules for exit codes; this module reports its result as the game's. A
disruption is never a failure, and a deadline only fails a game if `observed.now` proves it.
"""

from __future__ import annotations

from swarmgame_operator.plan import initializer
from swarmgame_operator.plan.condition_policy import ConditionPolicy, ConditionUpdate, Reason
from swarmgame_operator.plan.deadlines import admitted_seconds
from swarmgame_operator.plan.peer_health import failed_container
from swarmgame_operator.plan.peer_job import FATAL_EXIT_CODES
from swarmgame_operator.plan.reconcile_context import ReconcileContext, job_condition_reason, termination_summary

DEADLINE_EXCEEDED = Reason(
    "Failed",
    "True",
    "DeadlineExceeded",
    "The game ran longer than spec.activeDeadlineSeconds, {seconds}.",
    warning=True,
)
PRE_RUNNING_DEADLINE_EXCEEDED = Reason(
    "Failed",
    "True",
    "PreRunningDeadlineExceeded",
    "The first round did not begin within spec.preRunningDeadlineSeconds, {seconds}. Last known: {ready}",
    warning=True,
)
TOO_MANY_FAILED_PEERS = Reason(
    "Failed",
    "True",
    "TooManyFailedPeers",
    "{failed} peers have failed for good; spec.failurePolicy allows {allowed}.{example}",
    warning=True,
)
FATAL_EXIT_CODE = Reason("Failed", "True", "FatalExitCode", "{problem}", warning=True)


def failed_condition(context: ReconcileContext) -> ConditionUpdate | None:
    """Return Failed if the game ends badly now; None if not, or if it ended before."""
    if context.over or context.plays_on:
        return None
    return _failed_job(context) or _deadline(context)


def _failed_job(context: ReconcileContext) -> ConditionUpdate | None:
    reason = job_condition_reason(context.job, "Failed", "FailureTarget")
    initializer = job_condition_reason(context.observed.initializer, "Failed", "FailureTarget")
    if reason == "PodFailurePolicy" or (initializer == "PodFailurePolicy" and _initializer_was_fatal(context)):
        return FATAL_EXIT_CODE(problem=_fatal_problem(context))
    if reason is not None:
        return TOO_MANY_FAILED_PEERS(
            failed=len(context.failed_indexes),
            allowed=context.spec.failure_policy.max_failed_peers,
            example=_failed_peer(context),
        )
    return None


def _deadline(context: ReconcileContext) -> ConditionUpdate | None:
    admitted = admitted_seconds(context)
    if admitted is None:
        return None
    active, pre_running = context.spec.active_deadline_seconds, context.spec.pre_running_deadline_seconds
    if active is not None and admitted > active:
        return DEADLINE_EXCEEDED(seconds=active)
    if not context.begun and admitted > pre_running:
        last = context.last("Ready")
        return PRE_RUNNING_DEADLINE_EXCEEDED(seconds=pre_running, ready=last.message if last else "nothing")
    return None


def _initializer_was_fatal(context: ReconcileContext) -> bool:
    pods = context.observed.pods_of("initializer")
    ended = (each.exit_code for pod in pods for each in pod.containers if each.name == initializer.CONTAINER)
    return any(code in FATAL_EXIT_CODES for code in ended)


def _fatal_problem(context: ReconcileContext) -> str:
    if context.fatal is None:
        return "A peer ended with an exit code that means the game cannot be played; its pod is gone."
    pod, container = context.fatal
    return f"The pod {pod.name} reports that the game cannot be played: {termination_summary(container)}"


def _failed_peer(context: ReconcileContext) -> str:
    """Return why one of the failed peers ended, as a further sentence."""
    for pod in context.peer_pods:
        container = failed_container(pod)
        if container is not None:
            return f" Peer {pod.index}: {termination_summary(container)}"
    return ""


FAILED = ConditionPolicy(
    "Failed",
    (DEADLINE_EXCEEDED, PRE_RUNNING_DEADLINE_EXCEEDED, TOO_MANY_FAILED_PEERS, FATAL_EXIT_CODE),
    failed_condition,
)
