"""One forward pass of a Llama-shaped model for one token a row, without gradients: the mathematics of transformers'
forward, with few and large operations.

A decode step of a small model spends most of its time between operations. Here the projections of a layer are joined
(`projections.py`), and attention is given by the caller, one function a layer, so the decoder knows no caches. Four
kinds of layer share the loop (`layers.py`). Logits equal those of the model's own forward (tested for every
architecture of `architecture.SUPPORTED`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from swarmgame.inference import ops
from swarmgame.inference.architecture import describe
from swarmgame.inference.layers import FoldedNorm, Layer, folded_map, make_layer
from swarmgame.inference.projections import join_projections

Attention = Callable[[Tensor], Tensor]
"""Queries, keys and values of the new token, as `Layer.project` returns them → what was attended to [B, K * G * D]."""


class FusedLlamaDecoder:
    """One step of a model.

    Args:
        model: one that `is_supported`; its projections are joined in place (`join_projections`), unless they are
            folded.
        folded: multiply norms and scaling into copies of the weights, as they are now. Otherwise the model's own
            weights are read at each step.
        kernels: the module `kernels` or `ops`; None for PyTorch's operations, where q/k norms are applied by `project`
            instead of the attention.
    """

    def __init__(self, model: Any, *, folded: bool = False, kernels: ModuleType | None = None) -> None:
        architecture = describe(model)
        assert architecture is not None, f"{type(model).__name__} is not supported"
        inner = model.model
        self.architecture, self.folded = architecture, folded
        self.scaling = 1.0 if folded else architecture.scaling  # folded into the weights
        self._embedding: Tensor = inner.embed_tokens.weight
        self._embed = _scaled(partial(F.embedding, weight=self._embedding), architecture.multipliers.embedding)
        self._rotary = inner.rotary_emb
        if not folded:
            join_projections(model)
        self._layers: list[Layer] = [
            make_layer(layer, architecture, folded=folded, kernels=kernels) for layer in inner.layers
        ]
        scale, epsilon, head = inner.norm.weight, float(inner.norm.variance_epsilon), model.lm_head
        logits: Callable[[Tensor, Tensor | None], Tensor]
        if folded:
            norm, folded_head = FoldedNorm(inner.norm), folded_map([head.weight], [head.bias], scale)
            logits = lambda hidden, delta: folded_head(norm(hidden))  # noqa: E731
        else:
            add_rms_norm = (kernels or ops).add_rms_norm
            logits = lambda hidden, delta: F.linear(  # noqa: E731
                add_rms_norm(hidden, delta, scale, epsilon), head.weight, head.bias
            )
        self._logits = _scaled(logits, architecture.multipliers.logits)

    def rotary_tables(self, positions: int) -> Mapping[bool, tuple[Tensor, Tensor]]:
        """Cosines and sines [positions, D] in the model's type, by whether a layer rotates queries and keys: a layer
        that does not turns them by no angle.
        """
        every = torch.arange(positions, device=self._embedding.device).unsqueeze(0)
        cos, sin = (table[0].to(self._embedding) for table in self._rotary(self._embedding[:1].unsqueeze(0), every))
        tables = {True: (cos, sin), False: (torch.ones_like(cos), torch.zeros_like(sin))}
        return {rotates: tables[rotates] for rotates in set(self.architecture.rotary)}

    def __call__(self, token_B: Tensor, attentions: Sequence[Attention], last: Tensor | None = None) -> Tensor:
        """Logits [B, V] after one more token a row.

        Args:
            last: rows to return logits of [L], if not of all: of the tokens of several prompts, the last ones. Returns
                [L, V] then.
        """
        hidden, delta = self._embed(token_B), None
        for layer, attention in zip(self._layers, attentions, strict=True):
            hidden, delta = layer.finish(hidden, attention(layer.project(hidden, delta)))
        if last is not None:
            hidden, delta = hidden[last], None if delta is None else delta.index_select(-2, last)
        return self._logits(hidden, delta)


def _scaled(compute: Callable[..., Tensor], multiplier: float) -> Callable[..., Tensor]:
    """Return a function whose result is multiplied; the function itself where that changes nothing."""
    return compute if multiplier == 1.0 else lambda *given: compute(*given).mul_(multiplier)
