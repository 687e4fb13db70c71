"""Errors of the chain package, by what can be done about them; the exit codes are those of every `swarmgame` command.

A message names what was expected and what was found: a wrong chain id, no code at the address, and another contract
are three different mistakes. No message contains a key.
"""

from __future__ import annotations


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
