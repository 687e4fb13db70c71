"""Registered: whether enough peers are registered on chain, and if not, why.

Games do not wait for the chain, unless they admit registered peers only. So a chain that stops answering after enough
peers are registered is reported under Degraded, not here.
"""

from __future__ import annotations

from swarmgame_operator.plan.chain import GATEWAY
from swarmgame_operator.plan.condition_policy import ConditionPolicy, ConditionUpdate, Reason
from swarmgame_operator.plan.reconcile_context import ReconcileContext, termination_summary
from swarmgame_operator.plan.services import DEV_CHAIN_ID

REFUSED_EXIT_CODE = 77
_COUNTS = "{count} of {desired} peers are registered on chain; {least} are needed."

NOT_REQUIRED = Reason("Registered", "True", "NotRequired", "The game has no chain.", quiet=True)
ALL_REGISTERED = Reason("Registered", "True", "AllRegistered", _COUNTS)
ENOUGH_REGISTERED = Reason("Registered", "True", "PartlyRegistered", _COUNTS)
TOO_FEW_REGISTERED = Reason("Registered", "False", "PartlyRegistered", _COUNTS)
RPC_UNAVAILABLE = Reason("Registered", "False", "RPCUnavailable", "The chain does not answer: {problem}")
WRONG_CHAIN = Reason(
    "Registered", "False", "WrongChain", "The chain or the contract is not the one that the game names: {problem}"
)
INSUFFICIENT_FUNDS = Reason(
    "Registered", "False", "InsufficientFunds", "The gateway's wallet cannot pay for gas; fund it."
)
TRANSACTION_REVERTED = Reason(
    "Registered", "False", "TransactionReverted", "The contract rejected a registration: {error}"
)


def registered_condition(context: ReconcileContext) -> ConditionUpdate:
    if not context.game.has_chain:
        return NOT_REQUIRED()
    chain, least = context.observed.chain, context.spec.peers.min_replicas
    if chain is not None and chain.registered >= least:
        enough = ALL_REGISTERED if chain.registered >= context.desired else ENOUGH_REGISTERED
        return enough(count=chain.registered, desired=context.desired, least=least)
    for pod in context.observed.pods_of(GATEWAY):
        for container in pod.containers:
            if container.exit_code == REFUSED_EXIT_CODE and not container.ready:
                return WRONG_CHAIN(problem=termination_summary(container))
    if chain is None:
        return RPC_UNAVAILABLE(problem="the gateway has not answered yet.")
    expected = context.spec.coordination.chain_id or DEV_CHAIN_ID
    if chain.chain_id is not None and chain.chain_id != expected:
        return WRONG_CHAIN(problem=f"its id is {chain.chain_id}; expected {expected}.")
    if chain.wallet_empty:
        return INSUFFICIENT_FUNDS()
    if chain.problem:
        return RPC_UNAVAILABLE(problem=chain.problem)
    if chain.reverted:
        return TRANSACTION_REVERTED(error=chain.reverted)
    return TOO_FEW_REGISTERED(count=chain.registered, desired=context.desired, least=least)


REGISTERED = ConditionPolicy(
    "Registered",
    (
        NOT_REQUIRED,
        ALL_REGISTERED,
        ENOUGH_REGISTERED,
        TOO_FEW_REGISTERED,
        RPC_UNAVAILABLE,
        WRONG_CHAIN,
        INSUFFICIENT_FUNDS,
        TRANSACTION_REVERTED,
    ),
    registered_condition,
)
