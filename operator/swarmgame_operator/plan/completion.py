"""Completion: when the game is over and went well.

AnyPeer: the Job's own success policy ends it with the first peer that has played its last round. AllPeers: peers that
have failed for good do not count, as long as the failure policy allows them. Coordinator: the chain has seen the last
round; or every peer has, and nothing more can come.
"""

from __future__ import annotations

from swarmgame_operator import reasons
from swarmgame_operator.plan.scene import Scene, job_says
from swarmgame_operator.reasons import Verdict


def completion(scene: Scene) -> Verdict | None:
    """The game's good end, if this is it."""
    policy = scene.spec.completion.policy
    chain, rounds = scene.observed.chain, scene.spec.game.max_rounds
    if policy == "Coordinator" and chain is not None and chain.round >= rounds:
        return reasons.coordinator_finished(chain.round)
    if job_says(scene.job, "Complete", "SuccessCriteriaMet") is not None:
        if policy == "AnyPeer":
            return reasons.rounds_reached(rounds)
        return reasons.all_peers_succeeded(len(scene.completed_indexes), len(scene.failed_indexes))
    if policy != "AnyPeer" and job_says(scene.job, "Failed", "FailureTarget") == "FailedIndexes":
        failed, succeeded = len(scene.failed_indexes), len(scene.completed_indexes)
        if succeeded and failed <= scene.spec.failure_policy.max_failed_peers:
            return reasons.all_peers_succeeded(succeeded, failed)
    return None
