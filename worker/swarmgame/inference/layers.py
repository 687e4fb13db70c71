"""One decoder layer of a Llama-shaped model without its attention, in four kinds.

`FoldedLayer` is for small fp32 models on a CPU (what an input is multiplied by in any case is multiplied into the
weights once a call), `ModuleLayer` for anything else in PyTorch's own operations (adapters included), and `KernelLayer`
runs on the kernels of a CUDA device. `PostNormLayer` is OLMo 2's, for all of these. Shapes: B rows, H hidden size, K
key-value heads, G query heads per key-value head, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swarmgame.inference import ops
from swarmgame.inference.architecture import Architecture, linears_of
from swarmgame.inference.ops import rms_norm
from swarmgame.inference.projections import Map, joined_map, product_of
from swarmgame.inference.rope import RotaryEmbedding


class Layer(Protocol):
    """One decoder layer without its attention. The residual stream is `hidden` [B, H] plus `delta`, which the next
    norm adds; None is nothing.
    """

    def project(self, hidden: Tensor, delta: Tensor | None) -> Tensor:
        """Queries, keys and values [B, (G + 2) * K * D], or parts of them (`ops.split_linear`); adds `delta` to
        `hidden`, in place.
        """

    def finish(self, hidden: Tensor, attended: Tensor) -> tuple[Tensor, Tensor | None]:
        """The residual stream behind the output projection and the feed-forward part; may write into `hidden`."""


def make_layer(layer: Any, architecture: Architecture, *, folded: bool, kernels: ModuleType | None) -> Layer:
    """Return a layer for a layer of the model. For the arguments see `FusedLlamaDecoder`."""
    if architecture.norms_behind:
        return PostNormLayer(layer, architecture, kernels or ops)
    if folded:
        return FoldedLayer(layer, architecture)
    return ModuleLayer(layer, architecture) if kernels is None else KernelLayer(layer, architecture, kernels)


class KernelLayer:
    """A layer on the kernels of norm and activation, or on their definitions in `ops`; adapters' modules are called."""

    def __init__(self, layer: Any, architecture: Architecture, kernels: ModuleType) -> None:
        linears, multiplier = linears_of(layer), architecture.multipliers.residual
        self._kernels = kernels
        self._norms = [
            (norm.weight, float(norm.variance_epsilon))
            for norm in (layer.input_layernorm, layer.post_attention_layernorm)
        ]
        self._qkv, self._gate_up = joined_map(linears.qkv, kernels.split_linear), joined_map(linears.gate_up)
        self._output, self._down = (
            _split_product(linear, multiplier, kernels) for linear in (linears.output, linears.down)
        )

    def project(self, hidden: Tensor, delta: Tensor | None) -> Tensor:
        return self._qkv(self._kernels.add_rms_norm(hidden, delta, *self._norms[0]))

    def finish(self, hidden: Tensor, attended: Tensor) -> tuple[Tensor, Tensor | None]:
        normed = self._kernels.add_rms_norm(hidden, self._output(attended), *self._norms[1])
        return hidden, self._down(self._kernels.silu_mul(self._gate_up(normed)))


class ModuleLayer:
    """A layer in PyTorch's operations, on the model's own weights, adapters included."""

    def __init__(self, layer: Any, architecture: Architecture) -> None:
        linears, attention = linears_of(layer), layer.self_attn
        self._norms = [
            (norm.weight, float(norm.variance_epsilon))
            for norm in (layer.input_layernorm, layer.post_attention_layernorm)
        ]
        self._qkv, self._gate_up = joined_map(linears.qkv), joined_map(linears.gate_up)
        self._add_output, self._add_down = (
            _residual(linear, architecture.multipliers.residual) for linear in (linears.output, linears.down)
        )
        self._head_dim, self._split = architecture.head_dim, architecture.split
        norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        self._head_norms = [(norm.weight, float(norm.variance_epsilon)) for norm in norms if norm is not None]

    def project(self, hidden: Tensor, delta: Tensor | None) -> Tensor:
        qkv = self._qkv(rms_norm(hidden, *self._norms[0]))
        return _with_head_norms(
            qkv, self._split, self._head_dim, [partial(_norm_last, norm=norm) for norm in self._head_norms]
        )

    def finish(self, hidden: Tensor, attended: Tensor) -> tuple[Tensor, Tensor | None]:
        hidden = self._add_output(hidden, attended)
        gate, up = self._gate_up(rms_norm(hidden, *self._norms[1])).chunk(2, dim=-1)
        return self._add_down(hidden, F.silu(gate).mul_(up)), None


class FoldedLayer:
    """A layer whose norms' weights, the scaling of queries and the interleaved order of rotary pairs are multiplied
    into its projections (fp32).
    """

    def __init__(self, layer: Any, architecture: Architecture) -> None:
        linears = linears_of(layer)
        attention, first, second = layer.self_attn, layer.input_layernorm, layer.post_attention_layernorm
        self._norms = FoldedNorm(first), FoldedNorm(second)
        self._head_dim, self._split = architecture.head_dim, architecture.split
        self._add_output, self._add_down = (
            _residual(linear, architecture.multipliers.residual) for linear in (linears.output, linears.down)
        )
        weights = _parts([linear.weight for linear in linears.qkv], self._split)
        biases = _parts([linear.bias for linear in linears.qkv], self._split)
        order = RotaryEmbedding.interleave_permutation(self._head_dim).to(first.weight.device)
        self._head_norms: list[Map] = []
        for place, factor in enumerate((architecture.scaling, 1.0)):
            norm = getattr(attention, ("q_norm", "k_norm")[place], None)
            # A norm takes out what its input is scaled by, so there the factor goes into its own weight.
            weights[place], biases[place] = (
                part
                if part is None
                else part.unflatten(0, (-1, len(order)))[:, order].flatten(0, 1) * (factor if norm is None else 1.0)
                for part in (weights[place], biases[place])
            )
            if norm is not None:
                self._head_norms.append(FoldedNorm(norm, scale=norm.weight[order] * factor))
        self._qkv = folded_map(weights, biases, first.weight)
        self._gate_up = folded_map(
            [linear.weight for linear in linears.gate_up], [linear.bias for linear in linears.gate_up], second.weight
        )

    def project(self, hidden: Tensor, delta: Tensor | None) -> Tensor:
        return _with_head_norms(self._qkv(self._norms[0](hidden)), self._split, self._head_dim, self._head_norms)

    def finish(self, hidden: Tensor, attended: Tensor) -> tuple[Tensor, Tensor | None]:
        hidden = self._add_output(hidden, attended)
        gate, up = self._gate_up(self._norms[1](hidden)).chunk(2, dim=-1)
        return self._add_down(hidden, F.silu(gate).mul_(up)), None


class PostNormLayer:
    """A layer whose norms stand behind attention and feed-forward, and whose norms of queries and keys span all heads.
    It reads the model's own weights, and adapters' modules are called.
    """

    def __init__(self, layer: Any, architecture: Architecture, kernels: ModuleType) -> None:
        linears, attention = linears_of(layer), layer.self_attn
        self._kernels, self._split = kernels, architecture.split
        self._query_norm, self._key_norm, self._attention_norm, self._mlp_norm = (
            partial(kernels.add_rms_norm, delta=None, scale=norm.weight, epsilon=float(norm.variance_epsilon))
            for norm in (
                attention.q_norm,
                attention.k_norm,
                layer.post_attention_layernorm,
                layer.post_feedforward_layernorm,
            )
        )
        self._qkv, self._gate_up = joined_map(linears.qkv), joined_map(linears.gate_up)
        self._output, self._down = (partial(product_of, linear=linear) for linear in (linears.output, linears.down))

    def project(self, hidden: Tensor, delta: Tensor | None) -> Tensor:
        query, key, value = torch.split(self._qkv(hidden), self._split, dim=-1)
        # A kernel reads rows that lie one behind the other.
        return torch.cat([self._query_norm(query.contiguous()), self._key_norm(key.contiguous()), value], dim=-1)

    def finish(self, hidden: Tensor, attended: Tensor) -> tuple[Tensor, Tensor | None]:
        hidden = hidden + self._attention_norm(self._output(attended))
        changed = self._down(self._kernels.silu_mul(self._gate_up(hidden)))
        return hidden + self._mlp_norm(changed), None


class FoldedNorm:
    """RMSNorm in few operations (fp32); without a scale where that is multiplied into what comes next."""

    def __init__(self, norm: Any, *, scale: Tensor | None = None) -> None:
        self._scale = scale
        self._epsilons = torch.full((1, 1), float(norm.variance_epsilon), device=norm.weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        normed = x * torch.addcmul(self._epsilons, length, length, value=1.0 / x.shape[-1]).rsqrt_()
        return normed if self._scale is None else normed.mul_(self._scale)


def _norm_last(x: Tensor, norm: tuple[Tensor, float]) -> Tensor:
    return rms_norm(x, *norm)


def _with_head_norms(qkv: Tensor, split: list[int], head_dim: int, norms: Sequence[Map]) -> Tensor:
    """Apply the norms of queries and keys, where the architecture has them."""
    if not norms:
        return qkv
    query, key, value = torch.split(qkv, split, dim=-1)
    heads = [
        norm(part.view(len(part), -1, head_dim)).flatten(-2) for norm, part in zip(norms, (query, key), strict=True)
    ]
    return torch.cat([*heads, value], dim=-1)


def folded_map(weights: list[Tensor], biases: list[Tensor | None], input_scale: Tensor) -> Map:
    """Join linear layers, for an input that lacks this scale."""
    weight = torch.cat(weights) * input_scale
    bias = None
    if any(one is not None for one in biases):
        bias = torch.cat(
            [part.new_zeros(len(part)) if one is None else one for part, one in zip(weights, biases, strict=True)]
        )
    return partial(F.linear, weight=weight, bias=bias)


def _residual(linear: Any, multiplier: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Return hidden, x → hidden + multiplier * linear(x). In fp32 one operation; below, rounded in between, as the
    model's own forward does it.
    """
    has_bias = linear.bias is not None
    if type(linear) is nn.Linear and linear.weight.dtype == torch.float32 and not has_bias:
        return lambda hidden, x: torch.addmm(hidden, x, linear.weight.t(), alpha=multiplier)
    if multiplier == 1.0:
        return lambda hidden, x: hidden + product_of(x, linear)
    return lambda hidden, x: hidden + product_of(x, linear) * multiplier


def _split_product(linear: Any, multiplier: float, kernels: ModuleType) -> Map:
    """Return a product for the next norm, which adds up its parts but no bias; one with adapters as it is."""
    product: Map = partial(product_of, linear=linear)
    has_bias = linear.bias is not None
    if type(linear) is nn.Linear and not has_bias:
        product = lambda x: kernels.split_linear(x, linear.weight, None)  # noqa: E731 - the weight of the moment
    return product if multiplier == 1.0 else lambda x: product(x).mul_(multiplier)


def _parts(joined: Sequence[Any], split: list[int]) -> list[Any]:
    """Return the weights or biases of queries, keys and values, from three or from one of all."""
    if len(joined) == len(split):
        return list(joined)
    return [None] * len(split) if joined[0] is None else list(torch.split(joined[0], split))
