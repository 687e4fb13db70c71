"""The packed pass gives the numbers of the plain pass: log-probabilities, entropies and gradients, compiled or not."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch._inductor.config
from peft import LoraConfig, get_peft_model
from scored_batches import ARCHITECTURES, Score, assert_equal, batch_of, numbers, packed, plain, small_model
from torch import Tensor

from swarmgame.trainer.grpo import packed_attention, packed_forward
from swarmgame.trainer.grpo.logprobs import EarlyEos
from swarmgame.trainer.grpo.packed_forward import supports_packing

SERVED = [*ARCHITECTURES, "granite", "phi3", "smollm3"]
PROMPTS = {"one token": [1], "one prompt": [9], "mixed": [1, 5, 12, 3, 5]}


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The operator of a CUDA device, its two kernels replaced by torch operations on a segment at a time."""
    monkeypatch.setattr(packed_attention, "flash_forward", _flash_forward)
    monkeypatch.setattr(packed_attention, "flash_backward", _flash_backward)
    monkeypatch.setattr(packed_forward, "is_fast", lambda *_: True)
    torch._dynamo.reset()
    # Compiling in this process: starting processes for it takes longer than what they would compile.
    with torch._inductor.config.patch(compile_threads=1):
        yield
    torch._dynamo.reset()


def _flash_forward(
    query: Tensor, keys: Tensor, values: Tensor, query_starts: Tensor, key_starts: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    most, most_keys, scale = rest
    assert query_starts.dtype == key_starts.dtype == torch.int32
    assert (int(query_starts.diff().max()), int(key_starts.diff().max())) == (most, most_keys)
    outputs, normalizers = [], []
    for queries, listed in _segments(query_starts, key_starts):
        scores, value = _scores(query[queries], keys[listed], scale), _repeated(values[listed], query)
        normalizers.append(scores.logsumexp(-1))
        outputs.append(torch.einsum("nqk,knd->qnd", scores.softmax(-1), value))
    return torch.cat(outputs).to(query.dtype), torch.cat(normalizers, dim=1)


def _flash_backward(
    gradient: Tensor, query: Tensor, keys: Tensor, values: Tensor, output: Tensor, normalizer: Tensor, *rest: Any
) -> Any:
    query_starts, key_starts, _, _, scale = rest
    of_query, of_keys, of_values = (torch.zeros_like(tensor) for tensor in (query, keys, values))
    gradient, query = gradient.float(), query.float()
    for queries, listed in _segments(query_starts, key_starts):
        share = (_scores(query[queries], keys[listed], scale) - normalizer[:, queries].unsqueeze(-1)).exp()
        of_share = torch.einsum("qnd,knd->nqk", gradient[queries], _repeated(values[listed], query))
        drift = (gradient[queries] * output[queries]).sum(-1).t().unsqueeze(-1)
        of_scores = share * (of_share - drift) * scale
        of_query[queries] = torch.einsum("nqk,knd->qnd", of_scores, _repeated(keys[listed], query))
        of_keys[listed] = _summed(torch.einsum("nqk,qnd->knd", of_scores, query[queries]), keys)
        of_values[listed] = _summed(torch.einsum("nqk,qnd->knd", share, gradient[queries]), keys)
    return of_query, of_keys, of_values


def _segments(query_starts: Tensor, key_starts: Tensor) -> list[tuple[slice, slice]]:
    bounds = zip(pairwise(query_starts.tolist()), pairwise(key_starts.tolist()), strict=True)
    return [(slice(*queries), slice(*keys)) for queries, keys in bounds]


def _scores(query: Tensor, keys: Tensor, scale: float) -> Tensor:
    scores = torch.einsum("qnd,knd->nqk", query.float(), _repeated(keys, query)) * scale
    length, count = scores.shape[1:]
    return scores.masked_fill(~torch.ones(length, count, dtype=torch.bool).tril(count - length), -torch.inf)


def _repeated(keys: Tensor, query: Tensor) -> Tensor:
    return keys.float().repeat_interleave(query.shape[1] // keys.shape[1], dim=1)


def _summed(gradient: Tensor, keys: Tensor) -> Tensor:
    return gradient.unflatten(1, (keys.shape[1], -1)).sum(2)


@pytest.mark.parametrize("architecture", SERVED)
@pytest.mark.parametrize("lengths", PROMPTS.values(), ids=PROMPTS)
def test_the_dense_mask_gives_the_numbers_of_the_plain_pass(architecture: str, lengths: list[int]) -> None:
    model = small_model(architecture)
    assert supports_packing(model)
    batch = batch_of(lengths)
    assert_equal(numbers(model, packed(model), batch), numbers(model, plain(model), batch))


def test_eos_that_was_forbidden_is_left_out_as_in_the_plain_pass() -> None:
    model, batch = small_model(), batch_of(PROMPTS["mixed"])
    early, free = EarlyEos((3, 5), 2), packed(model)
    ours = numbers(model, packed(model, early_eos=early), batch)
    assert_equal(ours, numbers(model, plain(model, early), batch))
    assert (ours["logprobs"] - free(*batch)[0]).abs().max() > 1e-3


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("architecture", SERVED)
def test_the_operator_gives_the_numbers_of_the_plain_pass(architecture: str) -> None:
    model = small_model(architecture)
    batch = batch_of(PROMPTS["mixed"])
    assert_equal(numbers(model, packed(model), batch), numbers(model, plain(model), batch))


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("checkpointed", [False, True])
def test_adapters_get_the_gradients_of_the_plain_pass_and_nothing_else_gets_any(checkpointed: bool) -> None:
    model = small_model()
    adapted = get_peft_model(
        model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    )
    batch = batch_of(PROMPTS["mixed"])
    expected = numbers(model, plain(model), batch)
    if checkpointed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    ours = numbers(model, packed(model), batch)
    assert_equal(ours, expected)
    assert len(ours) > 3
    assert all("lora_" in name or name in ("logprobs", "entropies", "mask") for name in ours)
    with adapted.disable_adapter(), torch.no_grad():
        torch.testing.assert_close(packed(model)(*batch)[0], plain(model)(*batch)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("emulated")
def test_gradient_checkpointing_keeps_less_and_gives_the_same_numbers() -> None:
    model = small_model()
    batch = batch_of(PROMPTS["mixed"])
    kept: list[int] = []

    def measured(score: Score) -> Score:
        def counted(*batch: Any) -> Any:
            sizes: list[int] = []
            with torch.autograd.graph.saved_tensors_hooks(
                lambda tensor: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor
            ):
                found = score(*batch)
            kept.append(sum(sizes))
            return found

        return counted

    expected = numbers(model, measured(packed(model)), batch)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert_equal(numbers(model, measured(packed(model)), batch), expected)
    assert kept[1] < 0.5 * kept[0]


@pytest.mark.usefixtures("emulated")
def test_one_compiled_layer_serves_all_layers_and_all_lengths(caplog: pytest.LogCaptureFixture) -> None:
    model = small_model(num_hidden_layers=3)
    score = packed(model, compile=True)
    frames: list[int] = []
    for lengths in ([5], [3, 9], PROMPTS["mixed"]):
        batch = batch_of(lengths)
        assert_equal(numbers(model, score, batch), numbers(model, plain(model), batch))
        frames.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert frames[0] == frames[-1], "other lengths must not be compiled again"
    assert not torch._dynamo.utils.counters["graph_break"]
    assert "could not be compiled" not in caplog.text


def test_a_layer_that_cannot_be_compiled_runs_uncompiled_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        def fail(*_: Any) -> Any:
            raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    model = small_model()
    batch = batch_of([4])
    score = packed(model, compile=True)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert_equal(numbers(model, score, batch), numbers(model, plain(model), batch))
    (record,) = [record for record in caplog.records if "could not be compiled" in record.message]
    assert "Failed to find C compiler" in record.message
    assert "compile: false" in record.message


def test_a_head_with_a_bias_is_called_as_it_is() -> None:
    model = small_model("llama")
    model.lm_head = torch.nn.Linear(32, 64, bias=True)
    batch = batch_of([4, 2])
    assert_equal(numbers(model, packed(model), batch), numbers(model, plain(model), batch))


@pytest.mark.parametrize(
    "changes",
    [
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
        {"architecture": "phi3", "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        {"architecture": "olmo2"},
    ],
    ids=["window", "angles that depend on the length", "partial rotation", "norms behind"],
)
def test_other_models_are_not_packed(changes: dict[str, Any]) -> None:
    assert not supports_packing(small_model(**changes))
