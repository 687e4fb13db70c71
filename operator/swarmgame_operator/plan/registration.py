"""Registration: whether enough peers are proven on chain, and if not, what is in the way.

The chain is never in the way of play (unless the game admits registered peers only); so a chain that is away once
enough are registered is told under Degraded, not here.
"""

from __future__ import annotations

from swarmgame_operator import reasons
from swarmgame_operator.plan.chain import GATEWAY
from swarmgame_operator.plan.scene import Scene, last_words
from swarmgame_operator.plan.services import DEV_CHAIN_ID
from swarmgame_operator.reasons import Verdict

REFUSED = 77


def registration(scene: Scene) -> Verdict:
    if not scene.setting.has_chain:
        return reasons.not_required()
    chain, least = scene.observed.chain, scene.spec.peers.min_replicas
    if chain is not None and chain.registered >= least:
        return reasons.registered(chain.registered, scene.desired, least)
    for pod in scene.observed.pods_of(GATEWAY):
        for container in pod.containers:
            if container.exit_code == REFUSED and not container.ready:
                return reasons.wrong_chain(last_words(container))
    if chain is None:
        return reasons.rpc_unavailable("the gateway has not answered yet.")
    expected = scene.spec.coordination.chain_id or DEV_CHAIN_ID
    if chain.chain_id is not None and chain.chain_id != expected:
        return reasons.wrong_chain(f"it has the id {chain.chain_id}, and {expected} was expected.")
    if chain.wallet_empty:
        return reasons.insufficient_funds()
    if chain.problem:
        return reasons.rpc_unavailable(chain.problem)
    if chain.reverted:
        return reasons.transaction_reverted(chain.reverted)
    return reasons.registered(chain.registered, scene.desired, least)
