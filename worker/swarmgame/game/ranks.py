"""Ranks: the processes (one GPU each) that together are one peer.

The protocol only; `swarmgame.runtime.ranks` has the one over torch.distributed. Invariant: every rank makes the same
calls in the same order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class Ranks(Protocol):
    """What the parts of a game may ask of the other processes of their peer."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def broadcast(self, payload: bytes | None) -> bytes:
        """Rank 0's bytes, on every rank; the others pass None."""
        ...

    def gather(self, payload: bytes) -> list[bytes]:
        """Every rank's bytes, in the order of ranks, on every rank."""
        ...

    def sum_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Adds up the gradients of all ranks, in place; a parameter without gradient on this rank counts as zeros."""
        ...


class OneRank:
    """A peer of a single process."""

    rank = 0
    size = 1

    def broadcast(self, payload: bytes | None) -> bytes:
        if payload is None:
            raise ValueError("rank 0 must have something to broadcast")
        return payload

    def gather(self, payload: bytes) -> list[bytes]:
        return [payload]

    def sum_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Nothing to add: the gradients are already whole."""
