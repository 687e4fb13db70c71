"""Rotary position embedding of queries and keys (RoPE, arXiv 2104.09864), one new token a row.

A head's numbers have one of two orders. In transformers' order, number i is rotated together with i + D/2.
Interleaved, it is rotated together with its neighbour, so a pair is one complex number and rotating is one product;
the projections that make queries and keys are permuted to fit, and their inner products do not change.
"""

from __future__ import annotations

import torch
from torch import Tensor


class RotaryEmbedding:
    """Rotations of all positions of one call.

    Args:
        cos, sin: [positions, D], both halves alike.
        interleaved: the order of queries and keys.
    """

    def __init__(self, cos: Tensor, sin: Tensor, *, interleaved: bool) -> None:
        self.interleaved = interleaved
        half = cos.shape[-1] // 2
        if interleaved:
            self._cos_sin = torch.complex(cos[:, :half], sin[:, :half])
        else:
            # rotate_half(x) is (-x2, x1): a roll, with the sign kept in the table.
            self._cos_sin = torch.stack([cos, torch.cat([-sin[:, :half], sin[:, half:]], dim=-1)], dim=1)

    @staticmethod
    def interleave_permutation(size: int) -> Tensor:
        """Where each number of an interleaved head of `size` numbers comes from."""
        return torch.arange(size).view(2, size // 2).t().reshape(-1)

    def cos_sin(self, position_S: Tensor) -> Tensor:
        """The rotations at some positions, [S, …], for `apply`."""
        return self._cos_sin.index_select(0, position_S)

    def pairs(self, x: Tensor) -> Tensor:
        """A tensor [..., D] in the form that `apply` writes into."""
        return torch.view_as_complex(x.view(*x.shape[:-1], -1, 2)) if self.interleaved else x

    def apply(self, x: Tensor, cos_sin: Tensor, out: Tensor) -> None:
        """Write x [..., D], rotated, into a buffer that `pairs` has returned."""
        if self.interleaved:
            torch.mul(self.pairs(x), cos_sin, out=out)
        else:
            cos, sin = cos_sin.unbind(-2)
            torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin, out=out)
