"""The health of peers: which are unhealthy, and why, by index.

A peer's running pod decides; a failed one counts only until its successor is ready. A pod that Kubernetes or a queue
removed on purpose does not make its peer unhealthy.
"""

from __future__ import annotations

import re

from swarmgame_api.status import PeerCounts, UnhealthyPeer
from swarmgame_operator.plan import initializer
from swarmgame_operator.plan.peer_job import CONTAINER
from swarmgame_operator.plan.reconcile_context import ENDED, ORDINARY_WAITS, ReconcileContext, termination_summary
from swarmgame_operator.snapshot import ContainerFacts, PodFacts

SHOWN = 16
MESSAGE = 1_000
_REASON = re.compile(r"[A-Za-z]([A-Za-z0-9_,:]{0,126}[A-Za-z0-9_])?")
"""Reasons that the status takes; a pod's are what its kubelet wrote."""


def unhealthy_peers(context: ReconcileContext) -> tuple[UnhealthyPeer, ...]:
    """Return all unhealthy peers, by index; the status shows the first sixteen."""
    found = []
    for index in range(context.desired):
        pods = [pod for pod in context.peer_pods if pod.index == index]
        problem = _failed_for_good(context, index, pods) or _pod_problem(context, index, pods)
        if problem is not None:
            reason, message = problem
            reason = reason if _REASON.fullmatch(reason) else "Error"
            found.append(UnhealthyPeer(index=index, reason=reason, message=" ".join(message.split())[:MESSAGE]))
    return tuple(found)


def peer_counts(context: ReconcileContext) -> PeerCounts:
    chain = context.observed.chain
    return PeerCounts(
        desired=context.desired,
        active=len(context.active_pods),
        ready=len(context.ready_indexes),
        registered=chain.registered if chain is not None and context.game.has_chain else 0,
        succeeded=len(context.completed_indexes),
        failed=len(context.failed_indexes),
        terminating=len(context.leaving_pods),
    )


def failed_container(pod: PodFacts) -> ContainerFacts | None:
    """Return the container that made a pod fail; None if the pod was removed. The peer or its initializer, if one of
    them failed: what runs beside them ends with them, and is not the cause.
    """
    if pod.phase != "Failed" or pod.disrupted or pod.terminating:
        return None
    ended = [container for container in pod.containers if container.exit_code]
    own = (container for container in ended if container.name in (CONTAINER, initializer.CONTAINER))
    return next(own, next(iter(ended), None))


def _failed_for_good(context: ReconcileContext, index: int, pods: list[PodFacts]) -> tuple[str, str] | None:
    if index not in context.failed_indexes:
        return None
    containers = (failed_container(pod) for pod in pods)
    summaries = (termination_summary(container) for container in containers if container is not None)
    return "FailedForGood", next(summaries, "its pod is gone")


def _pod_problem(context: ReconcileContext, index: int, pods: list[PodFacts]) -> tuple[str, str] | None:
    if index in context.ready_indexes or index in context.completed_indexes:
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
            return reason, termination_summary(container_that_failed)
    return None
