"""Errors of the chain package, by what can be done about them; the exit codes are those of every `swarmgame` command.

A message names what was expected and what was found: a wrong chain id, no code at the address, and another contract
are three different mistakes. No message contains a key.
"""

from __future__ import annotations

REVERTED = 3
"""JSON-RPC's code for a call that reverted."""


class ChainError(Exception):
    """An error with a message for a person."""

    exit_code = 1


class BadChainUsage(ChainError):
    """An invalid option or file: a missing key file, a wrong passphrase."""

    exit_code = 64


class BadMessage(ChainError):
    """A message that is malformed, out of bounds, or not signed by the key that it names."""

    exit_code = 65


class ChainUnreachable(ChainError):
    """The node does not answer; it may recover by itself."""

    exit_code = 75


class RequestTooLarge(ChainUnreachable):
    """The node does not take a batch of this size, or answers with more than is read; a smaller request may work."""


class NoCoordinator(ChainUnreachable):
    """The contract's answer is not a coordinator's: the node lags, or it is another contract."""


class ChainRefused(ChainError):
    """The chain or the contract is not the expected one, or the contract refuses."""

    exit_code = 77


class RpcError(ChainError):
    """The node returned an error.

    Args:
        code: JSON-RPC's code.
        message: the node's text.
        data: the return data of a reverted call.
    """

    def __init__(self, code: int, message: str, data: bytes = b"") -> None:
        super().__init__(f"the node answered {code}: {message}")
        self.code = code
        self.message = message
        self.data = data

    @property
    def is_revert(self) -> bool:
        """Whether the contract refused the call, and not the node. Nodes agree on the text, not on the code."""
        return self.code == REVERTED or len(self.data) >= 4 or "revert" in self.message.lower()
