"""A key-value cache that is written in place, for decoding many rows a known number of steps.

transformers' DynamicCache concatenates, and so copies, all keys and values at every step: a quarter of the decode time
of a small model. This one keeps a buffer of the final length and hands out views. Invariant: what a layer sees is what
DynamicCache would show it. It is not for training, cropping or offloading, nor for layers with windows, which keep
transformers' own.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer, LinearAttentionCacheLayerMixin


class BufferLayer(DynamicLayer):  # type: ignore[misc]
    """One layer of full attention, with room for `capacity` positions; grows by half when that is not enough."""

    def __init__(self, capacity: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.capacity = capacity
        self._length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self._keys, self._values = _room(key_states, 0), _room(value_states, 0)
        self._show()
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self._length = self._length, self._length + key_states.shape[-2]
        if self._length > self._keys.shape[-2]:
            self._reserve(key_states.shape[-2] if start == 0 else max(self.capacity, self._length * 3 // 2), start)
        self._keys[:, :, start : self._length] = key_states
        self._values[:, :, start : self._length] = value_states
        self._show()
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self._length

    def reset(self) -> None:
        self._length = 0
        super().reset()

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row, and reserve the full capacity: a prompt's own buffer was as long as the prompt."""
        for name in ("_keys", "_values"):
            short = getattr(self, name)[:, :, : self._length]
            buffer = _room(short, max(self.capacity, self._length), rows=short.shape[0] * repeats)
            buffer[:, :, : self._length] = short.repeat_interleave(repeats, dim=0)
            setattr(self, name, buffer)
        self._show()

    def batch_select_indices(self, indices: Tensor) -> None:
        for name in ("_keys", "_values"):
            old = getattr(self, name)
            buffer = _room(old, old.shape[-2], rows=len(indices))
            buffer[:, :, : self._length] = old[:, :, : self._length].index_select(0, indices)
            setattr(self, name, buffer)
        self._show()

    def _reserve(self, capacity: int, filled: int) -> None:
        for name in ("_keys", "_values"):
            old = getattr(self, name)
            buffer = _room(old, capacity)
            buffer[:, :, :filled] = old[:, :, :filled]
            setattr(self, name, buffer)

    def _show(self) -> None:
        self.keys, self.values = self._keys[:, :, : self._length], self._values[:, :, : self._length]


def decoding_cache(config: Any, capacity: int) -> Cache:
    """The cache for a model: in place where every layer is one of full attention, else transformers' own."""
    if is_windowed(config):
        return DynamicCache(config=config)
    return Cache(layer_class_to_replicate=partial(BufferLayer, capacity))


def repeat_rows(cache: Cache, repeats: int) -> None:
    """Repeat each row of a cache, states of recurrent layers included."""
    for layer in cache.layers:
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            rows = torch.arange(_rows_of(layer), device=layer.device)
            layer.reorder_cache(rows.repeat_interleave(repeats))
        else:
            layer.batch_repeat_interleave(repeats)


def select_rows(cache: Cache, rows: Tensor) -> None:
    """Keep these rows of a cache."""
    for layer in cache.layers:
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            layer.reorder_cache(rows)
        else:
            layer.batch_select_indices(rows)


def _rows_of(layer: LinearAttentionCacheLayerMixin) -> int:
    states = [*layer.conv_states.values(), *layer.recurrent_states.values()]
    return next((len(state) for state in states if state is not None), 0)


def is_windowed(config: Any) -> bool:
    """Whether some layer is anything else than full attention over everything before (a window, a state, a chunk)."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None) or getattr(text, "attention_layers", None)  # GPT-Neo's: global, local
    if kinds is not None:
        return not set(kinds) <= {"full_attention", "global"}
    return getattr(text, "sliding_window", None) is not None


def has_window_in_reach(config: Any) -> bool:
    """Whether some row that fits into the model's context may be longer than what a layer attends to."""
    text = config.get_text_config()
    window, context = getattr(text, "sliding_window", None), getattr(text, "max_position_embeddings", None)
    kinds = set(getattr(text, "layer_types", None) or ())
    is_wide = window is not None and context is not None and window > context
    return is_windowed(config) and not (is_wide and kinds <= {"full_attention", "sliding_attention"})


def _room(like: Tensor, capacity: int, rows: int | None = None) -> Tensor:
    return torch.empty(
        like.shape[0] if rows is None else rows,
        like.shape[1],
        capacity,
        like.shape[3],
        dtype=like.dtype,
        device=like.device,
    )
