"""Decode steps for all completions of a batch of prompts in PyTorch's operations, rows leaving as they finish: the
decoder of a CPU.

The keys and values of a prompt are kept once for all its completions, and are read once a step. A decoder serves one
call of the sampler, with the weights of the moment it is made. `engine.py` is its counterpart on a CUDA device, with
fixed shapes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache

from swarmgame.inference.attention import SharedPromptAttention
from swarmgame.inference.llama import FusedLlamaDecoder, is_foldable
from swarmgame.inference.rope import RotaryEmbedding


class SharedPromptDecoder:
    """Decode steps of one model after one batch of prompts.

    Args:
        model: one that `llama.is_supported`.
        cache: filled by the model's own forward over the prompts, one row each.
        mask: which positions of the (left-padded) prompts are real [P, W], or None when all are.
        samples_per_prompt: rows of each prompt; rows are ordered by prompt.
        steps: how many tokens a completion may have.
        positions: how many positions there will be at most.
    """

    def __init__(
        self, model: Any, cache: Cache, mask: Tensor | None, samples_per_prompt: int, steps: int, positions: int
    ) -> None:
        self._decoder = FusedLlamaDecoder(model, folded=is_foldable(model))
        self._rope = RotaryEmbedding(*self._decoder.rotary_tables(positions), interleaved=self._decoder.folded)
        order = RotaryEmbedding.interleave_permutation(self._decoder.head_dim) if self._decoder.folded else slice(None)
        self._attentions = [
            SharedPromptAttention(
                layer.keys[..., order],
                layer.values,
                mask,
                samples_per_prompt,
                steps,
                num_heads=self._decoder.num_heads,
                rope=self._rope,
                scaling=self._decoder.scaling,
            )
            for layer in cache.layers
        ]

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in ascending order."""
        slots = self._attentions[0].slots_of(rows)
        for attention in self._attentions:
            attention.select(rows, slots)

    def __call__(self, token_B: Tensor, position_B: Tensor) -> Tensor:
        """Logits [B, V] after one more token a row: the one sampled last, and its position."""
        prompts, samples, row_of_slot = self._attentions[0].slots
        cos_sin = self._rope.cos_sin(position_B if row_of_slot is None else position_B[row_of_slot])
        cos_sin = cos_sin.view(prompts, samples, 1, *cos_sin.shape[1:])
        return self._decoder(token_B, [partial(attention, cos_sin=cos_sin) for attention in self._attentions])
