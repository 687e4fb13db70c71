"""Degradation: whether the game runs below what was asked, and the worst reason why."""

from __future__ import annotations

from swarmgame_operator import reasons
from swarmgame_operator.plan.peer_health import unhealthy_peers
from swarmgame_operator.plan.scene import ENDED, IMAGE_ERRORS, Scene
from swarmgame_operator.plan.suspension import by_author
from swarmgame_operator.reasons import Verdict

ROUNDS_BEHIND = 5
"""How far the chain may be behind: reports are sealed and confirmed, so one or two rounds are usual."""
CHECKPOINTS_BEHIND = 3


def degradation(scene: Scene, suspended: Verdict, *, over: bool) -> Verdict:
    if over or by_author(suspended):
        return reasons.as_expected()
    checks = (_images, _memory, _peers, _checkpoints, _chain)
    return next((verdict for check in checks if (verdict := check(scene)) is not None), reasons.as_expected())


def _images(scene: Scene) -> Verdict | None:
    for pod in scene.observed.pods:
        for container in pod.containers:
            if container.waiting in IMAGE_ERRORS and pod.phase not in ENDED:
                return reasons.image_pull_failed(
                    f"the container {container.name} in the pod {pod.name}",
                    container.waiting_message or container.waiting,
                )
    return None


def _memory(scene: Scene) -> Verdict | None:
    killed = sorted(
        pod.index
        for pod in scene.peer_pods
        if pod.index is not None and pod.index not in scene.ready_indexes
        for container in pod.containers
        if container.exit_reason == "OOMKilled"
    )
    return reasons.out_of_memory("peer " + ", ".join(map(str, dict.fromkeys(killed)))) if killed else None


def _peers(scene: Scene) -> Verdict | None:
    failing = [peer for peer in unhealthy_peers(scene) if peer.reason != "Unschedulable"]
    if not failing:
        return None
    first = failing[0]
    return reasons.peers_failing(
        f"{len(failing)} of {scene.desired} peers are failing. Peer {first.index}, {first.reason}: {first.message}"
    )


def _checkpoints(scene: Scene) -> Verdict | None:
    progress, every = scene.observed.progress, scene.spec.storage.checkpoints.every_rounds
    if progress is None:
        return None
    behind = progress.rounds_finished - (progress.checkpoint or 0)
    return reasons.checkpoint_failing(behind, every) if behind > CHECKPOINTS_BEHIND * every else None


def _chain(scene: Scene) -> Verdict | None:
    chain = scene.observed.chain
    if not scene.setting.has_chain or not scene.begun:
        return None
    if chain is None:
        return reasons.chain_lagging("the gateway does not answer.")
    if chain.problem:
        return reasons.chain_lagging(chain.problem)
    behind = scene.before.progress.round - chain.round
    return (
        reasons.chain_lagging(f"it is {behind} rounds behind.") if chain.round >= 0 and behind > ROUNDS_BEHIND else None
    )
