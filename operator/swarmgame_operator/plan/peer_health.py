"""Peers' health: which peers are not well, and why, by index.

Of a peer's pods the living one speaks; a dead one only while its successor is not ready. Invariant: what Kubernetes or
a queue took away on purpose is not called unwell.
"""

from __future__ import annotations

from swarmgame_api.status import PeerCounts, UnhealthyPeer
from swarmgame_operator.observed import ContainerFacts, PodFacts
from swarmgame_operator.plan import sampler
from swarmgame_operator.plan.scene import ENDED, ORDINARY_WAITS, Scene, last_words

SHOWN = 16
MESSAGE = 1_000


def unhealthy_peers(scene: Scene) -> tuple[UnhealthyPeer, ...]:
    """All that are not well, by index; the status shows the first sixteen."""
    found = []
    for index in range(scene.desired):
        pods = [pod for pod in scene.peer_pods if pod.index == index]
        trouble = _for_good(scene, index, pods) or _trouble(scene, index, pods)
        if trouble is not None:
            reason, message = trouble
            found.append(UnhealthyPeer(index=index, reason=reason, message=" ".join(message.split())[:MESSAGE]))
    return tuple(found)


def peer_counts(scene: Scene) -> PeerCounts:
    chain = scene.observed.chain
    return PeerCounts(
        desired=scene.desired,
        active=len(scene.active_pods),
        ready=len(scene.ready_indexes),
        registered=chain.registered if chain is not None and scene.setting.has_chain else 0,
        succeeded=len(scene.completed_indexes),
        failed=len(scene.failed_indexes),
        terminating=len(scene.leaving_pods),
    )


def failed_container(pod: PodFacts) -> ContainerFacts | None:
    """The container for which a pod failed; none where the pod was taken away. A server beside the peer ends with it,
    and is not why.
    """
    if pod.phase != "Failed" or pod.disrupted or pod.terminating:
        return None
    ended = [container for container in pod.containers if container.exit_code]
    return next((container for container in ended if container.name != sampler.CONTAINER), next(iter(ended), None))


def _for_good(scene: Scene, index: int, pods: list[PodFacts]) -> tuple[str, str] | None:
    if index not in scene.failed_indexes:
        return None
    words = next(
        (last_words(container) for pod in pods if (container := failed_container(pod)) is not None), "its pod is gone"
    )
    return "FailedForGood", words


def _trouble(scene: Scene, index: int, pods: list[PodFacts]) -> tuple[str, str] | None:
    if index in scene.ready_indexes or index in scene.completed_indexes:
        return None
    for pod in pods:
        if pod.phase in ENDED or pod.terminating:
            continue
        if pod.unschedulable:
            return "Unschedulable", pod.unschedulable
        for container in pod.containers:
            if container.waiting not in ORDINARY_WAITS:
                return container.waiting, container.waiting_message or f"{container.name} waits"
    for pod in pods:
        container_that_failed = failed_container(pod)
        if container_that_failed is not None:
            reason = container_that_failed.exit_reason or "Error"
            return reason, last_words(container_that_failed)
    return None
