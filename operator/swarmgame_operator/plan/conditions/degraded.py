"""Degraded: whether the game has fewer resources or peers than specified, and the most serious reason.

It is False only when all that should have started has, or when the events of what has not were read and say nothing.
"""

from __future__ import annotations

from swarmgame_operator.plan import initializer, sampler
from swarmgame_operator.plan.condition_policy import ConditionPolicy, ConditionUpdate, Reason
from swarmgame_operator.plan.obstacles import OBSTACLES, obstacle, subjects, unread
from swarmgame_operator.plan.peer_health import unhealthy_peers
from swarmgame_operator.plan.peer_job import CONTAINER
from swarmgame_operator.plan.reconcile_context import ENDED, IMAGE_ERRORS, ReconcileContext
from swarmgame_operator.plan.rollout import change_waits
from swarmgame_operator.plan.storage import keeps_checkpoints
from swarmgame_operator.plan.unplanned import UNPLANNED
from swarmgame_operator.snapshot import PodFacts

MAX_CHAIN_LAG = 5
"""Rounds that the chain may lag. Reports are sealed and confirmed, so one or two are usual."""
MAX_CHECKPOINT_LAG = 3

AS_EXPECTED = Reason(
    "Degraded", "False", "AsExpected", "Everything that should run has started, and no problem is known.", quiet=True
)
STOPPED = Reason("Degraded", "False", "AsExpected", "Nothing should run, and nothing is in the way.", quiet=True)
UNEXPLAINED = Reason(
    "Degraded",
    "False",
    "AsExpected",
    "{what} has not started yet; no event says that anything is in the way.",
    quiet=True,
)
NOT_OBSERVED = Reason("Degraded", "Unknown", "NotObserved", "{what} has not started yet.", quiet=True)
EVENTS_UNREADABLE = Reason(
    "Degraded",
    "Unknown",
    "NotObserved",
    "{what} has not started, and the operator cannot read its events: {error}",
    quiet=True,
)
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


CHANGE_WAITS = Reason(
    "Degraded",
    "True",
    "ChangeWaits",
    "The specification of the peers' pods has changed, and they go on unchanged: their checkpoints are not on a claim, "
    "so a restart would lose all rounds. Undo the change, or suspend and resume the game to begin anew with it.",
    warning=True,
)
CLAIM_CHANGES = Reason(
    "Degraded",
    "True",
    "ChangeWaits",
    "The specification of the peers' pods has changed, and they go on unchanged: their checkpoints are on the claim "
    "{old}, and new pods would have theirs {new}, so a restart would lose all rounds. Undo the change; or suspend the "
    "game, copy the content of the claim, and resume it; or suspend and resume it to begin anew.",
    warning=True,
)
NOTHING_KEPT = Reason(
    "Degraded",
    "True",
    "ChangeWaits",
    "spec.game.maxRounds was raised to {rounds} after the end, and the game stays complete: its checkpoints were not "
    "kept on a claim, so there is nothing to play on from. Create the game anew.",
    warning=True,
)
CLAIM_WITHOUT_ROUNDS = Reason(
    "Degraded",
    "True",
    "ChangeWaits",
    "spec.game.maxRounds was raised to {rounds} after the end, and the game stays complete: the claim of "
    "spec.storage.checkpoints does not have its checkpoints, so there is nothing to play on from. Name the claim that "
    "has them, or create the game anew.",
    warning=True,
)


def degraded_condition(context: ReconcileContext) -> ConditionUpdate:
    if not context.playing:
        extended = context.over and context.was_extended
        reason = CLAIM_WITHOUT_ROUNDS if keeps_checkpoints(context.game) else NOTHING_KEPT
        lost = reason(rounds=context.spec.game.max_rounds) if extended else None
        return obstacle(context) or lost or STOPPED()
    checks = (obstacle, _images, _memory, _peers, _checkpoints, _chain, _change)
    return next((update for check in checks if (update := check(context)) is not None), None) or _observed(context)


def _observed(context: ReconcileContext) -> ConditionUpdate:
    """Return the condition of a game in which no problem is known: whether that is because there is none."""
    waiting = unread(context)
    if waiting:
        return NOT_OBSERVED(what=f"The {waiting[0].kind} {waiting[0].name}")
    waiting = subjects(context)
    if not waiting:
        return _all_started(context)
    what = f"The {waiting[0].kind} {waiting[0].name}"
    diagnosis = context.observed.diagnoses[waiting[0].kind, waiting[0].name]
    return EVENTS_UNREADABLE(what=what, error=diagnosis.error) if diagnosis.error else UNEXPLAINED(what=what)


def _all_started(context: ReconcileContext) -> ConditionUpdate:
    """Return the condition of a game of which no events have to be read."""
    if context.job is None:
        return NOT_OBSERVED(what="The Job of the peers")
    pods = (pod for pod in context.observed.pods if pod.phase == "Pending" and not pod.node and not pod.unschedulable)
    pod = next((pod for pod in pods if not pod.terminating and not pod.containers), None)
    return AS_EXPECTED() if pod is None else NOT_OBSERVED(what=f"The Pod {pod.name}")


def _images(context: ReconcileContext) -> ConditionUpdate | None:
    for pod in context.observed.pods:
        for container in pod.containers:
            if container.waiting in IMAGE_ERRORS and pod.phase not in ENDED:
                problem = " ".join(filter(None, (container.waiting_message or container.waiting, _pull(context, pod))))
                return IMAGE_PULL_FAILED(container=container.name, pod=pod.name, problem=problem)
    return None


def _pull(context: ReconcileContext, pod: PodFacts) -> str:
    """Return what the pod's events say about its pull Secrets."""
    diagnosis = context.observed.diagnoses.get(("Pod", pod.name))
    found = (each.message for each in (diagnosis.warnings if diagnosis else ()) if "pull secret" in each.message)
    return next(found, "")


def _memory(context: ReconcileContext) -> ConditionUpdate | None:
    own = (CONTAINER, initializer.CONTAINER, sampler.CONTAINER)
    killed = sorted(
        pod.index
        for pod in context.peer_pods
        if pod.index is not None and pod.index not in context.ready_indexes
        for container in pod.containers
        if container.exit_reason == "OOMKilled" and container.name in own
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


def _change(context: ReconcileContext) -> ConditionUpdate | None:
    if context.job is None or not change_waits(context):
        return None
    if not context.job.checkpoints_claim:
        return CHANGE_WAITS()
    new = f"on the claim {context.new_claim}" if context.new_claim else "on no claim"
    return CLAIM_CHANGES(old=context.job.checkpoints_claim, new=new)


DEGRADED = ConditionPolicy(
    "Degraded",
    (
        AS_EXPECTED,
        STOPPED,
        UNEXPLAINED,
        NOT_OBSERVED,
        EVENTS_UNREADABLE,
        *UNPLANNED,
        *OBSTACLES,
        PEERS_FAILING,
        IMAGE_PULL_FAILED,
        OUT_OF_MEMORY,
        CHAIN_LAGGING,
        CHECKPOINT_FAILING,
        CHANGE_WAITS,
        CLAIM_CHANGES,
        CLAIM_WITHOUT_ROUNDS,
        NOTHING_KEPT,
    ),
    degraded_condition,
)
