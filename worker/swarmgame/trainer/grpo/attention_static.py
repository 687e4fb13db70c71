"""Attention of many completions over one prompt, with every shape and every address fixed: what a CUDA graph can replay.

The same mathematics as `attention.py`; where that slices to what there is, this hides what is not yet there. Rows are a rectangle of P prompts by
M slots, and stay one when rows have finished. Invariant: equal to attention over the concatenation, to rounding. Shapes: K key heads, G query
heads a key head, D head size, W prompt width, S steps, L ≤ S a window over the first steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from swarmgame.trainer.grpo.rotation import Rotation


@dataclass(frozen=True)
class Hidden:
    """What scores are added to, so that nothing is attended to that is not there: 0, or -inf.

    Args:
        prompt: [P * K, 1, W]; written once a call.
        own: [1, 1, L]; written once a step.
    """

    prompt: Tensor
    own: Tensor


class StaticCache:
    """One layer's keys and values: of the prompts, and of up to P * M completions.

    Args:
        like: for type and device.
    """

    def __init__(self, prompts: int, slots: int, heads: int, width: int, steps: int, size: int, like: Tensor) -> None:
        # Zeros, not whatever was there: what is hidden still is multiplied by a share of zero, and NaN would stay NaN.
        self.prompt_keys = like.new_zeros(prompts * heads, size, width)
        self.prompt_values = like.new_zeros(prompts * heads, width, size)
        self._shape = prompts, heads, steps, size
        self._keys = like.new_zeros(prompts * heads * slots * steps * size)
        self._values = torch.zeros_like(self._keys)

    def fill(self, keys: Tensor, values: Tensor) -> None:
        """Takes the keys and values of the prompts, [P, K, W, D]."""
        self.prompt_keys.copy_(keys.transpose(2, 3).flatten(0, 1))
        self.prompt_values.copy_(values.flatten(0, 1))

    def own(self, slots: int) -> tuple[Tensor, Tensor]:
        """Keys and values of completions, [P, K, M, S, D], for that many slots a prompt: views of the beginning of the same memory."""
        prompts, heads, steps, size = self._shape
        shape = prompts, heads, slots, steps, size
        count = prompts * heads * slots * steps * size
        return self._keys[:count].view(shape), self._values[:count].view(shape)

    def move(self, source: Tensor, before: int, after: int, length: int) -> None:
        """Puts the completions of chosen slots into fewer slots.

        Args:
            source: for each prompt and new slot, the slot it comes from [P, after].
            before, after: slots a prompt.
            length: steps that have been taken; what lies beyond is not moved.
        """
        for old, new in zip(self.own(before), self.own(after), strict=True):
            prompts, heads, _, _, size = old.shape
            index = source[:, None, :, None, None].expand(prompts, heads, after, length, size)
            new[:, :, :, :length] = old[:, :, :, :length].gather(2, index)


class StaticAttention:
    """One layer's attention for a rectangle of P * M rows, over the first L steps.

    Args:
        cache: of the layer.
        slots: M.
        window: L; the caller takes a larger one before step L is written.
        queries: query heads, K * G.
        scaling: of queries.
        step: [1], the place at which the new token is written, changed by the caller before each call.
        hidden: what may not be attended to, likewise.
    """

    def __init__(
        self,
        cache: StaticCache,
        slots: int,
        window: int,
        *,
        queries: int,
        rotation: Rotation,
        scaling: float,
        step: Tensor,
        hidden: Hidden,
    ) -> None:
        self._cache, self._rotation, self._scaling, self._step, self._hidden = cache, rotation, scaling, step, hidden
        self._keys, self._values = cache.own(slots)
        prompts, heads, _, steps, size = self._keys.shape
        self._shape = prompts, slots, heads, queries // heads, size
        query = self._keys.new_empty(prompts, heads, slots, queries // heads, size)
        self._query_in = query.transpose(1, 2)
        self._turned = self._keys.new_empty(prompts, slots, queries + heads, size)
        self._query_by_prompt = query.view(prompts * heads, -1, size)
        self._query_by_row = query.view(prompts * heads * slots, -1, size)
        self._keys_out = self._keys.view(-1, steps, size)[:, :window].transpose(1, 2)
        self._values_out = self._values.view(-1, steps, size)[:, :window]

    def __call__(self, heads: Tensor, turns: Tensor) -> Tensor:
        """Attends over prompt and completion, the new token included.

        Args:
            heads: queries, keys and values of the new token, not yet turned, [P * M, (G + 2) * K, D].
            turns: the rotation at the positions of the rows, [P, M, 1, …].

        Returns:
            [P * M, K * G * D].
        """
        prompts, slots, keys, group, size = self._shape
        turning, value = torch.split(heads.view(prompts, slots, -1, size), [keys * group + keys, keys], dim=2)
        # Queries and keys are turned together: here an operation costs what its start costs.
        self._rotation.turn(turning, turns, self._rotation.seen(self._turned))
        query, key = torch.split(self._turned, [keys * group, keys], dim=2)
        self._query_in.copy_(query.view(prompts, slots, keys, group, size))
        self._keys.index_copy_(3, self._step, key.transpose(1, 2).unsqueeze(3))
        self._values.index_copy_(3, self._step, value.transpose(1, 2).unsqueeze(3))
        of_prompt = torch.baddbmm(self._hidden.prompt, self._query_by_prompt, self._cache.prompt_keys, alpha=self._scaling)
        of_own = torch.baddbmm(self._hidden.own, self._query_by_row, self._keys_out, alpha=self._scaling)
        # Below fp32 the softmax computes in fp32 and rounds at the end: one kernel, where asking for fp32 and rounding would be two.
        shares = torch.softmax(torch.cat([of_prompt.view(len(of_own), group, -1), of_own], dim=-1), dim=-1)
        width = of_prompt.shape[-1]
        attended = torch.bmm(shares.view(prompts * keys, slots * group, -1)[:, :, :width], self._cache.prompt_values)
        attended.view(len(of_own), group, size).baddbmm_(shares[:, :, width:], self._values_out)
        return attended.view(prompts, keys, slots, group, size).transpose(1, 2).reshape(prompts * slots, -1)
