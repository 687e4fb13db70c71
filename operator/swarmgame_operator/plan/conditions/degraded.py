"""Degraded: whether the game has fewer resources or peers than specified, and the most serious reason."""

from __future__ import annotations

from swarmgame_operator.plan.condition_policy import ConditionPolicy, ConditionUpdate, Reason
from swarmgame_operator.plan.peer_health import unhealthy_peers
from swarmgame_operator.plan.reconcile_context import ENDED, IMAGE_ERRORS, ReconcileContext

MAX_CHAIN_LAG = 5
"""Rounds that the chain may lag. Reports are sealed and confirmed, so one or two are usual."""
MAX_CHECKPOINT_LAG = 3

AS_EXPECTED = Reason("Degraded", "False", "AsExpected", "Nothing is wrong.", quiet=True)
PEERS_FAILING = Reason(
    "Degraded",
    "True",
    "PeersFailing",
    "{failing} of {desired} peers are failing. Peer {index}, {reason}: {message}",
    warning=True,
)
IMAGE_PULL_FAILED = Reason(
    "Degraded",
    "True",
    "ImagePullFailed",
    "The image of the container {container} in the pod {pod} cannot be pulled: {problem}",
    warning=True,
)
OUT_OF_MEMORY = Reason(
    "Degraded",
    "True",
    "OutOfMemory",
    "Out of memory: peer {indexes}. Raise spec.peers.resources.limits.memory, or lower what a round generates.",
    warning=True,
)
CHAIN_LAGGING = Reason(
    "Degraded",
    "True",
    "ChainLagging",
    "The swarm continues, but the chain does not follow: {problem}",
    warning=True,
)
CHECKPOINT_FAILING = Reason(
    "Degraded",
    "True",
    "CheckpointFailing",
    "The newest checkpoint is {lag} rounds old, and one is due every {every}. Check the volume and the peers' logs.",
    warning=True,
)


def degraded_condition(context: ReconcileContext) -> ConditionUpdate:
    if not context.playing:
        return AS_EXPECTED()
    checks = (_images, _memory, _peers, _checkpoints, _chain)
    return next((update for check in checks if (update := check(context)) is not None), AS_EXPECTED())


def _images(context: ReconcileContext) -> ConditionUpdate | None:
    for pod in context.observed.pods:
        for container in pod.containers:
            if container.waiting in IMAGE_ERRORS and pod.phase not in ENDED:
                problem = container.waiting_message or container.waiting
                return IMAGE_PULL_FAILED(container=container.name, pod=pod.name, problem=problem)
    return None


def _memory(context: ReconcileContext) -> ConditionUpdate | None:
    killed = sorted(
        pod.index
        for pod in context.peer_pods
        if pod.index is not None and pod.index not in context.ready_indexes
        for container in pod.containers
        if container.exit_reason == "OOMKilled"
    )
    return OUT_OF_MEMORY(indexes=", ".join(map(str, dict.fromkeys(killed)))) if killed else None


def _peers(context: ReconcileContext) -> ConditionUpdate | None:
    failing = [peer for peer in unhealthy_peers(context) if peer.reason != "Unschedulable"]
    if not failing:
        return None
    first = failing[0]
    return PEERS_FAILING(
        failing=len(failing), desired=context.desired, index=first.index, reason=first.reason, message=first.message
    )


def _checkpoints(context: ReconcileContext) -> ConditionUpdate | None:
    progress, every = context.observed.progress, context.spec.storage.checkpoints.every_rounds
    if progress is None:
        return None
    lag = progress.rounds_finished - (progress.checkpoint or 0)
    return CHECKPOINT_FAILING(lag=lag, every=every) if lag > MAX_CHECKPOINT_LAG * every else None


def _chain(context: ReconcileContext) -> ConditionUpdate | None:
    chain = context.observed.chain
    if not context.game.has_chain or not context.begun:
        return None
    if chain is None:
        return CHAIN_LAGGING(problem="the gateway does not answer.")
    if chain.problem:
        return CHAIN_LAGGING(problem=chain.problem)
    lag = context.before.progress.round - chain.round
    return CHAIN_LAGGING(problem=f"it is {lag} rounds behind.") if chain.round >= 0 and lag > MAX_CHAIN_LAG else None


DEGRADED = ConditionPolicy(
    "Degraded",
    (AS_EXPECTED, PEERS_FAILING, IMAGE_PULL_FAILED, OUT_OF_MEMORY, CHAIN_LAGGING, CHECKPOINT_FAILING),
    degraded_condition,
)
