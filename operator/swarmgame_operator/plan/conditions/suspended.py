"""Suspended: whether peers may run, and if not, why.

The author's choice comes first. Otherwise a suspended Job is the work of another controller: a queue has not admitted
it yet, or preempted it. The condition follows from the Job and the last condition alone, so a restart of the operator
changes nothing.
"""

from __future__ import annotations

from swarmgame_operator.plan.condition_policy import ConditionPolicy, ConditionUpdate, Reason
from swarmgame_operator.plan.peer_job import queue
from swarmgame_operator.plan.reconcile_context import ReconcileContext

SUSPENDED_BY_USER = Reason(
    "Suspended", "True", "SuspendedByUser", "spec.suspend is true. Keys, claims and status are kept."
)
SCALED_TO_ZERO = Reason(
    "Suspended", "True", "ScaledToZero", "spec.peers.replicas is 0. Keys, claims and status are kept."
)
NOT_ADMITTED = Reason("Suspended", "True", "NotAdmitted", "The Job waits to be admitted{by_queue}.")
PREEMPTED = Reason(
    "Suspended",
    "True",
    "Preempted",
    "The Job was suspended from outside while it ran; it goes on when it is admitted again.",
)
RESUMED = Reason("Suspended", "False", "Resumed", "Peers may run.", quiet=True)


def suspended_condition(context: ReconcileContext) -> ConditionUpdate:
    if context.spec.suspend:
        return SUSPENDED_BY_USER()
    if context.desired == 0:
        return SCALED_TO_ZERO()
    name = queue(context.game)
    if context.job is None or context.job.deleting:
        # A Job for a queue is created suspended, so the game is suspended before its Job exists.
        return NOT_ADMITTED(by_queue=by_queue(name)) if name else RESUMED()
    if not context.queued:
        return RESUMED()
    last = context.last("Suspended")
    ran = last is not None and (last.status == "False" or last.reason == "Preempted")
    return PREEMPTED() if ran else NOT_ADMITTED(by_queue=by_queue(name or context.job.queue))


def by_queue(name: str) -> str:
    """Return the end of a sentence that names the queue, if there is one."""
    return f" by the queue {name}" if name else ""


SUSPENDED = ConditionPolicy(
    "Suspended", (SUSPENDED_BY_USER, SCALED_TO_ZERO, NOT_ADMITTED, PREEMPTED, RESUMED), suspended_condition
)
