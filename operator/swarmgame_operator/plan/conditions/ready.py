"""Ready: whether the swarm is up, and if not, the first thing that it waits for.

A game that is complete is ready: tools that wait for objects (kstatus, Flux, kubectl wait) would otherwise wait for
ever for one that has done all it should.
"""

from __future__ import annotations

from swarmgame_operator.plan import initializer
from swarmgame_operator.plan.condition_policy import ConditionPolicy, ConditionUpdate, Reason
from swarmgame_operator.plan.conditions.suspended import by_queue
from swarmgame_operator.plan.obstacles import obstacle
from swarmgame_operator.plan.peer_job import queue
from swarmgame_operator.plan.reconcile_context import ENDED, ReconcileContext, job_condition_reason
from swarmgame_operator.snapshot import PodFacts

PEERS_READY = Reason("Ready", "True", "PeersReady", "{ready} of {desired} peers are in the swarm.")
WAITING_FOR_QUEUE = Reason("Ready", "False", "WaitingForQueue", "The Job waits to be admitted{by_queue}.")
WAITING_FOR_PEERS = Reason(
    "Ready", "False", "WaitingForPeers", "{ready} of {desired} peers are in the swarm; {least} are needed."
)
WAITING_FOR_BOOTNODE = Reason("Ready", "False", "WaitingForBootnode", "The bootnode is not ready.")
INITIALIZING = Reason("Ready", "False", "Initializing", "The model is being brought into the cache.")
UNSCHEDULABLE = Reason("Ready", "False", "Unschedulable", "No node can take the pod {pod}: {problem}")
BLOCKED = Reason("Ready", "False", "Blocked", "{problem}", silent=True)
NOT_ACCEPTED = Reason("Ready", "False", "NotAccepted", "The game is not accepted.")
GAME_SUSPENDED = Reason("Ready", "False", "GameSuspended", "The game is suspended.")
COMPLETE = Reason("Ready", "True", "Complete", "The game is complete.", silent=True)
FAILED = Reason("Ready", "False", "Failed", "The game has failed; the condition Failed has the cause.", silent=True)


def ready_condition(context: ReconcileContext) -> ConditionUpdate:
    # A peer that has finished has been in the swarm to its end.
    ready, least = len(context.ready_indexes | context.finished_indexes), context.spec.peers.min_replicas
    if context.over:
        return COMPLETE() if context.end == "Complete" else FAILED()
    if context.stopped_by_author:
        return GAME_SUSPENDED()
    admitted = context.updates["Registered"].is_true or context.spec.communication.admission != "Registered"
    if ready >= least and admitted and context.bootnode_ready:
        return PEERS_READY(ready=ready, desired=context.desired)
    if context.job is None and not context.accepted:
        return NOT_ACCEPTED()
    if (problem := obstacle(context)) is not None:
        return BLOCKED(problem=problem.message)
    if (pod := _unschedulable_pod(context)) is not None:
        return UNSCHEDULABLE(pod=pod.name, problem=pod.unschedulable)
    if _cache_is_being_filled(context):
        return INITIALIZING()
    if context.suspended:
        return WAITING_FOR_QUEUE(by_queue=by_queue(queue(context.game)))
    if not context.bootnode_ready:
        return WAITING_FOR_BOOTNODE()
    if context.active_pods and all(_is_initializing(pod) for pod in context.active_pods):
        return INITIALIZING()
    return WAITING_FOR_PEERS(ready=ready, desired=context.desired, least=least)


def _unschedulable_pod(context: ReconcileContext) -> PodFacts | None:
    """Return a pod that no node can take and that the swarm needs to begin."""
    roles = ("initializer", "bootnode", "peer")
    pods = (pod for role in roles for pod in context.observed.pods_of(role))
    return next((pod for pod in pods if pod.unschedulable and not pod.terminating), None)


def _cache_is_being_filled(context: ReconcileContext) -> bool:
    return (
        context.job is None
        and initializer.is_a_job(context.game)
        and job_condition_reason(context.observed.initializer, "Complete") is None
    )


def _is_initializing(pod: PodFacts) -> bool:
    """Return whether the pod's init container has not succeeded yet, and nothing keeps it from running."""
    container = next((each for each in pod.containers if each.name == initializer.CONTAINER), None)
    return (
        container is not None
        and pod.phase not in ENDED
        and container.exit_code is None
        and container.waiting in ("", "PodInitializing")
    )


READY = ConditionPolicy(
    "Ready",
    (
        PEERS_READY,
        WAITING_FOR_QUEUE,
        WAITING_FOR_PEERS,
        WAITING_FOR_BOOTNODE,
        INITIALIZING,
        UNSCHEDULABLE,
        BLOCKED,
        NOT_ACCEPTED,
        GAME_SUSPENDED,
        COMPLETE,
        FAILED,
    ),
    ready_condition,
)
