"""Ranks: the processes (one GPU each) of one peer.

Only the protocol; `swarmgame.runtime.ranks` implements it with torch.distributed. Invariant: every rank makes the same
calls in the same order.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class Ranks(Protocol):
    """Collective operations between the processes of one peer, for the components of a game."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def broadcast(self, payload: bytes | None) -> bytes:
        """Return rank 0's bytes on every rank; the other ranks pass None."""
        ...

    def gather(self, payload: bytes) -> list[bytes]:
        """Return every rank's bytes, in rank order, on every rank."""
        ...

    def sum_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Sum the gradients of all ranks in place; a parameter without gradient on a rank counts as zeros."""
        ...

    def guarded(self, doing: str) -> AbstractContextManager[None]:
        """Return a context for other collective calls of the ranks, in which the loss of a rank becomes `Temporary`.
        Other errors leave it as they are.
        """
        ...


class OneRank:
    """The ranks of a peer with a single process."""

    rank = 0
    size = 1

    def broadcast(self, payload: bytes | None) -> bytes:
        if payload is None:
            raise ValueError("rank 0 must have something to broadcast")
        return payload

    def gather(self, payload: bytes) -> list[bytes]:
        return [payload]

    def sum_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Do nothing: there is one rank."""

    def guarded(self, doing: str) -> AbstractContextManager[None]:
        return nullcontext()
