"""Complete: when the game has ended well.

AnyPeer: the Job's own success policy ends it with the first peer that has finished its last round. AllPeers: peers
that have failed for good do not count, as long as the failure policy allows them. Coordinator: the chain has reached
the last round; or every peer has, and nothing more can come.
"""

from __future__ import annotations

from swarmgame_operator.plan.condition_policy import ConditionPolicy, ConditionUpdate, Reason
from swarmgame_operator.plan.reconcile_context import ReconcileContext, job_condition_reason

ROUNDS_REACHED = Reason("Complete", "True", "RoundsReached", "A peer has played all {rounds} rounds.")
COORDINATOR_FINISHED = Reason("Complete", "True", "CoordinatorFinished", "The chain is at round {round}.")
ALL_PEERS_SUCCEEDED = Reason(
    "Complete", "True", "AllPeersSucceeded", "{succeeded} peers have played their last round{failures}."
)
PLAYS_ON = Reason(
    "Complete",
    "False",
    "PlaysOn",
    "spec.game.maxRounds was raised to {rounds}: the game plays on from its checkpoints.",
)


def complete_condition(context: ReconcileContext) -> ConditionUpdate | None:
    """Return Complete if the game ends well now, or plays on; None if not, or if it ended before."""
    if context.plays_on:
        return PLAYS_ON(rounds=context.spec.game.max_rounds)
    if context.over:
        return None
    policy = context.spec.completion.policy
    chain, rounds = context.observed.chain, context.spec.game.max_rounds
    if policy == "Coordinator" and chain is not None and chain.round >= rounds:
        return COORDINATOR_FINISHED(round=chain.round)
    failed, succeeded = len(context.failed_indexes), len(context.completed_indexes)
    if job_condition_reason(context.job, "Complete", "SuccessCriteriaMet") is not None:
        return ROUNDS_REACHED(rounds=context.rounds) if policy == "AnyPeer" else _all_peers(succeeded, failed)
    all_ended = job_condition_reason(context.job, "Failed", "FailureTarget") == "FailedIndexes"
    if policy != "AnyPeer" and all_ended and succeeded > 0 and failed <= context.spec.failure_policy.max_failed_peers:
        return _all_peers(succeeded, failed)
    return None


def _all_peers(succeeded: int, failed: int) -> ConditionUpdate:
    failures = f"; {failed} have failed, which spec.failurePolicy allows" if failed else ""
    return ALL_PEERS_SUCCEEDED(succeeded=succeeded, failures=failures)


COMPLETE = ConditionPolicy(
    "Complete", (ROUNDS_REACHED, COORDINATOR_FINISHED, ALL_PEERS_SUCCEEDED, PLAYS_ON), complete_condition
)
