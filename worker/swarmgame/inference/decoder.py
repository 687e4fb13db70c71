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

from swarmgame.inference.architecture import is_foldable
from swarmgame.inference.attention import SharedPromptAttention
from swarmgame.inference.llama import FusedLlamaDecoder
from swarmgame.inference.rope import RotaryEmbedding


class SharedPromptDecoder:
    """Decode steps of one model after one batch of prompts.

    Args:
        model: one that `architecture.is_supported`.
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
        architecture = self._decoder.architecture
        self._ropes = {
            rotates: RotaryEmbedding(*cos_sin, interleaved=self._decoder.folded)
            for rotates, cos_sin in self._decoder.rotary_tables(positions).items()
        }
        order = RotaryEmbedding.interleave_permutation(architecture.head_dim) if self._decoder.folded else slice(None)
        self._attentions = [
            SharedPromptAttention(
                layer.keys[..., order],
                layer.values,
                mask,
                samples_per_prompt,
                steps,
                num_heads=architecture.num_heads,
                rope=self._ropes[rotates],
                scaling=self._decoder.scaling,
            )
            for layer, rotates in zip(cache.layers, architecture.rotary, strict=True)
        ]

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in ascending order."""
        slots = self._attentions[0].slots_of(rows)
        for attention in self._attentions:
            attention.select(rows, slots)

    def __call__(self, token_B: Tensor, position_B: Tensor) -> Tensor:
        """Logits [B, V] after one more token a row: the one sampled last, and its position."""
        prompts, samples, row_of_slot = self._attentions[0].slots
        position_S = position_B if row_of_slot is None else position_B[row_of_slot]
        cos_sin = {}
        for rotates, rope in self._ropes.items():
            turns_S = rope.cos_sin(position_S)
            cos_sin[rotates] = turns_S.view(prompts, samples, 1, *turns_S.shape[1:])
        rotary = self._decoder.architecture.rotary
        return self._decoder(
            token_B,
            [
                partial(attention, cos_sin=cos_sin[rotates])
                for attention, rotates in zip(self._attentions, rotary, strict=True)
            ],
        )
