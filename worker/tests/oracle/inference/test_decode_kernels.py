"""The kernels of a decode step compute what `ops.py` defines: compiled on a CUDA device, by Triton's interpreter
elsewhere.
"""

from __future__ import annotations

import dataclasses
import types

import pytest
import torch
import torch.nn.functional as F
from tiny_models import DEVICE, EOS, PAD, PROMPTS, completions, tiny

from swarmgame.inference import arena, ops
from swarmgame.inference.arena import bucket
from swarmgame.inference.continuous_batching import EngineSampler
from swarmgame.inference.sampler import ONE_MINUS_EPS, SamplingParams

kernels = pytest.importorskip("swarmgame.inference.kernels", reason="Triton is not installed")

HALF = (
    torch.bfloat16 if DEVICE == "cuda" else torch.float16
)  # Triton's interpreter multiplies the bits of bfloat16 as integers
DTYPES = [torch.float32, HALF]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


@pytest.fixture(autouse=True)
def sequences_are_divided_in_few_parts_without_a_device(monkeypatch):
    """In 8, 4 or 2 parts for 1, 2 or 3 key heads, where a device would get 8 or 16: the interpreter runs one program
    after the other.
    """
    if DEVICE != "cuda":
        monkeypatch.setattr(kernels, "_PROGRAMS", 80)


def random(*size, dtype=torch.float32, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=TOLERANCE[expected.dtype], rtol=TOLERANCE[expected.dtype])


@pytest.mark.parametrize(("rows", "size"), [(1, 32), (5, 72), (17, 1300)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_and_activation(dtype, rows, size):
    x, scale = random(rows, size, dtype=dtype), random(size, dtype=dtype, seed=1)
    for delta in (None, random(rows, size, dtype=dtype, seed=2), random(3, rows, size, seed=3)):
        ours, reference = x.clone(), x.clone()
        assert_close(kernels.add_rms_norm(ours, delta, scale, 1e-6), ops.add_rms_norm(reference, delta, scale, 1e-6))
        assert_close(ours, reference)
    assert_close(kernels.silu_mul(x), ops.silu_mul(x))


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("rows", [1, 72, 129])
def test_a_product_in_parts_adds_up(rows, bias, monkeypatch):
    if DEVICE != "cuda":  # a product with another type for its result is CUDA's alone
        bmm = torch.bmm
        monkeypatch.setattr(torch, "bmm", lambda one, other, out_dtype: bmm(one.to(out_dtype), other.to(out_dtype)))
    x, weight = random(rows, 1024, dtype=HALF), random(256, 1024, dtype=HALF, seed=1) / 32
    added = random(256, dtype=HALF, seed=4) if bias else None
    product = kernels.split_linear(x, weight, added)
    assert product.shape == ((rows, 256) if rows > kernels.SPLIT_ROWS else (4, rows, 256))
    assert_close(ops.complete(product, added, HALF), F.linear(x, weight, added))
    if not bias:
        hidden, scale = random(rows, 256, dtype=HALF, seed=2), random(256, dtype=HALF, seed=3)
        assert_close(
            kernels.add_rms_norm(hidden.clone(), product, scale, 1e-6),
            ops.add_rms_norm(hidden.clone(), ops.split_linear(x, weight, None), scale, 1e-6),
        )


@pytest.mark.parametrize(
    ("rows", "inner", "outputs", "parts"),
    [
        (72, 4864, 896, 4),
        (72, 896, 896, 2),
        (72, 896, 1152, 2),
        (72, 896, 9728, 1),
        (129, 4864, 896, 1),
        (8, 400, 64, 1),
    ],
)
def test_products_with_few_outputs_are_divided(rows, inner, outputs, parts):
    assert kernels._parts(rows, inner, outputs) == parts


def attention_case(dtype, size, heads, kv_heads, norms, longest=64):
    """Five lanes: two share a prompt, one has no own tokens yet, one has a long past, one is idle."""
    angles = torch.arange(longest)[:, None] / 10.0 ** (torch.arange(size) % (size // 2) / size)
    shape = ops.AttentionShape(
        heads, kv_heads, size, size**-0.5, angles.cos().to(DEVICE, dtype), angles.sin().to(DEVICE, dtype), longest
    )
    lengths, starts, prompts = [3, 0, 17, 1, 0], [0, 0, 7, 27, 0], [7, 7, 20, 2, 0]
    long = partial_tensor(torch.long)
    lanes = ops.Lanes(
        long([0] * 5),
        long([4, 1, 2, 0, -1]),
        long([2, 0, 1, 4, 3]),
        long(lengths),
        long(starts),
        long(prompts),
        long([0] * 5),
        long([0] * 5),
    )
    scales = (random(size, dtype=dtype, seed=5), random(size, dtype=dtype, seed=6)) if norms else (None, None)
    layer = ops.LayerCache(
        random(ops.LayerCache.size(kv_heads, size, 32, 5, 24), dtype=dtype, seed=7),
        random(ops.LayerCache.size(kv_heads, size, 32, 5, 24), dtype=dtype, seed=8),
        32,
        24,
        *scales,
        1e-6,
    )
    return random(5, (heads + 2 * kv_heads) * size, dtype=dtype), layer, lanes, shape


def partial_tensor(dtype):
    return lambda values: torch.tensor(values, dtype=dtype, device=DEVICE)


def copied(layer):
    return dataclasses.replace(layer, keys=layer.keys.clone(), values=layer.values.clone())


@pytest.mark.parametrize(
    ("size", "heads", "kv_heads", "dtype", "longest", "norms"),
    [
        (8, 4, 2, torch.float32, 64, False),
        (8, 4, 2, HALF, 300, True),
        (16, 7, 1, torch.float32, 300, True),
        (16, 7, 1, HALF, 64, False),
        (24, 3, 3, torch.float32, 300, False),
        (24, 3, 3, HALF, 64, True),
        (64, 14, 2, torch.float32, 64, True),
        (64, 14, 2, HALF, 300, False),
    ],
)
def test_attention_over_a_shared_prompt_and_own_tokens(size, heads, kv_heads, dtype, longest, norms):
    """Every type with every length, with norms and without; every shape of heads with each of them."""
    qkv, layer, lanes, shape = attention_case(dtype, size, heads, kv_heads, norms, longest)
    ours, reference = copied(layer), copied(layer)
    expected = ops.decode_attention(qkv, reference, lanes, shape)
    assert_close(kernels.decode_attention(qkv, ours, lanes, shape)[:4], expected[:4])
    busy = lanes.slot[:4]
    assert_close(ours.own(ours.keys, shape)[busy], reference.own(reference.keys, shape)[busy])
    assert torch.equal(ours.own(ours.values, shape)[busy], reference.own(reference.values, shape)[busy])


@pytest.mark.parametrize(("longest", "biased", "norms"), [(64, False, True), (64, True, True), (300, True, False)])
def test_attention_adds_up_queries_keys_and_values_that_come_in_parts(longest, biased, norms):
    qkv, layer, lanes, shape = attention_case(HALF, 24, 4, 2, norms, longest)
    bias = random(qkv.shape[1], dtype=HALF, seed=4) if biased else None
    layer = dataclasses.replace(layer, bias=bias)
    parts = random(3, *qkv.shape, seed=3)
    added = (parts.sum(0) + (0 if bias is None else bias)).to(HALF)
    ours, of_parts, of_the_sum = copied(layer), copied(layer), copied(layer)
    expected = ops.decode_attention(added, of_the_sum, lanes, shape)
    assert_close(ops.decode_attention(parts, of_parts, lanes, shape), expected)
    assert_close(kernels.decode_attention(parts, ours, lanes, shape)[:4], expected[:4])
    busy = lanes.slot[:4]
    for mine, reference in ((ours.keys, of_the_sum.keys), (ours.values, of_the_sum.values)):
        assert_close(ours.own(mine, shape)[busy], ours.own(reference, shape)[busy])


@pytest.mark.parametrize("tile", [16, 128])
def test_attention_does_not_depend_on_the_tile(tile, monkeypatch):
    qkv, layer, lanes, shape = attention_case(torch.float32, 16, 2, 1, False)
    monkeypatch.setattr(kernels, "_attention_tile", lambda *_: (tile, 2, 2))
    expected = ops.decode_attention(qkv, copied(layer), lanes, shape)
    assert_close(kernels.decode_attention(qkv, copied(layer), lanes, shape)[:4], expected[:4])


@pytest.mark.parametrize("norms", [False, True], ids=["plain", "normed heads"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_prompt_tokens_are_rotated_and_cached(dtype, norms):
    _, layer, _, shape = attention_case(dtype, 24, 6, 3, norms)
    qkv, integers = random(6, 12 * 24, dtype=dtype), partial_tensor(torch.long)
    ours, reference = copied(layer), copied(layer)
    positions, places = integers([0, 1, 2, 0, 1, 2]), integers([4, 5, 6, 11, -1, -1])
    for actual, expected in zip(
        kernels.prefill_rotary(qkv, ours, shape, positions, places),
        ops.prefill_rotary(qkv, reference, shape, positions, places),
        strict=True,
    ):
        assert_close(actual, expected)
    assert_close(ours.keys, reference.keys)
    assert torch.equal(ours.values, reference.values)


@pytest.mark.parametrize("vocabulary", [19, 5000, 9001])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_tokens_are_those_of_the_inverted_distribution(vocabulary, temperature):
    """With very unequal and impossible tokens, random numbers close to 0 and 1, and EOS forbidden in some rows."""
    rows = 12
    logits = random(rows, vocabulary) * 3
    logits[3, : vocabulary // 2] = -torch.inf
    logits[4, vocabulary // 2 :] = -torch.inf
    logits[5, 4] = 200.0  # sure of EOS, which is forbidden in this row: every other probability is below 1e-80
    source = torch.arange(rows, device=DEVICE).repeat_interleave(3)
    uniforms = torch.rand(3 * rows, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    uniforms[::9], uniforms[1::9] = 0.0, ONE_MINUS_EPS
    forbid = torch.tensor([0, 1] * (rows // 2), dtype=torch.int32, device=DEVICE)
    eos = torch.tensor([4, 11], device=DEVICE)
    token, logprob = kernels.sample_tokens(logits, source, uniforms, forbid, eos, temperature)
    expected, expected_logprob = ops.sample_tokens(logits, source, uniforms, forbid, eos, temperature)
    # fp32 sums against fp64 ones: a number on a boundary may fall to the next token.
    assert (token == expected).float().mean() > 0.9
    allowed = torch.where(forbid[:, None] != 0, logits.index_fill(1, eos, -torch.inf), logits)
    scaled = (allowed / temperature).log_softmax(-1)[source]
    torch.testing.assert_close(logprob, scaled.gather(1, token[:, None])[:, 0], atol=2e-5, rtol=1e-5)
    assert logprob.isfinite().all()
    assert not torch.isin(token[forbid[source] != 0], eos).any()
    same = token == expected
    torch.testing.assert_close(logprob[same], expected_logprob[same], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
@pytest.mark.parametrize("vocabulary", [19, 4200])
def test_logits_that_are_not_finite_give_a_valid_id_without_a_logprob_and_leave_other_rows_alone(vocabulary, wrong):
    logits = random(3, vocabulary)
    logits[1, 7] = wrong
    source, uniforms = torch.arange(3, device=DEVICE), torch.full((3,), 0.4, dtype=torch.float64, device=DEVICE)
    forbid, eos = torch.zeros(3, dtype=torch.int32, device=DEVICE), torch.tensor([4], device=DEVICE)
    for module in (kernels, ops):
        token, logprob = module.sample_tokens(logits, source, uniforms, forbid, eos, 1.0)
        assert logprob.isnan().tolist() == [False, True, False], module
        assert ((token >= 0) & (token < vocabulary)).all()
        assert_close(logprob[::2], logits.log_softmax(-1).gather(1, token[:, None])[::2, 0])


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "smollm3", "olmo2"])
def test_a_complete_call_on_kernels_samples_what_the_definitions_sample(architecture, monkeypatch):
    """More completions than lanes: they wait, take the lanes of finished ones, and the last go on with fewer lanes."""
    model = tiny(architecture)
    monkeypatch.setattr(arena, "SYNC_EVERY", 3)
    monkeypatch.setattr(arena, "bucket", lambda size, *_: bucket(size, 8))  # prompts get little padding
    params, budgets = SamplingParams(6, min_new_tokens=2, temperature=1.1), [3, 6, 2, 1]
    samplers = [EngineSampler(model, (EOS, 4), PAD, kernels=module) for module in (kernels, ops)]
    for sampler in samplers:
        sampler.limit(4)
    ours, expected = (sampler.sample(PROMPTS, 2, params, 25, budgets=budgets) for sampler in samplers)
    assert [c.token_ids for c in completions(ours)] == [c.token_ids for c in completions(expected)]
    for one, other in zip(completions(ours), completions(expected), strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    assert samplers[0].occupancy == samplers[1].occupancy
    assert samplers[0].occupancy.lane_steps == 3 * 4 + 3 * 2
    assert any(completion.stopped and len(completion.token_ids) > 1 for completion in completions(ours))


@pytest.mark.parametrize(
    ("architecture", "more"),
    [("qwen2", {}), ("llama", {"attention_bias": True}), ("granite", {"attention_bias": True})],
)
def test_a_complete_call_with_products_in_parts_samples_the_same(architecture, more):
    """The attention and the reading of prompts add the bias of a product in parts; an output product with a bias comes
    complete.
    """
    model, params = tiny(architecture, **more), SamplingParams(6)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # zero as they are made
                parameter.copy_(random(*parameter.shape, seed=len(name)))
    divided = []

    def in_parts(x, weight, bias):
        divided.append(bias is not None)
        return torch.stack([F.linear(x[:, part::2], weight[:, part::2]) for part in range(2)])

    in_two = types.SimpleNamespace(**vars(ops) | {"split_linear": in_parts})
    ours, expected = (
        EngineSampler(model, (EOS,), PAD, kernels=module).sample(PROMPTS, 2, params, 5) for module in (in_two, ops)
    )
    assert set(divided) == {False, True}
    assert [c.token_ids for c in completions(ours)] == [c.token_ids for c in completions(expected)]
    for one, other in zip(completions(ours), completions(expected), strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
