"""Ways to take decode steps with a model's own forward, and their order: from the quickest to the one that is right
for every causal model.

A way that does not give an architecture's numbers is left out when the model is loaded (`trainer.grpo.parity`), and the
next one is tried. Shapes: B rows, W width of the prompts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Protocol

import torch
from torch import Tensor

from swarmgame.inference.arguments import Arguments
from swarmgame.inference.cache import is_windowed, repeat_rows, select_rows
from swarmgame.inference.prefill import Prefilled
from swarmgame.inference.scored_logits import scored_logits

RECOMPUTED_TOKENS = 8192
"""Tokens that are read at once where each step reads all of them."""


class Decoding(IntEnum):
    """How the steps of a sampler are taken. Each is slower than the one before, and assumes less of the model."""

    FUSED = 0
    """Written out for Llama-shaped models (`architecture.is_supported`)."""
    CACHED = 1
    """The model's forward, its cache, and one mask of four dimensions made for all steps."""
    PLAIN_MASK = 2
    """The same with a mask of two dimensions, of which the model makes its own."""
    UNPADDED = 3
    """The same for prompts of one length at a time, so that there is no padding and no mask."""
    RECOMPUTED = 4
    """Without a cache: each step reads prompts and completions again."""


class Decoder(Protocol):
    """Decode steps after one batch of prompts."""

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in ascending order."""

    def __call__(self, token_B: Tensor, position_B: Tensor) -> Tensor:
        """Return logits [B, V] after one more token a row: the one sampled last, and its position."""


class CachedDecoder:
    """Steps with the model's own forward and its cache.

    Args:
        read: the prompts, one row each; its cache is repeated for the samples.
        samples_per_prompt: rows of each prompt; rows are ordered by prompt.
        steps: how many tokens a completion may have.
        plain_mask: give the model a mask of two dimensions.
    """

    def __init__(
        self, model: Any, read: Prefilled, samples_per_prompt: int, steps: int, *, plain_mask: bool = False
    ) -> None:
        self._model, self._cache, self._arguments = model, read.cache, read.arguments
        repeat_rows(self._cache, samples_per_prompt)
        self._mask: Tensor | None = None
        self._width = 0
        if read.mask is not None and not read.arguments.is_recurrent:
            self._width = read.mask.shape[1]
            rows = read.mask.repeat_interleave(samples_per_prompt, dim=0)
            self._mask = torch.cat([rows, rows.new_ones(len(rows), steps)], dim=1).long()
            # transformers takes a mask of four dimensions as it is, which saves building one from two dimensions at
            # every step; models with windows, biases of positions or other kernels still get two.
            if not plain_mask and takes_complete_mask(model):
                lowest = torch.finfo(model.dtype).min
                complete = torch.zeros(self._mask.shape, dtype=model.dtype, device=rows.device)
                self._mask = complete.masked_fill(self._mask == 0, lowest)[:, None, None, :]

    def select(self, rows: Tensor) -> None:
        select_rows(self._cache, rows)
        if self._mask is not None:
            self._mask = self._mask[rows]

    def __call__(self, token_B: Tensor, position_B: Tensor) -> Tensor:
        self._width += 1
        outputs = self._model(
            input_ids=token_B.unsqueeze(1),
            **self._arguments.cached(
                mask=None if self._mask is None else self._mask[..., : self._width],
                positions=position_B.unsqueeze(1),
                cache=self._cache,
            ),
        )
        logits: Tensor = outputs.logits[:, -1]
        return logits


class RecomputingDecoder:
    """Steps that read all tokens again: right for every causal model, and slow for long completions.

    Rows are padded on the right, where nothing that is scored attends to it.
    """

    def __init__(
        self, model: Any, prompts: Sequence[Sequence[int]], samples_per_prompt: int, steps: int, pad_token_id: int
    ) -> None:
        self._model = model
        self._arguments = Arguments(model).uncached()
        width = max(map(len, prompts)) + steps
        padded = [[*prompt, *[pad_token_id] * (width - len(prompt))] for prompt in prompts]
        self._ids = torch.tensor(padded, device=model.device)
        self._lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
        self.first_logits = self._read()
        """Logits [P, V] of the first token of each prompt."""
        self._ids = self._ids.repeat_interleave(samples_per_prompt, dim=0)
        self._lengths = self._lengths.repeat_interleave(samples_per_prompt)

    def select(self, rows: Tensor) -> None:
        self._ids, self._lengths = self._ids[rows], self._lengths[rows]

    def __call__(self, token_B: Tensor, position_B: Tensor) -> Tensor:
        self._ids[torch.arange(len(token_B), device=token_B.device), self._lengths] = token_B
        self._lengths = self._lengths + 1
        return self._read()

    def _read(self) -> Tensor:
        width = int(self._lengths.max())
        rows = max(1, RECOMPUTED_TOKENS // width)
        logits = []
        for ids, lengths in zip(torch.split(self._ids, rows), torch.split(self._lengths, rows), strict=True):
            row = torch.arange(len(ids), device=ids.device)
            logits.append(scored_logits(self._model, row, lengths - 1, input_ids=ids[:, :width], **self._arguments))
        return torch.cat(logits)


def takes_complete_mask(model: Any) -> bool:
    """Return whether the model's attention takes a mask of four dimensions, and computes nothing else from a mask."""
    text = model.config.get_text_config()
    has_alibi = getattr(text, "alibi", False) or getattr(text, "model_type", "") == "bloom"
    return not is_windowed(model.config) and not has_alibi and text._attn_implementation in ("sdpa", "eager")
