"""Suspension: whether peers may run, and who says that they may not.

The author's word comes first; otherwise a Job that is suspended is somebody else's doing: a queue has not admitted it
yet, or took it back. Invariant: it is told from the Job and the last verdict alone, so that a restart of the operator
changes nothing.
"""

from __future__ import annotations

from swarmgame_operator import reasons
from swarmgame_operator.plan.peer_job import queue
from swarmgame_operator.plan.scene import Scene
from swarmgame_operator.reasons import Verdict

BY_AUTHOR = frozenset({"SuspendedByUser", "ScaledToZero"})


def suspension(scene: Scene) -> Verdict:
    if scene.spec.suspend:
        return reasons.suspended_by_user()
    if scene.desired == 0:
        return reasons.scaled_to_zero()
    name = queue(scene.setting)
    if scene.job is None or scene.job.deleting:
        # A Job for a queue is made suspended, so the game is from the start what it will be then.
        return reasons.not_admitted(name) if name else reasons.resumed()
    if not scene.queued:
        return reasons.resumed()
    last = scene.last("Suspended")
    ran = last is not None and (last.status == "False" or last.reason == "Preempted")
    return reasons.preempted() if ran else reasons.not_admitted(name or scene.job.queue)


def by_author(verdict: Verdict) -> bool:
    """Whether the game is to have no Job at all. A queue's Job stays, suspended."""
    return verdict.reason in BY_AUTHOR
