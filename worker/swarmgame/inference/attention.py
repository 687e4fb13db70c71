"""Attention of many completions over one prompt, with the prompt's keys and values kept and read once.

All completions of a prompt are queries of a single matrix product over its keys; each completion's own tokens are a
second, small one; one softmax spans both. Eight completions of a long prompt so need an eighth of the memory, and of
the memory traffic, of a repeated cache. Queries are rotated straight into the order in which they are read, keys
straight into the cache: for a small model moving numbers costs as much as multiplying them. The result equals
attention over the concatenation, to rounding. Shapes: P prompts, M completions a prompt at most (slots), B rows
(completions, ordered by prompt), K key heads, G query heads a key head, D head size, W prompt width, L tokens so far.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from swarmgame.inference.rope import RotaryEmbedding


@dataclass(frozen=True)
class Slots:
    """Where rows stand once some have left: prompts keep rectangles of M slots, which not all are taken.

    Args:
        prompts: those that still have rows, among the former ones.
        prompt_of_row: for each row left, its place among `prompts`.
        size: M.
        row_of_slot: [P * M]; a slot that is not taken holds any row.
        slot_of_row: [B].
    """

    prompts: Tensor
    prompt_of_row: Tensor
    size: int
    row_of_slot: Tensor
    slot_of_row: Tensor


class SharedPromptAttention:
    """One layer's attention for one batch of prompts.

    Args:
        keys, values: of the prompts, [P, K, W, D]; keys rotated, in the order of `rope`.
        mask: which prompt positions are real [P, W], or None when all are.
        completions: rows a prompt at first.
        steps: tokens a row may have.
        num_heads: query heads, K * G.
        rope: rotates queries and keys to their positions.
        scaling: of queries; 1 where they come scaled.
    """

    def __init__(
        self,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None,
        completions: int,
        steps: int,
        *,
        num_heads: int,
        rope: RotaryEmbedding,
        scaling: float,
    ) -> None:
        prompts, heads, width, size = keys.shape
        self._num_heads, self._rope, self._scaling = num_heads, rope, scaling
        self._prompt_keys = keys.transpose(2, 3).reshape(prompts * heads, size, width)
        self._prompt_values = values.reshape(prompts * heads, width, size)
        self._hidden: Tensor | None = None
        if mask is not None:
            hidden = torch.zeros(mask.shape, dtype=keys.dtype, device=keys.device).masked_fill_(~mask, -torch.inf)
            self._hidden = hidden.repeat_interleave(heads, dim=0).unsqueeze(1)
        self._slots: Slots | None = None
        self._prompt_of_row = torch.arange(prompts, device=keys.device).repeat_interleave(completions)
        self._width, self._length = width, 0
        self._lay_out(
            keys.new_empty(prompts, heads, completions, steps, size),
            keys.new_empty(prompts, heads, completions, steps, size),
        )

    def _lay_out(self, own_keys: Tensor, own_values: Tensor) -> None:
        """Takes caches [P, K, M, steps, D], and keeps the views of them that every step needs."""
        self._own_keys, self._own_values = own_keys, own_values
        prompts, heads, completions, steps, size = own_keys.shape
        self._shape = prompts, completions, heads, self._num_heads // heads, size
        query = own_keys.new_empty(prompts, heads, completions, self._num_heads // heads, size)
        self._query_by_prompt = query.view(prompts * heads, -1, size)
        self._query_by_row = query.view(prompts * heads * completions, -1, size)
        self._query_in = self._rope.pairs(query.transpose(1, 2))
        self._keys_in = self._rope.pairs(own_keys.transpose(1, 2))
        self._values_in = own_values.transpose(1, 2)
        self._keys_out = own_keys.view(prompts * heads * completions, steps, size).transpose(1, 2)
        self._values_out = own_values.view(prompts * heads * completions, steps, size)

    @property
    def slots(self) -> tuple[int, int, Tensor | None]:
        """P, M, and the row of each slot where rows have left."""
        return self._shape[0], self._shape[1], None if self._slots is None else self._slots.row_of_slot

    def slots_of(self, rows: Tensor) -> Slots:
        """The slots after `select(rows)`, to be shared by all layers."""
        prompts, prompt_of_row, counts = torch.unique_consecutive(
            self._prompt_of_row[rows], return_inverse=True, return_counts=True
        )
        size = int(counts.max())
        starts = counts.cumsum(0) - counts
        slot_of_row = prompt_of_row * size + torch.arange(len(rows), device=rows.device) - starts[prompt_of_row]
        row_of_slot = torch.zeros(len(prompts) * size, dtype=torch.long, device=rows.device)
        row_of_slot[slot_of_row] = torch.arange(len(rows), device=rows.device)
        return Slots(prompts, prompt_of_row, size, row_of_slot, slot_of_row)

    def select(self, rows: Tensor, slots: Slots) -> None:
        """Keeps these rows, and the prompts that still have any."""
        _, heads, completions, steps, size = self._own_keys.shape
        if len(slots.prompts) < len(self._own_keys):
            kept = (slots.prompts.unsqueeze(1) * heads + torch.arange(heads, device=rows.device)).view(-1)
            self._prompt_keys, self._prompt_values = self._prompt_keys[kept], self._prompt_values[kept]
            self._hidden = None if self._hidden is None else self._hidden[kept]
        former = rows if self._slots is None else self._slots.slot_of_row[rows]
        former = former[slots.row_of_slot]
        prompt, place = former // completions, former % completions

        def moved(own: Tensor) -> Tensor:
            new = own.new_empty(len(slots.prompts), heads, slots.size, steps, size)
            found = own[:, :, :, : self._length][prompt, :, place]
            new[:, :, :, : self._length] = found.view(
                len(slots.prompts), slots.size, heads, self._length, size
            ).transpose(1, 2)
            return new

        self._prompt_of_row, self._slots = slots.prompt_of_row, slots
        self._lay_out(moved(self._own_keys), moved(self._own_values))

    def __call__(self, qkv: Tensor, cos_sin: Tensor) -> Tensor:
        """Attends over prompt and completion, the new token included.

        Args:
            qkv: queries, keys and values of the new token, not yet rotated, [B, (G + 2) * K * D].
            cos_sin: the rotations at the positions of the slots, [P, M, 1, …].

        Returns:
            [B, K * G * D].
        """
        place, self._length = self._length, self._length + 1
        if self._slots is not None:
            qkv = qkv.index_select(0, self._slots.row_of_slot)
        prompts, completions, keys, group, size = self._shape
        query, key, value = torch.split(qkv.view(prompts, completions, -1, size), [keys * group, keys, keys], dim=2)
        self._rope.apply(query.view(prompts, completions, keys, group, size), cos_sin.unsqueeze(2), self._query_in)
        self._rope.apply(key, cos_sin, self._keys_in[:, :, :, place])
        self._values_in[:, :, :, place] = value
        if self._scaling != 1.0:
            self._query_by_row.mul_(self._scaling)
        if self._hidden is None:
            of_prompt = torch.bmm(self._query_by_prompt, self._prompt_keys)
        else:
            of_prompt = torch.baddbmm(self._hidden, self._query_by_prompt, self._prompt_keys)
        of_own = torch.bmm(self._query_by_row, self._keys_out[:, :, : self._length])
        scores = torch.cat([of_prompt.view(len(of_own), group, -1), of_own], dim=-1)
        shares = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
        attended = torch.bmm(
            shares.view(prompts * keys, completions * group, -1)[:, :, : self._width], self._prompt_values
        )
        attended.view(len(of_own), group, size).baddbmm_(
            shares[:, :, self._width :], self._values_out[:, : self._length]
        )
        rows = attended.view(prompts, keys, completions, group, size).transpose(1, 2).reshape(prompts * completions, -1)
        return rows if self._slots is None else rows.index_select(0, self._slots.slot_of_row)
