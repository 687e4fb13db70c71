"""Decode steps of a written-out model for all completions of a batch of prompts, rows leaving as they finish.

The keys and values of a prompt are kept once, however many completions continue it, and are read once a step for all of them. For one call of the
sampler: the weights are those of the moment it is made. Not for graphs, whose shapes stay (`static_decoder.py`).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache

from swarmgame.inference.attention import SharedPromptAttention
from swarmgame.inference.llama import Forward, is_fusible
from swarmgame.inference.rope import Rotation


class Decoder:
    """Decode steps of one model after one batch of prompts.

    Args:
        model: one that `forward.knows`.
        cache: filled by the model's own forward over the prompts, one row each.
        mask: which positions of the (left-padded) prompts are real [P, W], or None when all are.
        completions: of each prompt; rows are ordered by prompt.
        steps: how many tokens a completion may have.
        positions: how many positions there will be at most.
    """

    def __init__(self, model: Any, cache: Cache, mask: Tensor | None, completions: int, steps: int, positions: int) -> None:
        self._forward = Forward(model, fused=is_fusible(model))
        self._rotation = self._forward.rotation(positions)
        order = Rotation.order(self._forward.head_dim) if self._forward.fused else slice(None)
        self._attentions = [
            SharedPromptAttention(
                layer.keys[..., order],
                layer.values,
                mask,
                completions,
                steps,
                queries=self._forward.queries,
                rotation=self._rotation,
                scaling=self._forward.scaling,
            )
            for layer in cache.layers
        ]

    def select(self, rows: Tensor) -> None:
        """Keeps these rows, in ascending order."""
        slots = self._attentions[0].slots_of(rows)
        for attention in self._attentions:
            attention.select(rows, slots)

    def __call__(self, token_B: Tensor, position_B: Tensor) -> Tensor:
        """Logits [B, V] after one more token a row: the one drawn last, and where it stands."""
        prompts, completions, row_of_slot = self._attentions[0].slots
        turns = self._rotation.at(position_B if row_of_slot is None else position_B[row_of_slot])
        return self._forward(token_B, turns.view(prompts, completions, 1, *turns.shape[1:]), self._attentions)
