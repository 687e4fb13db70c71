"""Causal attention over a packed sequence in which many completions attend to one copy of their prompt.

`attend` takes queries, keys and values of the sequence and the segments of `packing`: a segment's queries attend to
its listed keys, aligned at the end. In bfloat16 and float16 on a CUDA device it is one call of torch's variable-length
flash attention on the keys in listed order; the gradient of a prompt's keys is added up over its completions in
float32. Elsewhere a mask over the sequence gives the same: the oracle of the tests, and fit for small batches only.
The operator is opaque to torch.compile, and so does not break a graph.

Shapes: T tokens, K listed keys, S segments, N query heads, G key heads, D head dimension.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class Segments(NamedTuple):
    """The segments of a packed sequence on its device; `packing.PackedLayout` explains them.

    Args:
        key_index_K: int64.
        query_starts_S, key_starts_S: int32.
        visible_TT: True where a token attends to another; None: flash attention is used.
    """

    key_index_K: Tensor
    query_starts_S: Tensor
    key_starts_S: Tensor
    longest_query: int
    longest_key: int
    visible_TT: Tensor | None


def flash_serves(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Return whether torch's flash attention runs on such tensors."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16) or head_dim % 8 or head_dim > 256:
        return False
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)


def attend(query_TND: Tensor, key_TGD: Tensor, value_TGD: Tensor, segments: Segments, scale: float) -> Tensor:
    """Return the attention's output [T, N, D]."""
    if segments.visible_TT is None:
        output, _ = torch.ops.swarmgame.packed_attention(
            query_TND,
            key_TGD,
            value_TGD,
            segments.key_index_K,
            segments.query_starts_S,
            segments.key_starts_S,
            segments.longest_query,
            segments.longest_key,
            scale,
        )
        return output  # type: ignore[no-any-return]
    query, key, value = (tensor.transpose(0, 1).unsqueeze(0) for tensor in (query_TND, key_TGD, value_TGD))
    dense = scaled_dot_product_attention(query, key, value, attn_mask=segments.visible_TT, scale=scale, enable_gqa=True)
    return dense.squeeze(0).transpose(0, 1)


def visible_tokens(key_index_K: Tensor, query_starts_S: Tensor, key_starts_S: Tensor) -> Tensor:
    """Return the mask [T, T] of segments: True where the row's token attends to the column's."""
    query_starts, key_starts = query_starts_S.tolist(), key_starts_S.tolist()
    mask = torch.zeros(query_starts[-1], query_starts[-1], dtype=torch.bool, device=key_index_K.device)
    for segment in range(len(query_starts) - 1):
        queries = slice(query_starts[segment], query_starts[segment + 1])
        keys = key_index_K[key_starts[segment] : key_starts[segment + 1]]
        length = queries.stop - queries.start
        mask[queries, keys] = mask.new_ones(length, len(keys)).tril(len(keys) - length)
    return mask


_ARGUMENTS = (
    "Tensor key_index, Tensor query_starts, Tensor key_starts, SymInt longest_query, SymInt longest_key, float scale"
)


@torch.library.custom_op(
    "swarmgame::packed_attention",
    mutates_args=(),
    schema=f"(Tensor query, Tensor key, Tensor value, {_ARGUMENTS}) -> (Tensor, Tensor)",
)
def _forward(query: Any, key: Any, value: Any, key_index: Any, *segments: Any) -> Any:
    output, normalizer = flash_forward(
        query.contiguous(), key.index_select(0, key_index), value.index_select(0, key_index), *segments
    )
    return output, normalizer


@_forward.register_fake
def _(query: Any, key: Any, value: Any, *_: Any) -> Any:
    return torch.empty_like(query, memory_format=torch.contiguous_format), query.new_empty(
        query.shape[1::-1], dtype=torch.float32
    )


@torch.library.custom_op(
    "swarmgame::packed_attention_backward",
    mutates_args=(),
    schema=f"(Tensor gradient, Tensor query, Tensor key, Tensor value, Tensor output, Tensor normalizer, {_ARGUMENTS})"
    " -> (Tensor, Tensor, Tensor)",
)
def _backward(
    gradient: Any, query: Any, key: Any, value: Any, output: Any, normalizer: Any, key_index: Any, *segments: Any
) -> Any:
    keys, values = key.index_select(0, key_index), value.index_select(0, key_index)
    of_query, *listed = flash_backward(
        gradient.contiguous(), query.contiguous(), keys, values, output, normalizer, *segments
    )
    # Many completions add to a prompt's keys: in bfloat16 the small would be lost beside the large.
    sums = [
        torch.zeros(key.shape, device=key.device, dtype=torch.float32).index_add_(0, key_index, part.float())
        for part in listed
    ]
    return of_query, sums[0].to(key.dtype), sums[1].to(key.dtype)


@_backward.register_fake
def _(gradient: Any, query: Any, key: Any, value: Any, *_: Any) -> Any:
    return tuple(torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (query, key, value))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, key_index, query_starts, key_starts, *ctx.rest = inputs
    ctx.save_for_backward(query, key, value, *output, key_index, query_starts, key_starts)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.swarmgame.packed_attention_backward(gradient, *ctx.saved_tensors, *ctx.rest)
    return (*gradients, *[None] * 6)


_forward.register_autograd(_differentiate, setup_context=_save)


def flash_forward(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    query_starts: Tensor,
    key_starts: Tensor,
    most: int,
    most_keys: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Return output [T, N, D] and logsumexps [N, T] of torch's kernel, which aligns queries and keys at the end of a
    segment.
    """
    # At most one query in every segment is a case of its own in the kernel (decoding), with another layout of the
    # logsumexps.
    starts = query_starts, key_starts, max(most, 2), most_keys
    output, normalizer, *_ = torch.ops.aten._flash_attention_forward(
        query, keys, values, *starts, 0.0, True, False, scale=scale
    )
    return output, normalizer


def flash_backward(
    gradient: Tensor,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    output: Tensor,
    normalizer: Tensor,
    query_starts: Tensor,
    key_starts: Tensor,
    most: int,
    most_keys: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of queries, listed keys and listed values."""
    # Random numbers are for dropout only, of which there is none; torch.nn.attention.varlen hands over the same.
    unused = torch.zeros(2, dtype=torch.uint64, device=query.device), torch.empty(0, device=query.device)
    starts = query_starts, key_starts, max(most, 2), most_keys
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(
        gradient, query, keys, values, output, normalizer, *starts, 0.0, True, *unused, scale=scale
    )
    return gradients
