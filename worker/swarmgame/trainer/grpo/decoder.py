"""One decode step of a Llama-shaped model, written out: the same mathematics as transformers' forward, with few and large operations.

A step of a small model spends most of its time between operations, not in them. Here projections are joined, rotations looked up, and nothing is
looked for that cannot be there. It is for one new token a row after a batch of prompts, without gradients; `Decoder.knows` refuses whatever it
does not know (other architectures, windows, adapters, quantised or hooked modules), and the sampler then calls the model itself.
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

KNOWN = frozenset({"LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"})

JOIN_BELOW_BYTES = 1 << 28
"""Weights of larger models are not joined: their products are large enough as they are, and the copies would cost memory."""

_STATIC_ROTATIONS = frozenset({"default", "linear", "llama3"})
"""Rotary embeddings that depend on the position alone, and not on how long the sequence has become."""


@dataclass(frozen=True)
class _Layer:
    first_norm: Any
    second_norm: Any
    qkv: _Joined
    output: nn.Linear
    query_norm: Any
    key_norm: Any
    gate_up: _Joined
    down: nn.Linear
    activation: Any
    scaling: float


class _Joined:
    """Several linear maps of one input as a single product, made anew for each call of the sampler, because weights change in between."""

    def __init__(self, maps: list[nn.Linear], join: bool) -> None:
        self._maps = maps
        self._weight = torch.cat([one.weight for one in maps]) if join else None
        self._bias: Tensor | None = None
        if join and any(one.bias is not None for one in maps):
            self._bias = torch.cat([one.weight.new_zeros(len(one.weight)) if one.bias is None else one.bias for one in maps])

    def __call__(self, x: Tensor) -> Tensor:
        if self._weight is not None:
            return F.linear(x, self._weight, self._bias)
        return torch.cat([F.linear(x, one.weight, one.bias) for one in self._maps], dim=-1)


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
        join = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) < JOIN_BELOW_BYTES
        self._embedding, self._norm, self._head = inner.embed_tokens.weight, inner.norm, model.lm_head
        self._layers = [_layer(layer, join) for layer in inner.layers]
        self._head_dim = inner.layers[0].self_attn.head_dim
        self._queries, self._keys = config.num_attention_heads, config.num_key_value_heads
        self._attentions = [SharedPromptAttention(layer.keys, layer.values, mask, completions, steps) for layer in cache.layers]
        every = torch.arange(positions, device=model.device).unsqueeze(0)
        cosine, sine = inner.rotary_emb(self._embedding[:1].unsqueeze(0), every)
        half = self._head_dim // 2
        # x rotated by half a turn is (-x2, x1): a roll, with the sign kept in the table.
        self._rotations = torch.stack([cosine[0], torch.cat([-sine[0, :, :half], sine[0, :, half:]], dim=-1)], dim=1).unsqueeze(2)

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
        rows = len(token_B)
        hidden = F.embedding(token_B, self._embedding)
        cosine, sine = self._rotations.index_select(0, position_B).unbind(1)
        for layer, attention in zip(self._layers, self._attentions, strict=True):
            qkv = layer.qkv(_normed(layer.first_norm, hidden)).view(rows, queries + 2 * keys, size)
            qk, value = qkv[:, : queries + keys], qkv[:, queries + keys :]
            if layer.query_norm is not None:
                qk = torch.cat([_normed(layer.query_norm, qk[:, :queries]), _normed(layer.key_norm, qk[:, queries:])], dim=1)
            qk = torch.addcmul(qk * cosine, qk.roll(size // 2, dims=-1), sine)
            query = (qk[:, :queries] * layer.scaling).view(rows, keys, queries // keys, size)
            attended = attention(query, qk[:, queries:], value).reshape(rows, queries * size)
            hidden = _added(hidden, attended, layer.output)
            gate, up = layer.gate_up(_normed(layer.second_norm, hidden)).chunk(2, dim=-1)
            hidden = _added(hidden, layer.activation(gate) * up, layer.down)
        return F.linear(_normed(self._norm, hidden), self._head.weight, self._head.bias)


def _linears(layer: Any) -> list[Any]:
    attention, mlp = layer.self_attn, layer.mlp
    return [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj]


def _layer(layer: Any, join: bool) -> _Layer:
    query, key, value, output, gate, up, down = _linears(layer)
    attention = layer.self_attn
    return _Layer(
        first_norm=layer.input_layernorm,
        second_norm=layer.post_attention_layernorm,
        qkv=_Joined([query, key, value], join),
        output=output,
        query_norm=getattr(attention, "q_norm", None),
        key_norm=getattr(attention, "k_norm", None),
        gate_up=_Joined([gate, up], join),
        down=down,
        activation=layer.mlp.act_fn,
        scaling=attention.scaling,
    )


def _added(hidden: Tensor, x: Tensor, linear: Any) -> Tensor:
    """hidden + linear(x). In fp32 as one operation; below, rounded in between, as the model's own forward does it."""
    if hidden.dtype == torch.float32 and linear.bias is None:
        return torch.addmm(hidden, x, linear.weight.t())
    return hidden + F.linear(x, linear.weight, linear.bias)


def _normed(norm: Any, x: Tensor) -> Tensor:
    """RMSNorm in fp32, rounded before the weight is applied, as transformers does it."""
    if x.dtype == torch.float32:
        return F.rms_norm(x, (x.shape[-1],), norm.weight, norm.variance_epsilon)
    rounded: Tensor = norm.weight * F.rms_norm(x.float(), (x.shape[-1],), None, norm.variance_epsilon).to(x.dtype)
    return rounded
