"""The operations of `ops.py` on a CUDA device: launches of the kernels in `triton_kernels.py`, and of cuBLAS.

A decode step reads every weight once and does little arithmetic, so what counts is the number of launches and the
bytes moved. A layer is eight launches: RMSNorm with the residual, QKV product, rotary + cache write + attention over
the shared prompt and the row's own tokens, output product, RMSNorm with the residual, gate/up product, SiLU, down
product. Products are cuBLAS's: kernels of our own, alone or with norm or activation taken along, were two to four
times slower (docs/decisions/0001-decode-step.md). Sampling reads the logits once, and one block of them again. Shapes:
B rows, H hidden size, V vocabulary.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from swarmgame.inference import triton_kernels as jit

VOCABULARY_BLOCK = 4096
"""Ids whose probabilities are summed by one program."""

SPLIT_ROWS = 128
"""Rows up to which a product with few outputs is divided along its inner dimension: undivided it keeps only some of the
multiprocessors busy.
"""

SPLIT_OUTPUTS = 1152
"""Outputs up to which a product is divided though its inner dimension is short: the 1,152 of Qwen2.5-0.5B's queries,
keys and values. A step of 72 rows on an H200 takes 0.978 ms with them in two parts, and 0.991 with them as one.
"""

_PROGRAMS = 264
"""Programs to aim for: two a multiprocessor of a Hopper GPU."""


def add_rms_norm(hidden: Tensor, delta: Tensor | None, scale: Tensor, epsilon: float) -> Tensor:
    """See `ops.add_rms_norm`."""
    out, (rows, size) = torch.empty_like(hidden), hidden.shape
    parts = 0 if delta is None else 1 if delta.dim() == 2 else len(delta)
    # One warp for a thousand numbers: more of them wait for each other longer than they save.
    block = triton.next_power_of_2(size)
    jit.rms_norm[(rows,)](
        hidden,
        delta if parts else hidden,
        scale,
        out,
        epsilon,
        rows,
        size,
        parts,
        block,
        num_warps=4 if parts > 1 else min(8, max(1, block // 1024)),
    )
    return out


def split_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See `ops.split_linear`: parts as one batched product. On an H200, 72 rows: 4,864 → 896 in four parts 6.5 µs
    where one product takes 8.3, and in two parts 896 → 896 4.1 where one takes 4.7, 896 → 1,152 4.5 where one takes
    5.1.
    """
    rows, inner = x.shape
    parts = 1 if x.dtype == torch.float32 else _parts(rows, inner, len(weight))
    if parts == 1:
        return F.linear(x, weight, bias)
    by_part = weight.view(len(weight), parts, -1).permute(1, 2, 0)
    return torch.bmm(x.view(rows, parts, -1).transpose(0, 1), by_part, out_dtype=torch.float32)


def _parts(rows: int, inner: int, outputs: int) -> int:
    """Return into how many parts a product is divided, by the sizes that were measured."""
    parts = 4 if inner >= 2 * outputs else 2 if outputs <= SPLIT_OUTPUTS else 1
    return 1 if rows > SPLIT_ROWS or inner % (64 * parts) else parts


def silu_mul(gate_up: Tensor) -> Tensor:
    """See `ops.silu_mul`."""
    rows, size = len(gate_up), gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, size)
    jit.silu_mul[(rows, triton.cdiv(size, 1024))](gate_up, out, size, 1024, num_warps=4)
    return out


def decode_attention(qkv: Tensor, layer: Any, lanes: Any, shape: Any) -> Tensor:
    """See `ops.decode_attention`."""
    rows, kv_heads, size, parts = qkv.shape[-2], shape.num_kv_heads, shape.head_dim, qkv.shape[:-2].numel()
    group, dtype = shape.num_heads // kv_heads, layer.keys.dtype
    block_d = max(16, triton.next_power_of_2(size))
    # Few rows leave multiprocessors without work, and long sequences take one program long: divide them.
    splits = (
        max(1, min(16, triton.next_power_of_2(_PROGRAMS // 2 // (rows * kv_heads) + 1) // 2))
        if shape.longest >= 256
        else 1
    )
    out: Tensor = layer.keys.new_empty(rows, kv_heads * group * size)
    partial = peaks = out
    if splits > 1:
        partial = torch.empty(rows * kv_heads * group * splits, size, dtype=torch.float32, device=qkv.device)
        peaks = torch.empty(rows * kv_heads * group * splits, 2, dtype=torch.float32, device=qkv.device)
    has_bias, has_norm = qkv.dim() == 3 and layer.bias is not None, layer.query_scale is not None
    block_n, warps, stages = _attention_tile(rows * kv_heads, block_d, dtype)
    jit.decode_attention[(rows, kv_heads, splits)](
        qkv, layer.bias if has_bias else qkv,
        shape.cos, shape.sin, layer.query_scale if has_norm else qkv, layer.key_scale if has_norm else qkv,
        layer.keys, layer.values, lanes.prompt_start, lanes.prompt_length, lanes.slot, lanes.length,
        out, partial, peaks, shape.scaling, layer.epsilon, layer.prompt_capacity, layer.steps, rows * qkv.shape[-1],
        kv_heads, group, size, max(16, triton.next_power_of_2(group)), block_d, block_n, splits, parts, has_bias,
        has_norm, "ieee" if dtype == torch.float32 else "tf32", num_warps=warps, num_stages=stages,
    )  # fmt: skip
    if splits > 1:
        jit.combine_splits[(rows * kv_heads * group,)](partial, peaks, out, size, block_d, splits, num_warps=1)
    return out


def _attention_tile(programs: int, block_d: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """Return the keys of a tile, the warps, and the stages of the pipeline that loads tiles."""
    many = programs >= 512  # enough programs that small ones fill the device better
    return 32 if many or block_d > 128 else 64, 2 if many else 4, 2 if dtype == torch.float32 else 3


def prefill_rotary(qkv: Tensor, layer: Any, shape: Any, positions: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """See `ops.prefill_rotary`."""
    rows, kv_heads, heads, size = len(qkv), shape.num_kv_heads, shape.num_heads, shape.head_dim
    query, key = qkv.new_empty(rows, heads, size), qkv.new_empty(rows, kv_heads, size)
    has_norm = layer.query_scale is not None
    jit.prefill_rotary[(rows,)](
        qkv, shape.cos, shape.sin, layer.query_scale if has_norm else qkv, layer.key_scale if has_norm else qkv,
        positions, places,
        layer.keys, layer.values, query, key, layer.epsilon, layer.prompt_capacity,
        kv_heads, heads // kv_heads, size, triton.next_power_of_2(heads), triton.next_power_of_2(size), has_norm,
        num_warps=4,
    )  # fmt: skip
    return query, key


def sample_tokens(
    logits: Tensor, source: Tensor, uniforms: Tensor, forbid_eos: Tensor, eos_ids: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """See `ops.sample_tokens`."""
    rows, vocabulary = logits.shape
    blocks = triton.cdiv(vocabulary, VOCABULARY_BLOCK)
    peaks, sums = torch.empty(2, rows, blocks, dtype=torch.float32, device=logits.device)
    jit.block_sums[(rows, blocks)](
        logits, forbid_eos, eos_ids, peaks, sums, 1.0 / temperature, vocabulary, len(eos_ids), blocks,
        VOCABULARY_BLOCK, num_warps=4
    )  # fmt: skip
    token = torch.empty(len(source), dtype=torch.long, device=logits.device)
    logprob = torch.empty(len(source), dtype=torch.float32, device=logits.device)
    jit.sample[(len(source),)](
        logits, source, forbid_eos, eos_ids, peaks, sums, uniforms, token, logprob, 1.0 / temperature, vocabulary,
        blocks, len(eos_ids), VOCABULARY_BLOCK, triton.next_power_of_2(blocks), num_warps=8,
    )  # fmt: skip
    return token, logprob


def advance(lanes: Any, batch: Any, sampled: Tensor, logprob: Tensor, eos_ids: Tensor, min_new_tokens: int) -> None:
    """See `ops.advance`."""
    count = len(lanes.token)
    jit.advance[(1,)](
        lanes.token, lanes.row, lanes.length, lanes.prompt_start, lanes.prompt_length, lanes.forbid_eos, lanes.uniform,
        sampled, logprob,
        batch.ids, batch.logprobs, batch.uniforms, batch.budget, batch.first_token, batch.prompt_start,
        batch.prompt_length, batch.queue, batch.state,
        eos_ids, count, batch.ids.shape[1], min_new_tokens, len(eos_ids), triton.next_power_of_2(count),
        batch.uniforms.numel() == 0, num_warps=4,
    )  # fmt: skip
