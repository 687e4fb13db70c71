"""One forward pass of a Llama-shaped model for one token a row, without gradients: the mathematics of transformers'
forward, with few and large operations.

A decode step of a small model spends most of its time between operations. Here the projections of a layer are joined,
and attention is given by the caller, one function a layer, so the decoder knows no caches. Three kinds of layer share
the loop: `_FoldedLayer` for small fp32 models on a CPU (what an input is multiplied by in any case is multiplied into
the weights once a call), `_ModuleLayer` for anything else in PyTorch's own operations (adapters included), and
`_KernelLayer` on the kernels of a CUDA device. `is_supported` refuses other architectures, windows, quantised and
hooked modules; samplers then call the model itself. Logits equal those of the model's own forward (tested for every
architecture of `SUPPORTED`).
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
from swarmgame.inference.cache import is_windowed
from swarmgame.inference.ops import rms_norm
from swarmgame.inference.rope import RotaryEmbedding

SUPPORTED = frozenset({"LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"})

FOLD_BELOW_BYTES = 1 << 28
"""Weights of larger models are not folded: their products are large enough as they are, and the copies would cost
memory. Nor are those below fp32: what is multiplied in beforehand would be rounded otherwise than the model rounds it.
"""

_STATIC_ROPE = frozenset({"default", "linear", "llama3"})
"""Rotary embeddings that depend on the position alone, and not on the length of the sequence."""

Map = Callable[[Tensor], Tensor]
Attention = Callable[[Tensor], Tensor]
"""Queries, keys and values of the new token [B, (G + 2) * K * D] → what was attended to [B, K * G * D]."""


def is_supported(model: Any) -> bool:
    """Whether the model computes nothing but what is written out here."""
    if type(model).__name__ not in SUPPORTED or is_windowed(model.config):
        return False
    rope = getattr(model.config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") not in _STATIC_ROPE or model.config._attn_implementation not in (
        "sdpa",
        "eager",
    ):
        return False
    if getattr(model.config, "hidden_act", "silu") != "silu" or any(_is_hooked(module) for module in model.modules()):
        return False
    if type(model.model.embed_tokens) is not nn.Embedding or type(model.lm_head) is not nn.Linear:
        return False
    return all(
        type(linear) is nn.Linear or _is_adapted(linear) for layer in model.model.layers for linear in _linears(layer)
    )


def _is_hooked(module: Any) -> bool:
    """Whether a module does anything beside its forward. The hook of checkpointed adapters does not count: it is about
    gradients alone.
    """
    hooks = [
        hook for hook in module._forward_hooks.values() if getattr(hook, "__name__", "") != "make_inputs_require_grads"
    ]
    return bool(hooks or module._forward_pre_hooks or "forward" in module.__dict__)


def is_foldable(model: Any) -> bool:
    """Whether its weights may be folded: small, in fp32, on a CPU, and without adapters."""
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    plain = all(type(linear) is nn.Linear for layer in model.model.layers for linear in _linears(layer))
    return bool(plain and model.dtype == torch.float32 and model.device.type == "cpu" and size < FOLD_BELOW_BYTES)


@torch.inference_mode(mode=False)  # the parameters go on to be trained
def join_projections(model: Any) -> None:
    """Put the weights of each layer's q, k and v projections side by side in memory, and those of gate and up.

    The parameters stay what they are, with views of the joined memory as data, so training and checkpoints see no
    difference and an update in place is seen by a decoder that reads the joined matrix. Adapted layers are left alone.
    Calling it again changes nothing.
    """
    for layer in model.model.layers:
        query, key, value, _, gate, up, _ = _linears(layer)
        for group in ((query, key, value), (gate, up)):
            if any(type(linear) is not nn.Linear for linear in group):
                continue
            for parameters in ([linear.weight for linear in group], [linear.bias for linear in group]):
                if any(parameter is None for parameter in parameters) or joined_view(parameters) is not None:
                    continue
                joined = torch.cat([parameter.data for parameter in parameters])
                for parameter, part in zip(
                    parameters, torch.split(joined, [len(parameter) for parameter in parameters]), strict=True
                ):
                    parameter.data = part


def joined_view(parameters: Sequence[Tensor]) -> Tensor | None:
    """Return the matrix that the parameters are parts of, as a view, or None when they do not lie side by side in one
    memory.
    """
    first = parameters[0]
    place = first.data_ptr()
    for parameter in parameters:
        same = parameter.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not (same and parameter.is_contiguous() and parameter.data_ptr() == place):
            return None
        place += parameter.numel() * parameter.element_size()
    rows = sum(len(parameter) for parameter in parameters)
    return first.detach().as_strided((rows, *first.shape[1:]), first.stride())


class _Layer(Protocol):
    """One decoder layer without its attention. The residual stream is `hidden` [B, H] plus `delta`, which the next
    norm adds; None is nothing.
    """

    def project(self, hidden: Tensor, delta: Tensor | None) -> Tensor:
        """Queries, keys and values [B, (G + 2) * K * D]; adds `delta` to `hidden`, in place."""

    def finish(self, hidden: Tensor, attended: Tensor) -> tuple[Tensor, Tensor | None]:
        """The residual stream behind the output projection and the feed-forward part; may write into `hidden`."""


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
        inner, attention = model.model, model.model.layers[0].self_attn
        self.folded = folded
        self.num_heads, self.num_kv_heads = int(model.config.num_attention_heads), int(model.config.num_key_value_heads)
        self.head_dim = int(attention.head_dim)
        self.scaling = 1.0 if folded else float(attention.scaling)  # folded into the weights
        self._embedding: Tensor = inner.embed_tokens.weight
        self._rotary = inner.rotary_emb
        if not folded:
            join_projections(model)
        self._layers: list[_Layer] = [
            _FoldedLayer(layer) if folded else _ModuleLayer(layer) if kernels is None else _KernelLayer(layer, kernels)
            for layer in inner.layers
        ]
        scale, epsilon, head = inner.norm.weight, float(inner.norm.variance_epsilon), model.lm_head
        self._head: Callable[[Tensor, Tensor | None], Tensor]
        if folded:
            norm, folded_head = _FoldedNorm(inner.norm), _fold([head.weight], [head.bias], scale)
            self._head = lambda hidden, delta: folded_head(norm(hidden))
        else:
            add_rms_norm = (kernels or ops).add_rms_norm
            self._head = lambda hidden, delta: F.linear(
                add_rms_norm(hidden, delta, scale, epsilon), head.weight, head.bias
            )

    def rotary_tables(self, positions: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines [positions, D] in the model's type."""
        every = torch.arange(positions, device=self._embedding.device).unsqueeze(0)
        cos, sin = self._rotary(self._embedding[:1].unsqueeze(0), every)
        return cos[0], sin[0]

    def __call__(self, token_B: Tensor, attentions: Sequence[Attention], last: Tensor | None = None) -> Tensor:
        """Logits [B, V] after one more token a row.

        Args:
            last: rows to return logits of [L], if not of all: of the tokens of several prompts, the last ones. Returns
                [L, V] then.
        """
        hidden, delta = F.embedding(token_B, self._embedding), None
        for layer, attention in zip(self._layers, attentions, strict=True):
            hidden, delta = layer.finish(hidden, attention(layer.project(hidden, delta)))
        if last is not None:
            hidden, delta = hidden[last], None if delta is None else delta.index_select(-2, last)
        return self._head(hidden, delta)


class _KernelLayer:
    """A layer on the kernels of norm and activation, or on their definitions in `ops`; adapters' modules are called."""

    def __init__(self, layer: Any, kernels: ModuleType) -> None:
        query, key, value, self._output, gate, up, self._down = _linears(layer)
        self._kernels = kernels
        self._norms = [
            (norm.weight, float(norm.variance_epsilon))
            for norm in (layer.input_layernorm, layer.post_attention_layernorm)
        ]
        self._qkv, self._gate_up = _map_of((query, key, value)), _map_of((gate, up))

    def project(self, hidden: Tensor, delta: Tensor | None) -> Tensor:
        return self._qkv(self._kernels.add_rms_norm(hidden, delta, *self._norms[0]))

    def finish(self, hidden: Tensor, attended: Tensor) -> tuple[Tensor, Tensor | None]:
        normed = self._kernels.add_rms_norm(hidden, _product(attended, self._output), *self._norms[1])
        inner = self._kernels.silu_mul(self._gate_up(normed))
        if type(self._down) is nn.Linear:
            return hidden, self._kernels.split_linear(inner, self._down.weight, self._down.bias)
        return hidden, _product(inner, self._down)


class _ModuleLayer:
    """A layer in PyTorch's operations, on the model's own weights, adapters included."""

    def __init__(self, layer: Any) -> None:
        query, key, value, self._output, gate, up, self._down = _linears(layer)
        attention = layer.self_attn
        self._norms = [
            (norm.weight, float(norm.variance_epsilon))
            for norm in (layer.input_layernorm, layer.post_attention_layernorm)
        ]
        self._qkv, self._gate_up = _map_of((query, key, value)), _map_of((gate, up))
        self._head_dim = int(attention.head_dim)
        self._split = [linear.out_features for linear in (query, key, value)]
        norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        self._head_norms = [(norm.weight, float(norm.variance_epsilon)) for norm in norms if norm is not None]

    def project(self, hidden: Tensor, delta: Tensor | None) -> Tensor:
        qkv = self._qkv(rms_norm(hidden, *self._norms[0]))
        return _with_head_norms(
            qkv, self._split, self._head_dim, [partial(_norm_last, norm=norm) for norm in self._head_norms]
        )

    def finish(self, hidden: Tensor, attended: Tensor) -> tuple[Tensor, Tensor | None]:
        hidden = _added(hidden, attended, self._output)
        gate, up = self._gate_up(rms_norm(hidden, *self._norms[1])).chunk(2, dim=-1)
        return _added(hidden, F.silu(gate).mul_(up), self._down), None


class _FoldedLayer:
    """A layer whose norms' weights, the scaling of queries and the interleaved order of rotary pairs are multiplied
    into its projections (fp32).
    """

    def __init__(self, layer: Any) -> None:
        query, key, value, self._output, gate, up, self._down = _linears(layer)
        attention, first, second = layer.self_attn, layer.input_layernorm, layer.post_attention_layernorm
        self._norms = _FoldedNorm(first), _FoldedNorm(second)
        self._head_dim = int(attention.head_dim)
        self._split = [linear.out_features for linear in (query, key, value)]
        weights, biases = [query.weight, key.weight, value.weight], [query.bias, key.bias, value.bias]
        order = RotaryEmbedding.interleave_permutation(attention.head_dim).to(query.weight.device)
        self._head_norms: list[Map] = []
        for place, factor in enumerate((attention.scaling, 1.0)):
            norm = getattr(attention, ("q_norm", "k_norm")[place], None)
            # A norm takes out what its input is scaled by, so there the factor goes into its own weight.
            weights[place], biases[place] = (
                part
                if part is None
                else part.unflatten(0, (-1, len(order)))[:, order].flatten(0, 1) * (factor if norm is None else 1.0)
                for part in (weights[place], biases[place])
            )
            if norm is not None:
                self._head_norms.append(_FoldedNorm(norm, scale=norm.weight[order] * factor))
        self._qkv = _fold(weights, biases, first.weight)
        self._gate_up = _fold([gate.weight, up.weight], [gate.bias, up.bias], second.weight)

    def project(self, hidden: Tensor, delta: Tensor | None) -> Tensor:
        return _with_head_norms(self._qkv(self._norms[0](hidden)), self._split, self._head_dim, self._head_norms)

    def finish(self, hidden: Tensor, attended: Tensor) -> tuple[Tensor, Tensor | None]:
        hidden = _added(hidden, attended, self._output)
        gate, up = self._gate_up(self._norms[1](hidden)).chunk(2, dim=-1)
        return _added(hidden, F.silu(gate).mul_(up), self._down), None


class _FoldedNorm:
    """RMSNorm in few operations (fp32); without a scale where that is multiplied into what comes next."""

    def __init__(self, norm: Any, *, scale: Tensor | None = None) -> None:
        self._scale = scale
        self._epsilons = torch.full((1, 1), float(norm.variance_epsilon), device=norm.weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        normed = x * torch.addcmul(self._epsilons, length, length, value=1.0 / x.shape[-1]).rsqrt_()
        return normed if self._scale is None else normed.mul_(self._scale)


def _linears(layer: Any) -> list[Any]:
    attention, mlp = layer.self_attn, layer.mlp
    return [
        attention.q_proj,
        attention.k_proj,
        attention.v_proj,
        attention.o_proj,
        mlp.gate_proj,
        mlp.up_proj,
        mlp.down_proj,
    ]


def _is_adapted(linear: Any) -> bool:
    """Whether it is a linear layer with peft's adapters, which is called as it is. By name: peft takes a second to
    import.
    """
    return type(linear).__module__.startswith("peft.tuners.") and type(getattr(linear, "base_layer", None)) is nn.Linear


def _joined(linears: Sequence[Any]) -> tuple[Tensor, Tensor | None] | None:
    """The joined weight and bias of plain linear layers; None with adapters."""
    if any(type(linear) is not nn.Linear for linear in linears):
        return None
    weight = joined_view([linear.weight for linear in linears])
    biases = [linear.bias for linear in linears]
    bias = (
        None
        if all(one is None for one in biases)
        else joined_view(biases)
        if all(one is not None for one in biases)
        else None
    )
    if weight is None or (bias is None and any(one is not None for one in biases)):
        return None
    return weight, bias


def _map_of(linears: Sequence[Any]) -> Map:
    """Several linear layers of one input, side by side."""
    joined = _joined(linears)
    if joined is not None:
        return partial(F.linear, weight=joined[0], bias=joined[1])
    return lambda x: torch.cat([linear(x) for linear in linears], dim=-1)


def _norm_last(x: Tensor, norm: tuple[Tensor, float]) -> Tensor:
    return rms_norm(x, *norm)


def _product(x: Tensor, linear: Any) -> Tensor:
    """A linear layer without what a module does around its product; one with adapters as it is."""
    product: Tensor = F.linear(x, linear.weight, linear.bias) if type(linear) is nn.Linear else linear(x)
    return product


def _with_head_norms(qkv: Tensor, split: list[int], head_dim: int, norms: Sequence[Map]) -> Tensor:
    """Apply the norms of queries and keys, where the architecture has them."""
    if not norms:
        return qkv
    query, key, value = torch.split(qkv, split, dim=-1)
    heads = [
        norm(part.view(len(part), -1, head_dim)).flatten(-2) for norm, part in zip(norms, (query, key), strict=True)
    ]
    return torch.cat([*heads, value], dim=-1)


def _fold(weights: list[Tensor], biases: list[Tensor | None], input_scale: Tensor) -> Map:
    """Join linear layers, for an input that lacks this scale."""
    weight = torch.cat(weights) * input_scale
    bias = None
    if any(one is not None for one in biases):
        bias = torch.cat(
            [part.new_zeros(len(part)) if one is None else one for part, one in zip(weights, biases, strict=True)]
        )
    return partial(F.linear, weight=weight, bias=bias)


def _added(hidden: Tensor, x: Tensor, linear: Any) -> Tensor:
    """hidden + linear(x). In fp32 as one operation; below, rounded in between, as the model's own forward does it."""
    plain = type(linear) is nn.Linear
    if plain and hidden.dtype == torch.float32 and linear.bias is None:
        return torch.addmm(hidden, x, linear.weight.t())
    return hidden + _product(x, linear)
