"""Errors of the chain, by who can mend them; the exit codes are those of every `swarmgame` command.

A refusal says what was expected and what was found: a wrong chain id, no code at the address and another contract are
three different mistakes. Invariant: no message contains a key.
"""

from __future__ import annotations


class ChainError(Exception):
    """An error with a message for a person."""

    exit_code = 1


class BadChainUsage(ChainError):
    """An option or a file that makes no sense: no such key file, a wrong passphrase."""

    exit_code = 64


class BadMessage(ChainError):
    """A message that is malformed, out of bounds or not signed by whom it names."""

    exit_code = 65


class ChainUnreachable(ChainError):
    """The RPC endpoint does not answer. It may pass by itself."""

    exit_code = 75


class ChainRefused(ChainError):
    """The chain or the contract is not the one that was asked for, or the contract says no."""

    exit_code = 77


class RpcError(ChainError):
    """The node answered with an error.

    Args:
        code: JSON-RPC's.
        message: the node's words.
        data: what a reverted call returned, if anything.
    """

    def __init__(self, code: int, message: str, data: bytes = b"") -> None:
        super().__init__(f"the node answered {code}: {message}")
        self.code = code
        self.message = message
        self.data = data
