"""Deadlines: how long a game may wait, run, and lie around when it is over.

Clocks are the conditions' own transition times, so that a restart of the operator neither stops nor resets them. The
clocks of waiting and running begin when peers may run: time that a queue took, or the author, does not count, and a
game that was suspended gets its whole time again, as a Job does. Invariant: a game is never failed for something that
`now` does not prove.
"""

from __future__ import annotations

from swarmgame_operator import reasons
from swarmgame_operator.plan.scene import Scene, read_time
from swarmgame_operator.reasons import Verdict


def deadline_passed(scene: Scene, accepted: Verdict, suspended: Verdict) -> Verdict | None:
    """The failure that time brings, if any."""
    waited = _admitted_seconds(scene, accepted, suspended)
    if waited is None:
        return None
    active = scene.spec.active_deadline_seconds
    if active is not None and waited > active:
        return reasons.deadline_exceeded(active)
    if not scene.begun and waited > scene.spec.pre_running_deadline_seconds:
        last = scene.last("Ready")
        return reasons.pre_running_deadline_exceeded(
            scene.spec.pre_running_deadline_seconds, last.message if last else "nothing"
        )
    return None


def seconds_to_deadline(scene: Scene, accepted: Verdict, suspended: Verdict) -> float | None:
    """Until `deadline_passed` may say something else; None where time alone changes nothing."""
    waited = _admitted_seconds(scene, accepted, suspended)
    if waited is None:
        return None
    limits = [limit for limit in (scene.spec.active_deadline_seconds,) if limit is not None]
    if not scene.begun:
        limits.append(scene.spec.pre_running_deadline_seconds)
    return max(0.0, min(limits) - waited) + 1.0 if limits else None


def seconds_to_live(scene: Scene) -> float | None:
    """Until a game that is over is deleted; None where it never is. Not more than 0: now."""
    ttl, ended = scene.spec.ttl_seconds_after_finished, scene.before.completion_time
    if ttl is None or ended is None:
        return None
    return ttl - (scene.observed.now - read_time(ended)).total_seconds()


def _admitted_seconds(scene: Scene, accepted: Verdict, suspended: Verdict) -> float | None:
    """For how long peers may have run; None while they may not."""
    if suspended.is_true or not accepted.is_true:
        return None
    return min(scene.seconds_since("Suspended", "False"), scene.seconds_since("Accepted", "True"))
