"""One decode step of a Llama-shaped model, written out: the same mathematics as transformers' forward, with few and large operations.

A step of a small model spends most of its time between operations, not in them. Here projections are joined, what their input or output is
multiplied by in any case (weights of norms, the scaling of queries) is multiplied into them, rotations are looked up, and nothing is looked for
that cannot be there. It is for one new token a row after a batch of prompts, without gradients; `Decoder.knows` refuses whatever it does not
know (other architectures, windows, adapters, quantised or hooked modules), and the sampler then calls the model itself.
Invariant: logits equal those of the model's own forward (tested on every architecture of `KNOWN`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache

from swarmgame.trainer.grpo.attention import SharedPromptAttention
from swarmgame.trainer.grpo.cache import is_windowed
from swarmgame.trainer.grpo.rotation import Rotation

KNOWN = frozenset({"LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"})

FUSED_BELOW_BYTES = 1 << 28
"""Weights of larger models are not joined: their products are large enough as they are, and the copies would cost memory. Nor are those
below fp32: what is multiplied in beforehand would be rounded otherwise than the model rounds it."""

_STATIC_ROTATIONS = frozenset({"default", "linear", "llama3"})
"""Rotary embeddings that depend on the position alone, and not on how long the sequence has become."""


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
        # In fp32, rounded before the weight is applied, as transformers does it.
        rounded: Tensor = self._weight * F.rms_norm(x.float(), (x.shape[-1],), None, self._epsilon).to(x.dtype)
        return rounded


@dataclass(frozen=True)
class _Layer:
    """One layer's parts; `scaling` is None where queries come out of `qkv` or `query_norm` scaled."""

    first_norm: _Norm
    second_norm: _Norm
    qkv: _Joined
    output: nn.Linear
    query_norm: _Norm | None
    key_norm: _Norm | None
    gate_up: _Joined
    down: nn.Linear
    activation: Any
    scaling: float | None


class _Joined:
    """Several linear maps of one input as a single product."""

    def __init__(self, weights: list[Tensor], biases: list[Tensor | None]) -> None:
        self._parts = list(zip(weights, biases, strict=True))

    def joined(self, input_scale: Tensor) -> _Joined:
        """The same maps of an input that lacks this scale, as one matrix; made anew for each call of the sampler, because weights change in
        between."""
        weight = torch.cat([weight for weight, _ in self._parts]) * input_scale
        bias = None
        if any(bias is not None for _, bias in self._parts):
            bias = torch.cat([weight.new_zeros(len(weight)) if bias is None else bias for weight, bias in self._parts])
        return _Joined([weight], [bias])

    def __call__(self, x: Tensor) -> Tensor:
        products = [F.linear(x, weight, bias) for weight, bias in self._parts]
        return products[0] if len(products) == 1 else torch.cat(products, dim=-1)


class Decoder:
    """Decode steps of one model for all completions of a batch of prompts.

    The keys and values of a prompt are kept once, however many completions continue it, and are read once a step for all of them.

    Args:
        model: of a class in `KNOWN`.
        cache: filled by the model's own forward over the prompts, one row each.
        mask: which positions of the (left-padded) prompts are real [P, W], or None when all are.
        completions: of each prompt; rows are ordered by prompt.
        steps: how many tokens a completion may have.
        positions: how many positions there will be at most.
    """

    def __init__(self, model: Any, cache: Cache, mask: Tensor | None, completions: int, steps: int, positions: int) -> None:
        config, inner = model.config, model.model
        size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        fused = model.dtype == torch.float32 and size < FUSED_BELOW_BYTES
        self._embedding = inner.embed_tokens.weight
        self._layers = [_layer(layer, fused) for layer in inner.layers]
        head = _Joined([model.lm_head.weight], [model.lm_head.bias])
        self._norm = _Norm(inner.norm, weight=None if fused else inner.norm.weight)
        self._head = head.joined(inner.norm.weight) if fused else head
        self._head_dim = inner.layers[0].self_attn.head_dim
        self._queries, self._keys = config.num_attention_heads, config.num_key_value_heads
        every = torch.arange(positions, device=model.device).unsqueeze(0)
        cosine, sine = inner.rotary_emb(self._embedding[:1].unsqueeze(0), every)
        self._rotation = Rotation(cosine[0], sine[0], interleaved=fused)
        order = Rotation.order(self._head_dim) if fused else slice(None)
        self._attentions = [
            SharedPromptAttention(
                layer.keys[..., order], layer.values, mask, completions, steps, queries=self._queries, rotation=self._rotation
            )
            for layer in cache.layers
        ]

    @staticmethod
    def knows(model: Any) -> bool:
        """Whether there is nothing about the model that is not known here."""
        if type(model).__name__ not in KNOWN or is_windowed(model.config):
            return False
        rotation = getattr(model.config, "rope_parameters", None) or {}
        if rotation.get("rope_type", "default") not in _STATIC_ROTATIONS or model.config._attn_implementation not in ("sdpa", "eager"):
            return False
        if any(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__ for module in model.modules()):
            return False
        linears = [one for layer in model.model.layers for one in _linears(layer)]
        return all(type(one) is nn.Linear for one in [*linears, model.lm_head])

    def select(self, rows: Tensor) -> None:
        """Keeps these rows, in ascending order."""
        slots = self._attentions[0].slots_of(rows)
        for attention in self._attentions:
            attention.select(rows, slots)

    def __call__(self, token_B: Tensor, position_B: Tensor) -> Tensor:
        """Logits [B, V] after one more token a row: the one drawn last, and where it stands."""
        queries, keys, size = self._queries, self._keys, self._head_dim
        prompts, completions, row_of_slot = self._attentions[0].slots
        turns = self._rotation.at(position_B if row_of_slot is None else position_B[row_of_slot])
        turns = turns.view(prompts, completions, 1, *turns.shape[1:])
        hidden = F.embedding(token_B, self._embedding)
        for layer, attention in zip(self._layers, self._attentions, strict=True):
            heads = layer.qkv(layer.first_norm(hidden)).view(len(token_B), queries + 2 * keys, size)
            if layer.query_norm is not None and layer.key_norm is not None:
                query, key, value = torch.split(heads, [queries, keys, keys], dim=1)
                heads = torch.cat([layer.query_norm(query), layer.key_norm(key), value], dim=1)
            if layer.scaling is not None:
                heads[:, :queries].mul_(layer.scaling)
            hidden = _added(hidden, attention(heads, turns), layer.output)
            gate, up = layer.gate_up(layer.second_norm(hidden)).chunk(2, dim=-1)
            hidden = _added(hidden, layer.activation(gate).mul_(up), layer.down)
        return self._head(self._norm(hidden))


def _linears(layer: Any) -> list[Any]:
    attention, mlp = layer.self_attn, layer.mlp
    return [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj]


def _layer(layer: Any, fused: bool) -> _Layer:
    query, key, value, output, gate, up, down = _linears(layer)
    attention, first, second = layer.self_attn, layer.input_layernorm, layer.post_attention_layernorm
    weights, biases = [query.weight, key.weight, value.weight], [query.bias, key.bias, value.bias]
    norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    scales = [None if norm is None else norm.weight for norm in norms]
    if fused:
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
    qkv, gate_up = _Joined(weights, biases), _Joined([gate.weight, up.weight], [gate.bias, up.bias])
    query_norm, key_norm = (None if norm is None else _Norm(norm, weight=scale) for norm, scale in zip(norms, scales, strict=True))
    return _Layer(
        first_norm=_Norm(first, weight=None if fused else first.weight),
        second_norm=_Norm(second, weight=None if fused else second.weight),
        qkv=qkv.joined(first.weight) if fused else qkv,
        output=output,
        query_norm=query_norm,
        key_norm=key_norm,
        gate_up=gate_up.joined(second.weight) if fused else gate_up,
        down=down,
        activation=layer.mlp.act_fn,
        scaling=None if fused else attention.scaling,
    )


def _added(hidden: Tensor, x: Tensor, linear: Any) -> Tensor:
    """hidden + linear(x). In fp32 as one operation; below, rounded in between, as the model's own forward does it."""
    if hidden.dtype == torch.float32 and linear.bias is None:
        return torch.addmm(hidden, x, linear.weight.t())
    return hidden + F.linear(x, linear.weight, linear.bias)
