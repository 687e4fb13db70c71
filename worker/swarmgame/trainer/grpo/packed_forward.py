"""The forward pass of training over a packed micro-batch: log-probabilities without padding and with each prompt read
once.

It serves Llama, Qwen2 and Qwen3 models with full attention, adapters in place included (`supports_packing`); others,
float32 on a CUDA device and CPUs keep `logprobs.completion_logprobs`, which is its oracle. The layers' own modules are
called; only attention and the order of calls are written here (without adapters, queries, keys and values come of one
product, which calls no hooks of the three modules). One decoder layer is compiled (torch.compile), and all layers
share the result; the samplers' calls of the same modules stay as they are. Logits exist for a chunk of tokens at a
time (`linear_logprobs`).

Shapes: T tokens of the packed sequence, H hidden size, N query heads, G key heads, D head dimension; B rollouts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from swarmgame.inference.cache import is_windowed
from swarmgame.inference.llama import SUPPORTED
from swarmgame.trainer.grpo.linear_logprobs import linear_logprobs
from swarmgame.trainer.grpo.logprobs import selective_log_softmax
from swarmgame.trainer.grpo.packed_attention import Segments, attend, flash_serves, visible_tokens
from swarmgame.trainer.grpo.packing import PackedLayout, pack

logger = logging.getLogger(__name__)

ROPE_TYPES = frozenset({"default", "linear", "llama3", "yarn"})
"""Those whose angles depend on nothing but a token's position."""


def supports_packing(model: Any) -> bool:
    """Return whether the packed pass gives this model's numbers."""
    config = model.config
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        type(model).__name__ in SUPPORTED
        and not is_windowed(config)
        and rope.get("rope_type", "default") in ROPE_TYPES
        and not getattr(config, "attention_dropout", 0.0)
    )


def is_fast(model: Any) -> bool:
    """Return whether the packed pass has fast kernels where this model's weights are."""
    attention = model.model.layers[0].self_attn
    return flash_serves(model.device, model.dtype, attention.head_dim)


class PackedForward:
    """Scores rollouts under a model that `supports_packing`.

    Args:
        compile: compile the decoder layer at its first use. Where that fails, a warning says why, and the layer runs
            uncompiled.
    """

    def __init__(self, model: Any, *, compile: bool) -> None:
        self._model = model
        self._layer: Callable[..., Tensor] = _decoder_layer
        self._norm: Callable[..., Tensor] = _norm
        self._uncompiled = compile

    def score(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], temperature: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probabilities with gradient, entropies in nats without, and mask, each [B, T] with T the longest
        completion.

        Raises:
            ValueError: a prompt or completion is empty, their numbers differ, or the temperature is not positive.
        """
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; expected a positive number")
        layout = pack(prompts, completions)
        device = self._model.device
        token_T, position_T, source_N, target_N, row_N, place_N, key_index_K, query_starts, key_starts = _moved(
            layout, device
        )
        bounds = query_starts.to(torch.int32), key_starts.to(torch.int32)
        visible_TT = None if is_fast(self._model) else visible_tokens(key_index_K, *bounds)
        segments = Segments(key_index_K, *bounds, layout.longest_query, layout.longest_key, visible_TT)
        hidden_TH = self._hidden(token_T, position_T, segments)
        logprobs_N, entropies_N = self._score(_Gather.apply(hidden_TH, source_N), target_N, temperature)
        logprobs = logprobs_N.new_zeros(layout.shape).index_put((row_N, place_N), logprobs_N)
        entropies = entropies_N.new_zeros(layout.shape).index_put((row_N, place_N), entropies_N)
        mask = torch.zeros(layout.shape, dtype=torch.bool, device=device).index_put(
            (row_N, place_N), torch.ones_like(row_N, dtype=torch.bool)
        )
        return logprobs, entropies, mask

    def _hidden(self, token_T: Tensor, position_T: Tensor, segments: Segments) -> Tensor:
        inner = self._model.model
        hidden = inner.embed_tokens(token_T)
        cos, sin = (
            part.squeeze(0).unsqueeze(1) for part in inner.rotary_emb(hidden.unsqueeze(0), position_T.unsqueeze(0))
        )
        if self._uncompiled:
            self._uncompiled = False
            self._compile(hidden, cos, sin, segments)
        for layer in inner.layers:
            if layer.training and getattr(layer, "gradient_checkpointing", False) and torch.is_grad_enabled():
                hidden = checkpoint(self._layer, layer, hidden, cos, sin, segments, use_reentrant=False)
            else:
                hidden = self._layer(layer, hidden, cos, sin, segments)
        return self._norm(inner.norm, hidden)

    def _score(self, hidden_NH: Tensor, target_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        head = self._model.lm_head
        bias = getattr(head, "bias", None)
        if type(head) is nn.Linear and bias is None:
            return linear_logprobs(hidden_NH, head.weight, target_N, temperature)
        logprobs, entropies = selective_log_softmax(head(hidden_NH), target_N, temperature, with_entropy=True)
        assert entropies is not None
        return logprobs, entropies

    def _compile(self, hidden: Tensor, cos: Tensor, sin: Tensor, segments: Segments) -> None:
        """Compile the layer, and try it forward and backward: the backward pass is compiled only then, where no error
        could be caught.
        """
        layer, norm = torch.compile(_decoder_layer, dynamic=True), torch.compile(_norm, dynamic=True)
        inner = self._model.model
        devices = [hidden.device] if hidden.is_cuda else []
        try:
            with torch.enable_grad(), torch.random.fork_rng(devices=devices):
                given = hidden.detach().requires_grad_()
                output = norm(inner.norm, layer(inner.layers[0], given, cos, sin, segments))
                torch.autograd.grad(output, given, torch.zeros_like(output))
        except torch.cuda.OutOfMemoryError:
            self._uncompiled = True
            raise
        except Exception as error:  # noqa: BLE001 - compilers, linkers and drivers raise whatever they like
            text = str(error).strip()
            logger.warning(
                "the decoder layers could not be compiled (%s: %s): training goes on without, and takes longer. "
                "torch.compile needs a C compiler "
                "(gcc or clang) in the image and a writable cache folder; compile: false leaves it out",
                type(error).__name__,
                text.splitlines()[0] if text else "no message",
            )
            return
        self._layer, self._norm = layer, norm


def _decoder_layer(layer: Any, hidden_TH: Tensor, cos_T1D: Tensor, sin_T1D: Tensor, segments: Segments) -> Tensor:
    """Run a decoder layer of Llama, Qwen2 or Qwen3 on a packed sequence."""
    attention = layer.self_attn
    split = (hidden_TH.shape[0], -1, attention.head_dim)
    read = layer.input_layernorm(hidden_TH)
    query, key, value = (part.view(split) for part in _projections(attention, read))
    if hasattr(attention, "q_norm"):  # Qwen3
        query, key = attention.q_norm(query), attention.k_norm(key)
    query, key = (part * cos_T1D + _rotate_half(part) * sin_T1D for part in (query, key))
    attended = attend(query, key, value, segments, attention.scaling)
    hidden_TH = hidden_TH + attention.o_proj(attended.reshape(split[0], -1))
    changed: Tensor = hidden_TH + layer.mlp(layer.post_attention_layernorm(hidden_TH))
    return changed


def _projections(attention: Any, read_TH: Tensor) -> tuple[Tensor, ...]:
    """Return queries, keys and values side by side: one product for the three where no adapter stands in the way.

    Two heads of keys are too narrow for a device: their products take as long as that of all the queries, forward and
    backward.
    """
    modules = (attention.q_proj, attention.k_proj, attention.v_proj)
    if any(type(module) is not nn.Linear for module in modules):
        return tuple(module(read_TH) for module in modules)
    bias = None if attention.q_proj.bias is None else torch.cat([module.bias for module in modules])
    joined = nn.functional.linear(read_TH, torch.cat([module.weight for module in modules]), bias)
    return torch.split(joined, [module.out_features for module in modules], dim=-1)


def _norm(module: Any, hidden_TH: Tensor) -> Tensor:
    normed: Tensor = module(hidden_TH)
    return normed


def _rotate_half(part: Tensor) -> Tensor:
    first, second = part.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


class _Gather(torch.autograd.Function):
    """Rows of a matrix; the gradient of a row that is taken several times (a prompt's last token) is added up in
    float32.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape = rows.shape
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        wide = torch.promote_types(gradients[0].dtype, torch.float32)
        total = torch.zeros(ctx.shape, device=index.device, dtype=wide)
        return total.index_add_(0, index, gradients[0].to(wide)).to(gradients[0].dtype), None


def _moved(layout: PackedLayout, device: torch.device) -> list[Tensor]:
    """Move the layout's arrays to a device in one copy that does not wait for it."""
    scored = (layout.source_N, layout.target_N, layout.row_N, layout.place_N)
    arrays = (
        layout.token_T,
        layout.position_T,
        *scored,
        layout.key_index_K,
        layout.query_starts_S,
        layout.key_starts_S,
    )
    joined = torch.from_numpy(np.concatenate(arrays))
    if device.type == "cuda":
        joined = joined.pin_memory()
    return list(torch.split(joined.to(device, non_blocking=True), [len(array) for array in arrays]))
