"""Packed training on a CUDA device: torch's flash attention, the Triton kernels and the compiled layer give the
numbers of the plain pass.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from language_rounds import contribution_of, round_of, scored, state_of, trainer
from peft import LoraConfig, get_peft_model
from scored_batches import ARCHITECTURES, Score, assert_equal, batch_of, numbers, packed, plain, small_model
from torch import Tensor

from swarmgame.trainer.grpo import linear_logprobs as fused
from swarmgame.trainer.grpo.linear_logprobs import linear_logprobs
from swarmgame.trainer.grpo.logprobs import selective_log_softmax
from swarmgame.trainer.grpo.packed_attention import Segments, attend, visible_tokens
from swarmgame.trainer.grpo.packed_forward import is_fast
from swarmgame.trainer.grpo.packing import pack

SHAPE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "initializer_range": 0.1}
BATCH = ([1, 5, 40, 130, 5], 5, 90)


def error(found: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    """Distance of each tensor, relative to the exact one's length."""
    assert found.keys() == exact.keys()
    return {name: float((found[name] - exact[name]).norm() / exact[name].norm().clamp(min=1e-6)) for name in exact}


def _joined(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Log-probabilities, and all gradients as one."""
    gradients = [tensor.flatten() for name, tensor in found.items() if name not in ("logprobs", "entropies", "mask")]
    return {"logprobs": found["logprobs"], "gradient": torch.cat(gradients)}


@pytest.mark.parametrize("compiled", [False, True], ids=["uncompiled", "compiled"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_bfloat16_is_as_near_to_float32_as_plain_bfloat16(
    architecture: str, compiled: bool, device: str
) -> None:
    torch._dynamo.reset()
    batch = batch_of(*BATCH)
    model = small_model(architecture, **SHAPE).to(device, torch.bfloat16)
    assert is_fast(model)
    wide = small_model(architecture, **SHAPE).to(device)
    wide.load_state_dict({name: tensor.float() for name, tensor in model.state_dict().items()})
    exact = numbers(wide, plain(wide), batch)
    ours_found, theirs_found = (
        numbers(model, packed(model, compile=compiled), batch),
        numbers(model, plain(model), batch),
    )
    ours, theirs = error(ours_found, exact), error(theirs_found, exact)
    for name, distance in ours.items():
        if theirs[name] < 0.1:  # the bias of keys moves next to nothing: its gradient is rounding, either way
            assert distance <= 1.5 * theirs[name] + 0.01, (name, distance, theirs[name])
    assert (
        error(_joined(ours_found), _joined(exact))["gradient"]
        <= 1.3 * error(_joined(theirs_found), _joined(exact))["gradient"] + 0.005
    )


def test_flash_attention_with_shared_prompts_is_that_of_the_mask(device: str) -> None:
    layout = pack(*batch_of(*BATCH))
    index, *starts = (
        torch.from_numpy(part).to(device) for part in (layout.key_index_K, layout.query_starts_S, layout.key_starts_S)
    )
    starts = [part.int() for part in starts]
    generator = torch.Generator(device).manual_seed(0)
    found = []
    tokens = len(layout.token_T)
    given = [torch.randn(tokens, heads, 64, device=device, generator=generator) for heads in (14, 2, 2, 14)]
    for dtype, mask in ((torch.bfloat16, None), (torch.float32, visible_tokens(index, *starts))):
        query, key, value = (tensor.bfloat16().to(dtype).requires_grad_() for tensor in given[:3])
        output = attend(
            query, key, value, Segments(index, *starts, layout.longest_query, layout.longest_key, mask), 0.125
        )
        gradients = torch.autograd.grad(output, (query, key, value), given[3].bfloat16().to(dtype))
        found.append([output.detach().float(), *(gradient.float() for gradient in gradients)])
    for one, other in zip(*found, strict=True):
        assert float((one - other).norm() / other.norm()) < 0.01


@pytest.mark.parametrize("chunk_rows", [128, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernels_give_the_numbers_of_all_logits(
    dtype: torch.dtype, chunk_rows: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, hidden_size, vocabulary = 1000, 64, 5003
    monkeypatch.setattr(fused, "CHUNK_BYTES", chunk_rows * vocabulary * dtype.itemsize)
    generator = torch.Generator(device).manual_seed(0)
    hidden, weight = (
        torch.randn(count, hidden_size, device=device, generator=generator).to(dtype) for count in (rows, vocabulary)
    )
    target = torch.randint(vocabulary, (rows,), device=device, generator=generator)
    upstream = torch.randn(rows, device=device, generator=generator)
    assert fused._kernels(hidden) is not None
    ours, wide = ([tensor.to(kind).requires_grad_() for tensor in (hidden, weight)] for kind in (dtype, torch.float64))
    logprobs, entropies = linear_logprobs(*ours, target, 0.7)
    exact, exact_entropies = selective_log_softmax(wide[0] @ wide[1].t(), target, 0.7, with_entropy=True)
    assert exact_entropies is not None
    bound = 2e-5 if dtype == torch.float32 else 0.03  # bfloat16 logits of standard deviation 8: 0.021 on an H200
    pairs = [(logprobs, exact), (entropies, exact_entropies)]
    gradients = [
        torch.autograd.grad((found * upstream).sum(), leaves) for found, leaves in ((logprobs, ours), (exact, wide))
    ]
    for one, other in [*pairs, *zip(*gradients, strict=True)]:
        assert float((one.double() - other).norm() / other.norm()) < bound


def test_checkpointed_adapters_get_the_gradients_of_the_plain_pass(device: str) -> None:
    torch._dynamo.reset()
    model = small_model(**SHAPE).to(device, torch.bfloat16)
    get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    batch = batch_of(*BATCH)
    expected = numbers(model, plain(model), batch)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    found = numbers(model, packed(model, compile=True), batch)
    assert found.keys() == expected.keys()
    for name, distance in error(_joined(found), _joined(expected)).items():
        assert distance < 0.06, (name, distance)


def test_float32_on_a_device_keeps_the_padded_layout(cache: Path, device: str) -> None:
    assert not trainer(cache, device=device, dtype="float32").policy.packed
    assert trainer(cache, device=device).policy.packed


def test_the_packed_update_is_that_of_a_cpu(cache: Path, device: str) -> None:
    torch._dynamo.reset()
    there, here = trainer(cache, device=device, generations=8), trainer(cache, dtype="float32", generations=8)
    state = state_of(round_of(), [contribution_of(here, round_of())])
    moments = []
    for learner in (there, here):
        metrics = learner.train(state, scored(state))
        assert metrics["steps"] == 1
        saved = learner.state_dict()["optimization"]["moments"]
        moments.append({name: values["exp_avg"].float().cpu() for name, values in saved.items()})
    one, other = (torch.cat([gradient.flatten() for gradient in found.values()]) for found in moments)
    assert float(torch.nn.functional.cosine_similarity(one, other, dim=0)) > 0.99
    assert float(one.norm() / other.norm()) == pytest.approx(1.0, abs=0.03)


def test_a_layer_that_cannot_be_compiled_trains_all_the_same(
    cache: Path, device: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        def fail(*_: Any) -> Any:
            raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    learner = trainer(cache, device=device, generations=8)
    state = state_of(round_of(), [contribution_of(learner, round_of())])
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert learner.train(state, scored(state))["steps"] == 1
    assert caplog.text.count("could not be compiled") == 1


def test_the_layer_is_compiled_once_for_all_lengths(device: str, caplog: pytest.LogCaptureFixture) -> None:
    torch._dynamo.reset()
    model = small_model(**SHAPE, num_hidden_layers=3).to(device, torch.bfloat16)
    score: Score = packed(model, compile=True)
    graphs = []
    for lengths in ([30], [3, 90], BATCH[0]):
        numbers(model, score, batch_of(lengths, 4, 50))
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert "could not be compiled" not in caplog.text
    assert graphs[0] == graphs[-1]


def test_a_micro_batch_makes_the_host_wait_for_nothing(cache: Path, device: str) -> None:
    learner = trainer(cache, device=device, generations=8, layout="packed")
    state = state_of(round_of(), [contribution_of(learner, round_of())])
    learner.train(state, scored(state))  # compiles, and allocates
    backward = learner._backward

    def unsynchronised(*given: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return backward(*given)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    learner._backward = unsynchronised  # type: ignore[method-assign]
    assert learner.train(state, scored(state))["steps"] == 1


def test_a_step_that_is_not_finite_is_left_out(cache: Path, device: str) -> None:
    learner = trainer(cache, device=device, generations=8)
    state = state_of(round_of(), [contribution_of(learner, round_of())])
    learner.train(state, scored(state))
    before = learner.state_dict()["optimization"]
    score = learner.policy.score
    learner.policy.score = lambda *given: (score(*given)[0] * math.nan, *score(*given)[1:])  # type: ignore[method-assign]
    assert learner.train(state, scored(state))["steps_skipped"] == 1
    after = learner.state_dict()["optimization"]
    assert_equal(after["weights"], before["weights"])
    for name, values in before["moments"].items():
        assert_equal(after["moments"][name], values)
