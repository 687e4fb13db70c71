"""The forward pass of a Llama-shaped model for one new token a row, written out: the same mathematics as transformers', with few and large
operations.

A step of a small model spends most of its time between operations, not in them. Here projections are joined, what their input or output is
multiplied by in any case (weights of norms, the scaling of queries) is multiplied into them, rotations are looked up, and nothing is looked for
that cannot be there. It is without gradients and knows no caches: attention is given by the caller, one a layer. `knows` refuses whatever is not
known here (other architectures, windows, quantised or hooked modules), and samplers then call the model itself.
Invariant: logits equal those of the model's own forward (tested on every architecture of `KNOWN`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swarmgame.inference.cache import is_windowed
from swarmgame.inference.rope import Rotation

KNOWN = frozenset({"LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"})

FUSED_BELOW_BYTES = 1 << 28
"""Weights of larger models are not joined: their products are large enough as they are, and the copies would cost memory. Nor are those
below fp32: what is multiplied in beforehand would be rounded otherwise than the model rounds it."""

_STATIC_ROTATIONS = frozenset({"default", "linear", "llama3"})
"""Rotary embeddings that depend on the position alone, and not on how long the sequence has become."""

Map = Callable[[Tensor], Tensor]
Maps = Callable[[Tensor], Sequence[Tensor]]
Attention = Callable[[Tensor, Tensor], Tensor]
"""Queries, keys and values of the new token [B, (G + 2) * K, D] and the turns of its positions → what was attended to [B, K * G * D]. Queries
are still to be multiplied by `Forward.scaling`."""


def knows(model: Any) -> bool:
    """Whether there is nothing about the model that is not known here."""
    if type(model).__name__ not in KNOWN or is_windowed(model.config):
        return False
    rotation = getattr(model.config, "rope_parameters", None) or {}
    if rotation.get("rope_type", "default") not in _STATIC_ROTATIONS or model.config._attn_implementation not in ("sdpa", "eager"):
        return False
    if any(_is_hooked(module) for module in model.modules()):
        return False
    if type(model.model.embed_tokens) is not nn.Embedding or type(model.lm_head) is not nn.Linear:
        return False
    return all(type(one) is nn.Linear or _is_adapted(one) for layer in model.model.layers for one in _linears(layer))


def _is_hooked(module: Any) -> bool:
    """Whether a module does anything beside its forward. The hook of checkpointed adapters does not count: it is about gradients alone."""
    hooks = [hook for hook in module._forward_hooks.values() if getattr(hook, "__name__", "") != "make_inputs_require_grads"]
    return bool(hooks or module._forward_pre_hooks or "forward" in module.__dict__)


def is_fusible(model: Any) -> bool:
    """Whether its weights may be joined: small, in fp32, and without adapters."""
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    plain = all(type(one) is nn.Linear for layer in model.model.layers for one in _linears(layer))
    return bool(plain and model.dtype == torch.float32 and size < FUSED_BELOW_BYTES)


class Forward:
    """One step of a model.

    Args:
        model: one that `knows` says yes to.
        fused: join its weights; what is joined is a copy, of the weights as they are now. Otherwise the model's own are read at each step.
    """

    def __init__(self, model: Any, *, fused: bool) -> None:
        config, inner = model.config, model.model
        self.fused = fused
        self.queries, self.keys = int(config.num_attention_heads), int(config.num_key_value_heads)
        self.head_dim = int(inner.layers[0].self_attn.head_dim)
        self.scaling = 1.0 if fused else float(inner.layers[0].self_attn.scaling)  # multiplied into the joined weights
        self._embedding: Tensor = inner.embed_tokens.weight
        self._rotary = inner.rotary_emb
        self._layers = [_layer(layer, fused) for layer in inner.layers]
        self._norm = _Norm(inner.norm, weight=None if fused else inner.norm.weight)
        self._head: Map = _joined([model.lm_head.weight], [model.lm_head.bias], inner.norm.weight) if fused else _map(model.lm_head)

    def rotation(self, positions: int) -> Rotation:
        """The turns of that many positions, in the order in which queries and keys come out of the projections."""
        every = torch.arange(positions, device=self._embedding.device).unsqueeze(0)
        cosine, sine = self._rotary(self._embedding[:1].unsqueeze(0), every)
        return Rotation(cosine[0], sine[0], interleaved=self.fused)

    def __call__(self, token_B: Tensor, turns: Tensor, attentions: Sequence[Attention]) -> Tensor:
        """Logits [B, V] after one more token a row."""
        queries, keys = self.queries, self.keys
        hidden = F.embedding(token_B, self._embedding)
        for layer, attention in zip(self._layers, attentions, strict=True):
            heads = layer.qkv(layer.first_norm(hidden)).view(len(token_B), queries + 2 * keys, self.head_dim)
            if layer.query_norm is not None and layer.key_norm is not None:
                query, key, value = torch.split(heads, [queries, keys, keys], dim=1)
                heads = torch.cat([layer.query_norm(query), layer.key_norm(key), value], dim=1)
            hidden = _added(hidden, attention(heads, turns), layer.output)
            gate, up = layer.gate_up(layer.second_norm(hidden))
            hidden = _added(hidden, layer.activation(gate).mul_(up), layer.down)
        return self._head(self._norm(hidden))


class _Norm:
    """RMSNorm; without a weight where that is multiplied into whatever comes next (fp32 only)."""

    def __init__(self, norm: Any, *, weight: Tensor | None) -> None:
        self._weight, self._epsilon = weight, float(norm.variance_epsilon)
        self._epsilons = torch.full((1, 1), self._epsilon, device=norm.weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        if self._weight is None:
            length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            return x * torch.addcmul(self._epsilons, length, length, value=1.0 / x.shape[-1]).rsqrt_()
        if x.dtype == torch.float32:
            return F.rms_norm(x, (x.shape[-1],), self._weight, self._epsilon)
        # Computed in fp32 and rounded before the weight is applied, as transformers does it.
        return self._weight * F.rms_norm(x, (x.shape[-1],), None, self._epsilon)


@dataclass(frozen=True)
class _Layer:
    """One layer's parts."""

    first_norm: _Norm
    second_norm: _Norm
    qkv: Map
    output: Any
    query_norm: _Norm | None
    key_norm: _Norm | None
    gate_up: Maps
    down: Any
    activation: Any


def _linears(layer: Any) -> list[Any]:
    attention, mlp = layer.self_attn, layer.mlp
    return [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj]


def _is_adapted(linear: Any) -> bool:
    """Whether it is a linear layer with peft's adapters, which is called as it is. By name: peft takes a second to import."""
    return type(linear).__module__.startswith("peft.tuners.") and type(getattr(linear, "base_layer", None)) is nn.Linear


def _layer(layer: Any, fused: bool) -> _Layer:
    query, key, value, output, gate, up, down = _linears(layer)
    attention, first, second = layer.self_attn, layer.input_layernorm, layer.post_attention_layernorm
    norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    scales = [None if norm is None else norm.weight for norm in norms]
    if fused:
        weights, biases = [query.weight, key.weight, value.weight], [query.bias, key.bias, value.bias]
        order = Rotation.order(attention.head_dim).to(query.weight.device)
        for place, factor in enumerate((attention.scaling, 1.0)):
            # A norm takes out what its input is scaled by, so there the factor is put into its own weight.
            weights[place], biases[place] = (
                part
                if part is None
                else part.unflatten(0, (-1, len(order)))[:, order].flatten(0, 1) * (factor if norms[place] is None else 1.0)
                for part in (weights[place], biases[place])
            )
            scale = scales[place]
            scales[place] = None if scale is None else scale[order] * factor
        qkv = _joined(weights, biases, first.weight)
        gate_up = _halves(_joined([gate.weight, up.weight], [gate.bias, up.bias], second.weight))
    else:
        qkv, gate_up = _beside(query, key, value), _apart(gate, up)
    query_norm, key_norm = (None if norm is None else _Norm(norm, weight=scale) for norm, scale in zip(norms, scales, strict=True))
    return _Layer(
        first_norm=_Norm(first, weight=None if fused else first.weight),
        second_norm=_Norm(second, weight=None if fused else second.weight),
        qkv=qkv,
        output=output,
        query_norm=query_norm,
        key_norm=key_norm,
        gate_up=gate_up,
        down=down,
        activation=layer.mlp.act_fn,
    )


def _map(linear: Any) -> Map:
    """A linear layer without what a module does around its product; one with adapters as it is."""
    map: Map = partial(F.linear, weight=linear.weight, bias=linear.bias) if type(linear) is nn.Linear else linear
    return map


def _apart(*linears: Any) -> Maps:
    """Several linear maps of one input."""
    maps = [_map(linear) for linear in linears]
    return lambda x: [one(x) for one in maps]


def _beside(*linears: Any) -> Map:
    """The same, side by side."""
    apart = _apart(*linears)
    return lambda x: torch.cat(list(apart(x)), dim=-1)


def _halves(both: Map) -> Maps:
    """Two maps of one input that were joined, apart again."""
    return lambda x: both(x).chunk(2, dim=-1)


def _joined(weights: list[Tensor], biases: list[Tensor | None], input_scale: Tensor) -> Map:
    """The same as one matrix, of an input that lacks this scale."""
    weight = torch.cat(weights) * input_scale
    bias = None
    if any(bias is not None for bias in biases):
        bias = torch.cat([part.new_zeros(len(part)) if one is None else one for part, one in zip(weights, biases, strict=True)])
    return partial(F.linear, weight=weight, bias=bias)


def _added(hidden: Tensor, x: Tensor, linear: Any) -> Tensor:
    """hidden + linear(x). In fp32 as one operation; below, rounded in between, as the model's own forward does it."""
    plain = type(linear) is nn.Linear
    if plain and hidden.dtype == torch.float32 and linear.bias is None:
        return torch.addmm(hidden, x, linear.weight.t())
    return hidden + _map(linear)(x)
