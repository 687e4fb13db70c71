"""Triton kernels of a decode step: the code that runs on the device. `kernels.py` launches it, and `ops.py` defines
what it computes.

Shapes: B rows, H hidden size, V vocabulary. Sources: online softmax (arXiv 1805.02867), FlashDecoding (keys divided
among programs).
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import triton
import triton.language as tl


# ── norm and activation
@triton.jit
def rms_norm(
    x_ptr, delta_ptr, scale_ptr, out_ptr, epsilon, B, H: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    inner = tl.arange(0, BLOCK)
    scale = tl.load(scale_ptr + inner, mask=inner < H, other=0.0)  # on its way while the sum is made
    x = tl.load(x_ptr + row * H + inner, mask=inner < H, other=0.0).to(tl.float32)
    if PARTS > 0:
        for part in tl.static_range(PARTS):
            x += tl.load(delta_ptr + (part * B + row) * H + inner, mask=inner < H, other=0.0).to(tl.float32)
        x = x.to(x_ptr.dtype.element_ty)
        tl.store(x_ptr + row * H + inner, x, mask=inner < H)
        x = x.to(tl.float32)
    normed = (x * tl.rsqrt(tl.sum(x * x, axis=0) / H + epsilon)).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * H + inner, (normed * scale).to(out_ptr.dtype.element_ty), mask=inner < H)


@triton.jit
def silu_mul(x_ptr, out_ptr, N, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(x_ptr + row * 2 * N + column, mask=column < N, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * 2 * N + N + column, mask=column < N, other=0.0)
    silu = (gate * tl.sigmoid(gate)).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * N + column, (silu * up).to(out_ptr.dtype.element_ty), mask=column < N)


# ── attention
@triton.jit
def summed(
    x_ptr, bias_ptr, base, places, mask, part_size, dtype: tl.constexpr, PARTS: tl.constexpr, HAS_BIAS: tl.constexpr
):
    """Load places of one row of a product, add up its parts and its bias, and round as one product would be; fp32."""
    x = tl.load(x_ptr + base + places, mask=mask, other=0.0).to(tl.float32)
    for part in tl.static_range(1, PARTS):
        x += tl.load(x_ptr + part * part_size + base + places, mask=mask, other=0.0)
    if HAS_BIAS:
        x += tl.load(bias_ptr + places, mask=mask, other=0.0).to(tl.float32)
    return x.to(dtype).to(tl.float32)


@triton.jit
def rotated(x, partner, sign, cos, sin, scale_ptr, dims, epsilon, D: tl.constexpr, HAS_NORM: tl.constexpr):
    """Normalise heads [R, D] where the model does, and rotate them; `partner` holds the other number of each pair."""
    if HAS_NORM:
        factor = tl.rsqrt(tl.sum(x * x, axis=1) / D + epsilon)[:, None]
        x = x * factor * tl.load(scale_ptr + dims, mask=dims < D, other=0.0).to(tl.float32)[None, :]
        rolled = (dims + D // 2) % D
        partner = partner * factor * tl.load(scale_ptr + rolled, mask=dims < D, other=0.0).to(tl.float32)[None, :]
    return x * cos[None, :] + partner * sign[None, :] * sin[None, :]


@triton.jit
def decode_attention(
    qkv_ptr, bias_ptr, cos_ptr, sin_ptr, query_scale_ptr, key_scale_ptr, keys_ptr, values_ptr, prompt_start_ptr,
    prompt_length_ptr, slot_ptr,
    length_ptr, out_ptr, partial_ptr, peak_ptr, scaling, epsilon, prompt_capacity, steps, part_size,
    K: tl.constexpr, G: tl.constexpr, D: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr, SPLITS: tl.constexpr, PARTS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    lane, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    dtype: tl.constexpr = keys_ptr.dtype.element_ty
    prompt_length, length = tl.load(prompt_length_ptr + lane).to(tl.int32), tl.load(length_ptr + lane).to(tl.int32)
    slot, prompt_start = tl.load(slot_ptr + lane).to(tl.int64), tl.load(prompt_start_ptr + lane)
    dims, group = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_G)
    prompt_run = (head * prompt_capacity + prompt_start).to(tl.int64)
    own_run = (K * prompt_capacity + (slot * K + head) * steps).to(tl.int64)
    partner, sign = (dims + D // 2) % D, tl.where(dims < D // 2, -1.0, 1.0)
    angle = (prompt_length + length) * D + dims
    cos = tl.load(cos_ptr + angle, mask=dims < D, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + angle, mask=dims < D, other=0.0).to(tl.float32)
    base = lane * (K * G + 2 * K) * D
    query_rows = (head * G + group[:, None]) * D
    real = (group[:, None] < G) & (dims[None, :] < D)
    query = rotated(
        summed(qkv_ptr, bias_ptr, base, query_rows + dims[None, :], real, part_size, dtype, PARTS, HAS_BIAS),
        summed(qkv_ptr, bias_ptr, base, query_rows + partner[None, :], real, part_size, dtype, PARTS, HAS_BIAS),
        sign, cos, sin, query_scale_ptr, dims, epsilon, D, HAS_NORM,
    )  # fmt: skip
    query = (query * scaling).to(dtype)
    peak = tl.full((BLOCK_G,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_G,), tl.float32)
    attended = tl.zeros((BLOCK_G, BLOCK_D), tl.float32)
    if split == 0:
        # The new token itself: its key and value go to the cache, and the softmax begins with it.
        one = tl.arange(0, 1)
        key_row, inside = (K * G + head) * D + one[:, None] * D, dims[None, :] < D
        key = rotated(
            summed(qkv_ptr, bias_ptr, base, key_row + dims[None, :], inside, part_size, dtype, PARTS, HAS_BIAS),
            summed(qkv_ptr, bias_ptr, base, key_row + partner[None, :], inside, part_size, dtype, PARTS, HAS_BIAS),
            sign, cos, sin, key_scale_ptr, dims, epsilon, D, HAS_NORM,
        ).to(dtype)  # fmt: skip
        key = tl.reshape(key, (BLOCK_D,))
        value_row = (K * G + K + head) * D + dims
        value = summed(qkv_ptr, bias_ptr, base, value_row, dims < D, part_size, dtype, PARTS, HAS_BIAS).to(dtype)
        tl.store(keys_ptr + (own_run + length) * D + dims, key, mask=dims < D)
        tl.store(values_ptr + (own_run + length) * D + dims, value, mask=dims < D)
        peak = tl.sum(query.to(tl.float32) * key.to(tl.float32)[None, :], axis=1)
        total = tl.full((BLOCK_G,), 1.0, tl.float32)
        attended += value.to(tl.float32)[None, :]
    chunk = tl.cdiv(prompt_length + length, SPLITS)
    start = split * chunk
    stop = tl.minimum(start + chunk, prompt_length + length)
    # One loop over the prompt's keys and the row's own, which lie in one buffer, so that there is one ramp of loads.
    for first in range(start, stop, BLOCK_N):
        place = first + tl.arange(0, BLOCK_N)
        # Multiplied by D behind the choice: only then does the compiler see that a row begins at a multiple of 16
        # bytes, and loads ahead.
        offset = tl.where(place < prompt_length, prompt_run + place, own_run + place - prompt_length) * D
        keys = tl.load(
            keys_ptr + offset[None, :] + dims[:, None], mask=(place[None, :] < stop) & (dims[:, None] < D), other=0.0
        )
        values = tl.load(
            values_ptr + offset[:, None] + dims[None, :], mask=(place[:, None] < stop) & (dims[None, :] < D), other=0.0
        )
        scores = tl.dot(query, keys, input_precision=PRECISION)
        scores = tl.where(place[None, :] < stop, scores, -float("inf"))
        higher = tl.maximum(peak, tl.max(scores, axis=1))
        shares = tl.exp(scores - higher[:, None])
        faded = tl.exp(peak - higher)
        attended = attended * faded[:, None] + tl.dot(shares.to(values.dtype), values, input_precision=PRECISION)
        total = total * faded + tl.sum(shares, axis=1)
        peak = higher
    out = (lane * K * G + head * G + group[:, None]) * D + dims[None, :]
    if SPLITS == 1:
        tl.store(out_ptr + out, (attended / total[:, None]).to(out_ptr.dtype.element_ty), mask=real)
    else:
        row = (lane * K * G + head * G + group) * SPLITS + split
        tl.store(partial_ptr + row[:, None] * D + dims[None, :], attended, mask=real)
        tl.store(peak_ptr + row * 2, peak, mask=group < G)
        tl.store(peak_ptr + row * 2 + 1, total, mask=group < G)


@triton.jit
def combine_splits(partial_ptr, peak_ptr, out_ptr, D: tl.constexpr, BLOCK_D: tl.constexpr, SPLITS: tl.constexpr):
    head = tl.program_id(0)
    dims, split = tl.arange(0, BLOCK_D), tl.arange(0, SPLITS)
    peaks = tl.load(peak_ptr + (head * SPLITS + split) * 2)
    totals = tl.load(peak_ptr + (head * SPLITS + split) * 2 + 1)
    factors = tl.exp(peaks - tl.max(peaks, axis=0))
    parts = tl.load(
        partial_ptr + (head * SPLITS + split[:, None]) * D + dims[None, :], mask=dims[None, :] < D, other=0.0
    )
    result = tl.sum(parts * factors[:, None], axis=0) / tl.sum(totals * factors, axis=0)
    tl.store(out_ptr + head * D + dims, result.to(out_ptr.dtype.element_ty), mask=dims < D)


@triton.jit
def prefill_rotary(
    qkv_ptr, cos_ptr, sin_ptr, query_scale_ptr, key_scale_ptr, position_ptr, place_ptr, keys_ptr, values_ptr, query_ptr,
    key_ptr,
    epsilon, prompt_capacity, K: tl.constexpr, G: tl.constexpr, D: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr, HAS_NORM: tl.constexpr,
):  # fmt: skip
    """Rotate the queries and keys of one prompt token, and write keys and values to the cache at `place` (padding has
    none: -1).
    """
    token = tl.program_id(0).to(tl.int64)
    dims, heads = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_R)
    partner, sign = (dims + D // 2) % D, tl.where(dims < D // 2, -1.0, 1.0)
    angle = tl.load(position_ptr + token) * D + dims
    cos = tl.load(cos_ptr + angle, mask=dims < D, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + angle, mask=dims < D, other=0.0).to(tl.float32)
    base = token * (K * G + 2 * K) * D
    place = tl.load(place_ptr + token)
    rows = base + heads[:, None] * D
    real = (heads[:, None] < K * G) & (dims[None, :] < D)
    query = rotated(
        tl.load(qkv_ptr + rows + dims[None, :], mask=real, other=0.0).to(tl.float32),
        tl.load(qkv_ptr + rows + partner[None, :], mask=real, other=0.0).to(tl.float32),
        sign, cos, sin, query_scale_ptr, dims, epsilon, D, HAS_NORM,
    )  # fmt: skip
    tl.store(
        query_ptr + token * K * G * D + heads[:, None] * D + dims[None, :],
        query.to(query_ptr.dtype.element_ty),
        mask=real,
    )
    real = (heads[:, None] < K) & (dims[None, :] < D)
    rows = base + (K * G + heads[:, None]) * D
    key = rotated(
        tl.load(qkv_ptr + rows + dims[None, :], mask=real, other=0.0).to(tl.float32),
        tl.load(qkv_ptr + rows + partner[None, :], mask=real, other=0.0).to(tl.float32),
        sign, cos, sin, key_scale_ptr, dims, epsilon, D, HAS_NORM,
    )  # fmt: skip
    key = key.to(key_ptr.dtype.element_ty)
    tl.store(key_ptr + token * K * D + heads[:, None] * D + dims[None, :], key, mask=real)
    value = tl.load(qkv_ptr + base + (K * G + K + heads[:, None]) * D + dims[None, :], mask=real, other=0.0)
    cached = (heads[:, None].to(tl.int64) * prompt_capacity + place) * D + dims[None, :]
    real = real & (place + 0 * heads[:, None] >= 0)
    tl.store(keys_ptr + cached, key, mask=real)
    tl.store(values_ptr + cached, value, mask=real)


# ── sampling
@triton.jit
def block_sums(
    logits_ptr,
    forbid_ptr,
    eos_ptr,
    peak_ptr,
    sum_ptr,
    inverse_temperature,
    V,
    EOS: tl.constexpr,
    BLOCKS,
    BLOCK: tl.constexpr,
):
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    ids = block * BLOCK + tl.arange(0, BLOCK)
    logits = tl.load(logits_ptr + row * V + ids, mask=ids < V, other=-float("inf")).to(tl.float32) * inverse_temperature
    if tl.load(forbid_ptr + row) != 0:
        for index in range(EOS):
            logits = tl.where(ids == tl.load(eos_ptr + index), -float("inf"), logits)
    peak = tl.max(logits, axis=0)
    # A block of which all logits are -inf has no probability, and must not become NaN.
    weights = tl.exp(logits - tl.where(peak == -float("inf"), 0.0, peak))
    tl.store(peak_ptr + row * BLOCKS + block, peak)
    tl.store(sum_ptr + row * BLOCKS + block, tl.sum(weights, axis=0))


@triton.jit
def sample(
    logits_ptr, source_ptr, forbid_ptr, eos_ptr, peak_ptr, sum_ptr, uniform_ptr, token_ptr, logprob_ptr,
    inverse_temperature, V, BLOCKS,
    EOS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_BLOCKS: tl.constexpr,
):  # fmt: skip
    lane = tl.program_id(0)
    row = tl.load(source_ptr + lane).to(tl.int64)
    block = tl.arange(0, BLOCK_BLOCKS)
    real = block < BLOCKS
    peaks = tl.load(peak_ptr + row * BLOCKS + block, mask=real, other=-float("inf"))
    peak = tl.max(peaks, axis=0)
    factors = tl.where(peaks == -float("inf"), 0.0, tl.exp(peaks - peak))
    weights = tl.load(sum_ptr + row * BLOCKS + block, mask=real, other=0.0) * factors
    normalizer = peak + tl.log(tl.sum(weights, axis=0))
    cumulative = tl.cumsum(weights, axis=0)
    uniform = tl.load(uniform_ptr + lane)
    target = uniform * tl.sum(weights, axis=0)
    chosen = tl.min(tl.where((cumulative > target) & (weights > 0.0), block, BLOCK_BLOCKS), axis=0)
    last = tl.max(tl.where(weights > 0.0, block, 0), axis=0)
    chosen = tl.minimum(chosen, last)  # the target may equal the sum, after rounding
    own = tl.sum(tl.where(block == chosen, weights, 0.0), axis=0)
    before = tl.sum(tl.where(block == chosen, cumulative, 0.0), axis=0) - own
    within = tl.minimum(tl.maximum((target - before) / own, 0.0), 1.0)
    ids = chosen * BLOCK + tl.arange(0, BLOCK)
    logits = tl.load(logits_ptr + row * V + ids, mask=ids < V, other=-float("inf")).to(tl.float32) * inverse_temperature
    if tl.load(forbid_ptr + row) != 0:
        for index in range(EOS):
            logits = tl.where(ids == tl.load(eos_ptr + index), -float("inf"), logits)
    weights = tl.exp(logits - tl.max(logits, axis=0))
    cumulative = tl.cumsum(weights, axis=0)
    target = within * tl.sum(weights, axis=0)
    place = tl.min(tl.where((cumulative > target) & (weights > 0.0), ids, V), axis=0)
    place = tl.minimum(place, tl.max(tl.where(weights > 0.0, ids, 0), axis=0))
    logit = tl.sum(tl.where(ids == place, logits, 0.0), axis=0)
    tl.store(token_ptr + lane, place.to(tl.int64))
    tl.store(logprob_ptr + lane, logit - normalizer)


@triton.jit
def advance(
    token_ptr, row_ptr, length_ptr, start_ptr, prompt_length_ptr, forbid_ptr, uniform_ptr, sampled_ptr, logprob_ptr,
    ids_ptr, logprobs_ptr,
    uniforms_ptr, budget_ptr, first_ptr, row_start_ptr, row_length_ptr, queue_ptr, state_ptr, eos_ptr, LANES, STEPS,
    MINIMUM,
    EOS: tl.constexpr, BLOCK: tl.constexpr, GREEDY: tl.constexpr,
):  # fmt: skip
    lane = tl.arange(0, BLOCK)
    real = lane < LANES
    row = tl.load(row_ptr + lane, mask=real, other=-1)
    length = tl.load(length_ptr + lane, mask=real, other=0)
    active = row >= 0
    token = tl.load(sampled_ptr + lane, mask=active, other=0)
    place = row * STEPS + length + 1
    tl.store(ids_ptr + place, token, mask=active)
    tl.store(logprobs_ptr + place, tl.load(logprob_ptr + lane, mask=active, other=0.0), mask=active)
    tl.store(state_ptr + 3, tl.load(state_ptr + 3) + tl.sum(active.to(tl.int64), axis=0))
    done = active & (length + 2 >= tl.load(budget_ptr + row, mask=active, other=0))
    for index in range(EOS):
        done = done | (active & (token == tl.load(eos_ptr + index)))
    free = real & ((row < 0) | done)
    first, queued = tl.load(state_ptr), tl.load(state_ptr + 1)
    turn = first + tl.cumsum(free.to(tl.int64), axis=0) - 1
    taken = free & (turn < queued)
    row = tl.where(taken, tl.load(queue_ptr + turn, mask=taken, other=-1), tl.where(free, -1, row))
    active = row >= 0
    tl.store(token_ptr + lane, tl.where(taken, tl.load(first_ptr + row, mask=taken, other=0), token), mask=real)
    tl.store(row_ptr + lane, row, mask=real)
    length = tl.where(taken | (row < 0), 0, length + 1)
    tl.store(length_ptr + lane, length, mask=real)
    tl.store(start_ptr + lane, tl.load(row_start_ptr + row, mask=active, other=0), mask=real)
    tl.store(prompt_length_ptr + lane, tl.load(row_length_ptr + row, mask=active, other=0), mask=real)
    tl.store(forbid_ptr + lane, (length + 1 < MINIMUM).to(tl.int32), mask=real)
    if not GREEDY:
        tl.store(
            uniform_ptr + lane,
            tl.load(uniforms_ptr + row * STEPS + length + 1, mask=active & (length + 1 < STEPS), other=0.0),
            mask=real,
        )
    first += tl.sum(taken.to(tl.int64), axis=0)
    tl.store(state_ptr, first)
    tl.store(state_ptr + 2, tl.sum(active.to(tl.int64), axis=0) + queued - first)
