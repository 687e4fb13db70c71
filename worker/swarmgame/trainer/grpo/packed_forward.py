"""The forward pass of training over a packed micro-batch: log-probabilities without padding and with each prompt read
once.

It serves the models of `PACKED` with full attention, adapters in place included (`supports_packing`); others, float32
on a CUDA device and CPUs keep `logprobs.completion_logprobs`, which is its oracle. The layers' own modules are called;
only attention and the order of calls are written here (without adapters, queries, keys and values come of one product,
which calls no hooks of the three modules). One decoder layer is compiled (torch.compile), and all layers share the
result; the samplers' calls of the same modules stay as they are. The pass and its layers are modules of their own,
around those of the model: sharding (`sharding.shard`) gathers weights when a module is called. Logits exist for a chunk
of tokens at a time (`linear_logprobs`).

Shapes: T tokens of the packed sequence, H hidden size, N query heads, G key heads, D head dimension; B rollouts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from swarmgame.inference.architecture import SUPPORTED, has_rotary, multipliers_of, rotates_complete_heads
from swarmgame.inference.cache import has_window_in_reach
from swarmgame.trainer.grpo.linear_logprobs import linear_logprobs
from swarmgame.trainer.grpo.logprobs import EarlyEos, ForbiddenIds, selective_log_softmax
from swarmgame.trainer.grpo.packed_attention import Segments, attend, flash_serves, visible_tokens
from swarmgame.trainer.grpo.packing import PackedLayout, pack

logger = logging.getLogger(__name__)

PACKED = SUPPORTED - {"Olmo2ForCausalLM"}
"""Model classes that the pass serves: those of the decoder, but for norms behind attention and feed-forward."""

ROPE_TYPES = frozenset({"default", "linear", "llama3", "yarn"})
"""Those whose angles depend on nothing but a token's position."""


def supports_packing(model: Any) -> bool:
    """Return whether the packed pass gives this model's numbers."""
    config = model.config
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        type(model).__name__ in PACKED
        and not has_window_in_reach(config)
        and rope.get("rope_type", "default") in ROPE_TYPES
        and rotates_complete_heads(model)
    )


def is_fast(model: Any, device: torch.device | None = None) -> bool:
    """Return whether the packed pass has fast kernels for this model, where its weights are or on another device."""
    attention = model.model.layers[0].self_attn
    return flash_serves(device or model.device, model.dtype, attention.head_dim)


class PackedForward(nn.Module):
    """Scores rollouts under a model that `supports_packing`.

    Args:
        compile: compile the decoder layer at its first use. Where that fails, a warning says why, and the layer runs
            uncompiled.
        device: where it will run, if the weights are not there yet.
    """

    def __init__(self, model: Any, *, compile: bool, device: torch.device | None = None) -> None:
        super().__init__()
        inner = model.model
        self.embedding, self.rotary, self.norm, self.head = (
            inner.embed_tokens,
            inner.rotary_emb,
            inner.norm,
            model.lm_head,
        )
        self.layers = nn.ModuleList(PackedLayer(layer) for layer in inner.layers)
        self._multipliers = multipliers_of(model)
        self._is_fast = is_fast(model, device)
        self._run_layer: Callable[..., Tensor] = _decoder_layer
        self._run_norm: Callable[..., Tensor] = _norm
        self._uncompiled = compile

    def score(
        self,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[int]],
        temperature: float,
        early_eos: EarlyEos | None = None,
        states: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probabilities with gradient, entropies in nats without, and mask, each [B, T] with T the longest
        completion.

        Args:
            early_eos: None where EOS may be sampled at once.
            states: the hidden states [N, H] of the scored positions, row by row, are added to it, with gradient.

        Raises:
            ValueError: a prompt or completion is empty, their numbers differ, or the temperature is not positive.
        """
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; expected a positive number")
        layout = pack(prompts, completions)
        device = next(self.parameters()).device
        token_T, position_T, source_N, target_N, row_N, place_N, key_index_K, query_starts, key_starts = _moved(
            layout, device
        )
        bounds = query_starts.to(torch.int32), key_starts.to(torch.int32)
        visible_TT = None if self._is_fast else visible_tokens(key_index_K, *bounds)
        segments = Segments(key_index_K, *bounds, layout.longest_query, layout.longest_key, visible_TT)
        forbidden = None if early_eos is None else early_eos.forbidden(place_N, target_N)
        logprobs_N, entropies_N, states_NH = self(
            token_T, position_T, segments, source_N, target_N, temperature, forbidden
        )
        if states is not None:
            states.append(states_NH)
        logprobs = logprobs_N.new_zeros(layout.shape).index_put((row_N, place_N), logprobs_N)
        entropies = entropies_N.new_zeros(layout.shape).index_put((row_N, place_N), entropies_N)
        mask = torch.zeros(layout.shape, dtype=torch.bool, device=device).index_put(
            (row_N, place_N), torch.ones_like(row_N, dtype=torch.bool)
        )
        return logprobs, entropies, mask

    @contextmanager
    def without_compiling(self) -> Iterator[None]:
        """Leave the layer as it is in the block: what is compiled is fitted to the sizes of its first use."""
        pending, self._uncompiled = self._uncompiled, False
        try:
            yield
        finally:
            self._uncompiled = pending

    def forward(
        self,
        token_T: Tensor,
        position_T: Tensor,
        segments: Segments,
        source_N: Tensor,
        target_N: Tensor,
        temperature: float,
        forbidden: ForbiddenIds | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probabilities and entropies of the scored tokens, each [N], and the hidden states [N, H] before
        them; see `packing` for the arguments.
        """
        states_NH = _Gather.apply(self._hidden(token_T, position_T, segments), source_N)
        return *self._score(states_NH, target_N, temperature, forbidden), states_NH

    def _hidden(self, token_T: Tensor, position_T: Tensor, segments: Segments) -> Tensor:
        hidden = self.embedding(token_T)
        if self._multipliers.embedding != 1.0:
            hidden = hidden * self._multipliers.embedding
        cos, sin = (part.squeeze(0).unsqueeze(1) for part in self.rotary(hidden.unsqueeze(0), position_T.unsqueeze(0)))
        if self._uncompiled:
            self._uncompiled = False
            self._compile(hidden, cos, sin, segments)
        for layer in self.layers:
            hidden = layer(self._run_layer, hidden, cos, sin, segments)
        return self._run_norm(self.norm, hidden)

    def _score(
        self, hidden_NH: Tensor, target_N: Tensor, temperature: float, forbidden: ForbiddenIds | None
    ) -> tuple[Tensor, Tensor]:
        head, temperature = self.head, temperature / self._multipliers.logits
        bias = getattr(head, "bias", None)
        if type(head) is nn.Linear and bias is None:
            return linear_logprobs(hidden_NH, head.weight, target_N, temperature, forbidden)
        logprobs, entropies = selective_log_softmax(
            head(hidden_NH), target_N, temperature, with_entropy=True, forbidden=forbidden
        )
        assert entropies is not None
        return logprobs, entropies

    def _compile(self, hidden: Tensor, cos: Tensor, sin: Tensor, segments: Segments) -> None:
        """Compile the layer, and try it forward and backward: the backward pass is compiled only then, where no error
        could be caught.
        """
        layer, norm = torch.compile(_decoder_layer, dynamic=True), torch.compile(_norm, dynamic=True)
        first: Any = self.layers[0]
        devices = [hidden.device] if hidden.is_cuda else []
        try:
            with torch.enable_grad(), torch.random.fork_rng(devices=devices), _gathered(first):
                given = hidden.detach().requires_grad_()
                output = norm(self.norm, layer(first.layer, given, cos, sin, segments))
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
        self._run_layer, self._run_norm = layer, norm


class PackedLayer(nn.Module):
    """A decoder layer on a packed sequence."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(
        self, run: Callable[..., Tensor], hidden_TH: Tensor, cos_T1D: Tensor, sin_T1D: Tensor, segments: Segments
    ) -> Tensor:
        """Return the hidden states behind the layer.

        Args:
            run: `_decoder_layer`, compiled or not.
        """
        given = (self.layer, hidden_TH, cos_T1D, sin_T1D, segments)
        if self.layer.training and getattr(self.layer, "gradient_checkpointing", False) and torch.is_grad_enabled():
            hidden: Tensor = checkpoint(run, *given, use_reentrant=False)
            return hidden
        return run(*given)


@contextmanager
def _gathered(module: Any) -> Iterator[None]:
    """Hold a module's complete weights, if it is sharded. A collective call."""
    if not hasattr(module, "unshard"):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()


def _decoder_layer(layer: Any, hidden_TH: Tensor, cos_T1D: Tensor, sin_T1D: Tensor, segments: Segments) -> Tensor:
    """Run a decoder layer of a model that `supports_packing` on a packed sequence."""
    attention = layer.self_attn
    split = (hidden_TH.shape[0], -1, attention.head_dim)
    read = layer.input_layernorm(hidden_TH)
    query, key, value = (part.view(split) for part in _projections(attention, read))
    if hasattr(attention, "q_norm"):  # Qwen3
        query, key = attention.q_norm(query), attention.k_norm(key)
    if has_rotary(attention):
        query, key = (part * cos_T1D + _rotate_half(part) * sin_T1D for part in (query, key))
    attended = attend(query, key, value, segments, attention.scaling)
    hidden_TH = _added(layer, hidden_TH, attention.o_proj(attended.reshape(split[0], -1)))
    return _added(layer, hidden_TH, layer.mlp(layer.post_attention_layernorm(hidden_TH)))


def _added(layer: Any, hidden_TH: Tensor, change_TH: Tensor) -> Tensor:
    """Add to the residual stream; Granite's layers multiply before."""
    multiplier = getattr(layer, "residual_multiplier", 1.0)
    return hidden_TH + (change_TH if multiplier == 1.0 else change_TH * multiplier)


def _projections(attention: Any, read_TH: Tensor) -> tuple[Tensor, ...]:
    """Return queries, keys and values side by side: one product for the three where no adapter stands in the way.

    Two heads of keys are too narrow for a device: their products take as long as that of all the queries, forward and
    backward.
    """
    if hasattr(attention, "qkv_proj"):  # Phi-3
        joined, keys = attention.qkv_proj(read_TH), attention.num_key_value_heads * attention.head_dim
        return torch.split(joined, [joined.shape[-1] - 2 * keys, keys, keys], dim=-1)
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
