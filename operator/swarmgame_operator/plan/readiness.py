"""Readiness: whether the swarm is up, and if not, what it waits for first."""

from __future__ import annotations

from swarmgame_operator import reasons
from swarmgame_operator.observed import PodFacts
from swarmgame_operator.plan import initializer
from swarmgame_operator.plan.peer_job import queue
from swarmgame_operator.plan.scene import ENDED, Scene, job_says
from swarmgame_operator.plan.suspension import by_author
from swarmgame_operator.reasons import Verdict


def readiness(scene: Scene, accepted: Verdict, registered: Verdict, suspended: Verdict, *, end: str) -> Verdict:
    """Ready, or the first thing in its way.

    Args:
        end: Complete or Failed of a game that is over; else empty.
    """
    ready, least = len(scene.ready_indexes), scene.spec.peers.min_replicas
    if end:
        return reasons.game_complete() if end == "Complete" else reasons.game_failed()
    if by_author(suspended):
        return reasons.game_suspended()
    enough = ready >= least and (registered.is_true or scene.spec.communication.admission == "Open")
    if enough and scene.bootnode_ready:
        return reasons.peers_ready(ready, scene.desired)
    if scene.job is None and not accepted.is_true:
        return reasons.game_not_accepted()
    if (stuck := _stuck(scene)) is not None:
        return reasons.unschedulable(stuck.name, stuck.unschedulable)
    if _cache_is_being_filled(scene):
        return reasons.initializing()
    if suspended.is_true:
        return reasons.waiting_for_queue(queue(scene.setting))
    if not scene.bootnode_ready:
        return reasons.waiting_for_bootnode()
    if scene.active_pods and all(_initializes(pod) for pod in scene.active_pods):
        return reasons.initializing()
    return reasons.waiting_for_peers(ready, scene.desired, least)


def _stuck(scene: Scene) -> PodFacts | None:
    """A pod that no node can take, and without which the swarm does not begin."""
    roles = ("initializer", "bootnode", "peer")
    pods = (pod for role in roles for pod in scene.observed.pods_of(role))
    return next((pod for pod in pods if pod.unschedulable and not pod.terminating), None)


def _cache_is_being_filled(scene: Scene) -> bool:
    return (
        scene.job is None
        and initializer.is_a_job(scene.setting)
        and job_says(scene.observed.initializer, "Complete") is None
    )


def _initializes(pod: PodFacts) -> bool:
    """Whether its init container has not succeeded yet, and nothing keeps it from trying."""
    container = next((each for each in pod.containers if each.name == initializer.CONTAINER), None)
    return (
        container is not None
        and pod.phase not in ENDED
        and container.exit_code is None
        and container.waiting in ("", "PodInitializing")
    )
