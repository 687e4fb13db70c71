"""Rotary positions: queries and keys turned to where their token stands, one new token a row.

There are two orders of a head's numbers. As transformers keeps them, number i is turned together with i + D/2. Interleaved, it is turned together
with its neighbour, so that a pair is one complex number and turning is one product; who wants that order permutes the projections that make
queries and keys, whose inner products do not change. Invariant: both orders give the same inner products, to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Rotation:
    """The turns of all positions of one call.

    Args:
        cosine, sine: [positions, D], both halves alike.
        interleaved: the order of queries and keys.
    """

    def __init__(self, cosine: Tensor, sine: Tensor, *, interleaved: bool) -> None:
        self.interleaved = interleaved
        half = cosine.shape[-1] // 2
        if interleaved:
            self._turns = torch.complex(cosine[:, :half], sine[:, :half])
        else:
            # x rotated by half a turn is (-x2, x1): a roll, with the sign kept in the table.
            self._turns = torch.stack([cosine, torch.cat([-sine[:, :half], sine[:, half:]], dim=-1)], dim=1)

    @staticmethod
    def order(size: int) -> Tensor:
        """Where an interleaved head of `size` numbers has each of them from."""
        return torch.arange(size).view(2, size // 2).t().reshape(-1)

    def at(self, position_S: Tensor) -> Tensor:
        """The turns at some positions, [S, …], for `turn`."""
        return self._turns.index_select(0, position_S)

    def seen(self, x: Tensor) -> Tensor:
        """A tensor [..., D] as `turn` writes into it."""
        return torch.view_as_complex(x.view(*x.shape[:-1], -1, 2)) if self.interleaved else x

    def turn(self, x: Tensor, turns: Tensor, out: Tensor) -> None:
        """Writes x [..., D], turned, into a buffer that `seen` has shown."""
        if self.interleaved:
            torch.mul(self.seen(x), turns, out=out)
        else:
            cosine, sine = turns.unbind(-2)
            torch.addcmul(x * cosine, x.roll(x.shape[-1] // 2, dims=-1), sine, out=out)
