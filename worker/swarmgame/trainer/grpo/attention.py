"""Attention of many completions over one prompt, with the prompt's keys and values kept and read once.

All completions of a prompt are queries of a single matrix product over its keys; each completion's own tokens are a second, small one; one
softmax spans both. Eight completions of a long prompt so need an eighth of the memory, and of the memory traffic, of a repeated cache.
Invariant: equal to attention over the concatenation, to rounding. Shapes: P prompts, B rows (completions, ordered by prompt), K key heads,
G query heads a key head, D head size, W prompt width, M completions a prompt at most (slots).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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
        keys, values: of the prompts, [P, K, W, D].
        mask: which prompt positions are real [P, W], or None when all are.
        completions: rows a prompt at first.
        steps: tokens a row may have.
    """

    def __init__(self, keys: Tensor, values: Tensor, mask: Tensor | None, completions: int, steps: int) -> None:
        prompts, heads, width, size = keys.shape
        self._prompt_keys = keys.transpose(2, 3).contiguous()
        self._prompt_values = values.contiguous()
        self._hidden: Tensor | None = None
        if mask is not None:
            self._hidden = torch.zeros(mask.shape, dtype=keys.dtype, device=keys.device).masked_fill_(~mask, -torch.inf)[:, None, None]
        self._own_keys = keys.new_empty(prompts * completions, heads, steps, size)
        self._own_values = keys.new_empty(prompts * completions, heads, steps, size)
        self._slots: Slots | None = None
        self._size = completions
        self._prompt_of_row = torch.arange(prompts, device=keys.device).repeat_interleave(completions)
        self._width, self._length = width, 0

    def slots_of(self, rows: Tensor) -> Slots:
        """The slots after `select(rows)`, to be shared by all layers."""
        prompts, prompt_of_row, counts = torch.unique_consecutive(self._prompt_of_row[rows], return_inverse=True, return_counts=True)
        size = int(counts.max())
        starts = counts.cumsum(0) - counts
        slot_of_row = prompt_of_row * size + torch.arange(len(rows), device=rows.device) - starts[prompt_of_row]
        row_of_slot = torch.zeros(len(prompts) * size, dtype=torch.long, device=rows.device)
        row_of_slot[slot_of_row] = torch.arange(len(rows), device=rows.device)
        return Slots(prompts, prompt_of_row, size, row_of_slot, slot_of_row)

    def select(self, rows: Tensor, slots: Slots) -> None:
        """Keeps these rows, and the prompts that still have any."""
        self._own_keys, self._own_values = self._own_keys[rows], self._own_values[rows]
        if len(slots.prompts) < len(self._prompt_keys):
            self._prompt_keys, self._prompt_values = self._prompt_keys[slots.prompts], self._prompt_values[slots.prompts]
            self._hidden = None if self._hidden is None else self._hidden[slots.prompts]
        self._prompt_of_row, self._size = slots.prompt_of_row, slots.size
        self._slots = slots

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attends over prompt and completion, the new token included.

        Args:
            query: scaled, [B, K, G, D].
            key, value: of the new token, [B, K, D].

        Returns:
            [B, K, G, D].
        """
        place, self._length = self._length, self._length + 1
        self._own_keys[:, :, place], self._own_values[:, :, place] = key, value
        of_prompt = torch.matmul(self._by_prompt(query), self._prompt_keys)
        if self._hidden is not None:
            of_prompt = of_prompt + self._hidden
        of_own = torch.matmul(query, self._own_keys[:, :, : self._length].transpose(2, 3))
        scores = torch.cat([self._by_row(of_prompt), of_own], dim=-1)
        shares = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
        from_prompt = self._by_row(torch.matmul(self._by_prompt(shares[..., : self._width]), self._prompt_values))
        return from_prompt + torch.matmul(shares[..., self._width :], self._own_values[:, :, : self._length])

    def _by_prompt(self, rows: Tensor) -> Tensor:
        """[B, K, G, X] → [P, K, M · G, X]."""
        if self._slots is not None:
            rows = rows[self._slots.row_of_slot]
        _, heads, group, last = rows.shape
        return rows.view(-1, self._size, heads, group, last).transpose(1, 2).reshape(-1, heads, self._size * group, last)

    def _by_row(self, prompts: Tensor) -> Tensor:
        """[P, K, M · G, X] → [B, K, G, X]."""
        count, heads, _, last = prompts.shape
        rows = prompts.view(count, heads, self._size, -1, last).transpose(1, 2).reshape(count * self._size, heads, -1, last)
        return rows if self._slots is None else rows[self._slots.slot_of_row]
