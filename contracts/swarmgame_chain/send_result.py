"""What a node's refusal of a transaction means, by its text: nodes agree on the text, not on the codes."""

from __future__ import annotations

from enum import Enum

from swarmgame_chain.errors import RpcError


class SendResult(Enum):
    """What a node's refusal of a transaction means."""

    KNOWN = "known"
    NONCE_USED = "nonce used"
    UNDERPRICED = "underpriced"
    NO_FUNDS = "no funds"
    REFUSED = "refused"


def classify(error: RpcError) -> SendResult:
    """Return what a node's refusal means."""
    text = error.message.lower()
    if "already known" in text or "already imported" in text or "known transaction" in text:
        return SendResult.KNOWN
    if "nonce too low" in text or "nonce is too low" in text or "nonce has already been used" in text:
        return SendResult.NONCE_USED
    if "underpriced" in text or "less than block base fee" in text or "fee too low" in text or "fee cap" in text:
        return SendResult.UNDERPRICED
    if "insufficient funds" in text or "insufficient balance" in text:
        return SendResult.NO_FUNDS
    return SendResult.REFUSED
