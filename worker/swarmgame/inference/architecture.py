"""What a Llama-shaped model computes where such models differ, read from the model.

`describe` returns it as an `Architecture`, from which decoder and layers choose their operations once, when they are
made. It returns None for whatever it does not know: other classes and modules, windows, angles that depend on the
length. `is_supported` also refuses quantised and hooked modules; samplers then call the model itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from swarmgame.inference.cache import has_window_in_reach

SUPPORTED = frozenset(
    {
        "GraniteForCausalLM",
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "Olmo2ForCausalLM",
        "Phi3ForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "SeedOssForCausalLM",
        "SmolLM3ForCausalLM",
    }
)

FOLD_BELOW_BYTES = 1 << 28
"""Weights of larger models are not folded: their products are large enough as they are, and the copies would cost
memory. Nor are those below fp32: what is multiplied in beforehand would be rounded otherwise than the model rounds it.
"""

_STATIC_ROPE = frozenset({"default", "linear", "llama3"})
"""Rotary embeddings that depend on the position alone, and not on the length of the sequence."""

_NORMS_AHEAD = {"input_layernorm", "post_attention_layernorm"}
_NORMS_BEHIND = {"post_attention_layernorm", "post_feedforward_layernorm"}
_HEAD_NORMS = {"q_norm", "k_norm"}
_ATTENTIONS = ({"q_proj", "k_proj", "v_proj", "o_proj"}, {"qkv_proj", "o_proj"})
_MLPS = ({"gate_proj", "up_proj", "down_proj", "act_fn"}, {"gate_up_proj", "down_proj", "activation_fn"})


@dataclass(frozen=True)
class Multipliers:
    """What Granite multiplies by, and others do not.

    Args:
        embedding: of embeddings.
        residual: of what attention and feed-forward add to the residual stream.
        logits: of logits.
    """

    embedding: float = 1.0
    residual: float = 1.0
    logits: float = 1.0


@dataclass(frozen=True)
class Architecture:
    """What a model computes where Llama-shaped models differ.

    Args:
        scaling: of attention scores.
        rotary: for each layer, whether its queries and keys are rotated.
        norms_behind: norms stand behind attention and feed-forward instead of ahead of them, and those of queries and
            keys span all heads (OLMo 2).
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scaling: float
    rotary: tuple[bool, ...]
    multipliers: Multipliers
    norms_behind: bool = False

    @property
    def split(self) -> list[int]:
        """Outputs for queries, keys and values."""
        return [self.num_heads * self.head_dim, *[self.num_kv_heads * self.head_dim] * 2]


@dataclass(frozen=True)
class Linears:
    """The linear layers of one decoder layer.

    Args:
        qkv: those of queries, keys and values, or the one of all three.
        gate_up: those of gate and up, or the one of both.
    """

    qkv: Sequence[Any]
    output: Any
    gate_up: Sequence[Any]
    down: Any

    @property
    def every(self) -> list[Any]:
        return [*self.qkv, self.output, *self.gate_up, self.down]


def is_supported(model: Any) -> bool:
    """Whether the model computes nothing but what is written out here."""
    if describe(model) is None or any(_is_hooked(module) for module in model.modules()):
        return False
    if type(model.model.embed_tokens) is not nn.Embedding or type(model.lm_head) is not nn.Linear:
        return False
    return all(
        type(linear) is nn.Linear or _is_adapted(linear)
        for layer in model.model.layers
        for linear in linears_of(layer).every
    )


def describe(model: Any) -> Architecture | None:
    """Return what the model computes; None where something of it is not known."""
    name, config = type(model).__name__, model.config
    rope = getattr(config, "rope_parameters", None) or {}
    if name not in SUPPORTED or has_window_in_reach(config) or rope.get("rope_type", "default") not in _STATIC_ROPE:
        return None
    if config._attn_implementation not in ("sdpa", "eager") or getattr(config, "hidden_act", "silu") != "silu":
        return None
    layers = model.model.layers
    norms_behind = _has_norms_behind(layers[0])
    if not rotates_complete_heads(model) or not all(_is_known(layer, norms_behind) for layer in layers):
        return None
    return Architecture(
        num_heads=int(config.num_attention_heads),
        num_kv_heads=int(config.num_key_value_heads),
        head_dim=int(layers[0].self_attn.head_dim),
        scaling=float(layers[0].self_attn.scaling),
        rotary=tuple(has_rotary(layer.self_attn) for layer in layers),
        multipliers=multipliers_of(model),
        norms_behind=norms_behind,
    )


def multipliers_of(model: Any) -> Multipliers:
    """Return Granite's multipliers. Configurations of others may hold them too, and their models do not read them."""
    if type(model).__name__ != "GraniteForCausalLM":
        return Multipliers()
    config = model.config
    return Multipliers(
        float(config.embedding_multiplier), float(config.residual_multiplier), 1.0 / float(config.logits_scaling)
    )


def rotates_complete_heads(model: Any) -> bool:
    """Whether all numbers of queries and keys are rotated, and not the first ones alone."""
    inner = model.model
    return bool(2 * len(inner.rotary_emb.inv_freq) == inner.layers[0].self_attn.head_dim)


def has_rotary(attention: Any) -> bool:
    """Whether queries and keys of this layer are rotated (SmolLM3 leaves some out)."""
    return bool(getattr(attention, "use_rope", True))


def is_foldable(model: Any) -> bool:
    """Whether its weights may be folded: small, in fp32, on a CPU, without adapters, and with norms ahead of its
    products.
    """
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    plain = all(type(linear) is nn.Linear for layer in model.model.layers for linear in linears_of(layer).every)
    return bool(
        plain
        and not _has_norms_behind(model.model.layers[0])
        and model.dtype == torch.float32
        and model.device.type == "cpu"
        and size < FOLD_BELOW_BYTES
    )


def linears_of(layer: Any) -> Linears:
    """Return the linear layers of a decoder layer, adapted ones included."""
    attention, mlp = layer.self_attn, layer.mlp
    joined = hasattr(attention, "qkv_proj")
    return Linears(
        (attention.qkv_proj,) if joined else (attention.q_proj, attention.k_proj, attention.v_proj),
        attention.o_proj,
        (mlp.gate_up_proj,) if joined else (mlp.gate_proj, mlp.up_proj),
        mlp.down_proj,
    )


def _has_norms_behind(layer: Any) -> bool:
    return hasattr(layer, "post_feedforward_layernorm")


def _is_known(layer: Any, norms_behind: bool) -> bool:
    """Whether a layer consists of nothing but the modules that are written out."""
    return (
        _children(layer) == {"self_attn", "mlp", *(_NORMS_BEHIND if norms_behind else _NORMS_AHEAD)}
        and _children(layer.self_attn) - _HEAD_NORMS in _ATTENTIONS
        and len(_children(layer.self_attn) & _HEAD_NORMS) in ((2,) if norms_behind else (0, 2))
        and _children(layer.mlp) in _MLPS
    )


def _children(module: Any) -> set[str]:
    """Return the names of a module's modules, but for dropout, which does nothing in sampling."""
    return {name for name, child in module.named_children() if not isinstance(child, nn.Dropout)}


def _is_hooked(module: Any) -> bool:
    """Whether a module does anything beside its forward. The hook of checkpointed adapters does not count: it is about
    gradients alone.
    """
    hooks = [
        hook for hook in module._forward_hooks.values() if getattr(hook, "__name__", "") != "make_inputs_require_grads"
    ]
    return bool(hooks or module._forward_pre_hooks or "forward" in module.__dict__)


def _is_adapted(linear: Any) -> bool:
    """Whether it is a linear layer with peft's adapters, which is called as it is. By name: peft takes a second to
    import.
    """
    return type(linear).__module__.startswith("peft.tuners.") and type(getattr(linear, "base_layer", None)) is nn.Linear
