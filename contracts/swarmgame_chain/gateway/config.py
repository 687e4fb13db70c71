"""Options of a gateway, and the problems that its status names."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class GatewayProblem(StrEnum):
    """Why the gateway is not working, for `/status`. The wrong chain is not among them: it ends the process."""

    RPC_UNAVAILABLE = "RPCUnavailable"
    INSUFFICIENT_FUNDS = "InsufficientFunds"
    TRANSACTION_REVERTED = "TransactionReverted"


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """Options of a gateway, in seconds, blocks, counts and wei."""

    confirmations: int = 2
    interval: float = 0.25
    """Least seconds between two steps; messages that arrive within it share a transaction."""
    bump_after: float = 30.0
    max_fee: int = 500 * 10**9
    max_tip: int = 30 * 10**9
    """Highest tip of a first offer; 30 gwei is the highest minimum of a large chain (Polygon's)."""
    gas_per_hour: int = 0
    """Gas that transactions may use in an hour; 0 sets no limit."""
    capacity: int = 10_000
    registrations_per_minute: int = 2_000
    """Limit of registrations: each costs gas, and anyone can make keys."""
    quorum: float = 0.67
    ends_rounds: bool = True
    """Whether it ends rounds. To end them before their deadline, its wallet needs the stage manager's role."""


def shown_problem(empty_wallet: str, problem: str, kind: GatewayProblem, reverted: str) -> dict[str, str] | None:
    """Return the present problem for `/status`: a reason for machines and a message for people.

    Args:
        empty_wallet: the address that cannot pay; empty where it can.
        problem: why the gateway is not ready, and its kind.
        reverted: why the contract did not take the last registration.
    """
    if empty_wallet:
        message = f"the wallet {empty_wallet} cannot pay for gas"
        return {"reason": str(GatewayProblem.INSUFFICIENT_FUNDS), "message": message}
    if problem:
        return {"reason": str(kind), "message": problem}
    if reverted:
        message = f"the contract does not take a registration: {reverted}"
        return {"reason": str(GatewayProblem.TRANSACTION_REVERTED), "message": message}
    return None
