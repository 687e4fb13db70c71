"""Log-probabilities from hidden states: the numbers of all logits, and never all logits; the kernels likewise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from swarmgame.trainer.grpo import logprobs as rowwise
from swarmgame.trainer.grpo.linear_logprobs import linear_logprobs
from swarmgame.trainer.grpo.logprobs import EarlyEos, ForbiddenIds, selective_log_softmax

ROWS, HIDDEN, VOCABULARY = 300, 16, 37


def _given(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(rows, HIDDEN, generator=generator, dtype=dtype) for rows in (ROWS, VOCABULARY))
    target = torch.randint(VOCABULARY, (ROWS,), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), target, torch.randn(ROWS, generator=generator, dtype=dtype)


@pytest.mark.parametrize("rows", [1, 100, 128, 299, 300, 1000])
def test_numbers_and_gradients_are_those_of_all_logits(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(rowwise, "CHUNK_ELEMENTS", VOCABULARY * rows)
    hidden, weight, target, upstream = _given()
    expected, entropies = selective_log_softmax(hidden @ weight.t(), target, 0.7, with_entropy=True)
    gradients = torch.autograd.grad((expected * upstream).sum(), (hidden, weight))
    ours, our_entropies = linear_logprobs(hidden, weight, target, 0.7)
    assert not our_entropies.requires_grad
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(our_entropies, entropies, atol=1e-5, rtol=1e-5)
    for one, other in zip(torch.autograd.grad((ours * upstream).sum(), (hidden, weight)), gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("frozen", [False, True], ids=["head trained", "head frozen"])
def test_ids_that_were_forbidden_count_as_impossible_in_numbers_and_gradients(
    monkeypatch: pytest.MonkeyPatch, frozen: bool
) -> None:
    monkeypatch.setattr(rowwise, "CHUNK_ELEMENTS", VOCABULARY * 100)
    hidden, weight, target, upstream = _given()
    weight.requires_grad_(not frozen)
    trained = (hidden,) if frozen else (hidden, weight)
    rows, ids = torch.arange(ROWS) % 3 == 0, torch.tensor([4, 30])
    rows &= ~torch.isin(target, ids)
    logits = (hidden @ weight.t()) / 0.7
    allowed = logits.masked_fill(rows.unsqueeze(1) & torch.isin(torch.arange(VOCABULARY), ids), -torch.inf)
    logprobs = allowed.log_softmax(-1)
    expected = logprobs.gather(1, target.unsqueeze(1)).squeeze(1)
    entropies = -(logprobs.exp() * logprobs.clamp(min=-1e9)).sum(1)
    gradients = torch.autograd.grad((expected * upstream).sum(), trained, retain_graph=True)
    forbidden = ForbiddenIds(rows, ids)
    for ours, our_entropies in (
        linear_logprobs(hidden, weight, target, 0.7, forbidden),
        selective_log_softmax(hidden @ weight.t(), target, 0.7, with_entropy=True, forbidden=forbidden),
    ):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(our_entropies, entropies, atol=1e-5, rtol=1e-5)
        for one, other in zip(torch.autograd.grad((ours * upstream).sum(), trained), gradients, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_eos_is_forbidden_before_the_minimum_length_but_not_where_it_stands() -> None:
    place, target = torch.tensor([0, 1, 2, 0, 1]), torch.tensor([5, 6, 1, 9, 1])
    forbidden = EarlyEos((1, 2), before=2).forbidden(place, target)
    assert forbidden.rows_N.tolist() == [True, True, False, True, False]
    assert forbidden.ids.tolist() == [1, 2]


def test_the_gradient_passes_gradcheck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rowwise, "CHUNK_ELEMENTS", 3 * 7)
    hidden, weight = (
        torch.randn(5, 4, dtype=torch.float64, requires_grad=True),
        torch.randn(7, 4, dtype=torch.float64, requires_grad=True),
    )
    target = torch.tensor([0, 6, 2, 2, 5])
    assert torch.autograd.gradcheck(lambda *given: linear_logprobs(*given, target, 0.7)[0], (hidden, weight))


def test_the_gradient_of_a_bfloat16_weight_is_added_up_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, target, upstream = _given(torch.float32)
    exact = torch.autograd.grad((linear_logprobs(hidden, weight, target)[0] * upstream).sum(), weight)[0]
    errors = []
    for rows in (10, 1000):  # thirty chunks, and one
        monkeypatch.setattr(rowwise, "CHUNK_ELEMENTS", VOCABULARY * rows)
        narrow = [tensor.detach().bfloat16().requires_grad_() for tensor in (hidden, weight)]
        logprobs, _ = linear_logprobs(*narrow, target)
        assert logprobs.dtype == torch.float32
        gradient = torch.autograd.grad((logprobs * upstream).sum(), narrow[1])[0]
        assert gradient.dtype == torch.bfloat16
        errors.append(float((gradient.float() - exact).norm() / exact.norm()))
    assert errors[0] < 1.1 * errors[1]


def test_under_a_frozen_head_the_gradient_is_the_same_and_one_row_per_token_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rowwise, "CHUNK_ELEMENTS", VOCABULARY * 100)
    hidden, weight, target, upstream = _given()
    (expected,) = torch.autograd.grad((linear_logprobs(hidden, weight, target, 0.7)[0] * upstream).sum(), hidden)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        logprobs, _ = linear_logprobs(hidden, weight.detach(), target, 0.7)
    (found,) = torch.autograd.grad((logprobs * upstream).sum(), hidden)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert kept == [ROWS * HIDDEN]


def test_nothing_as_large_as_all_logits_is_kept_for_the_backward_pass() -> None:
    hidden, weight, target, _ = _given()
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        logprobs, _ = linear_logprobs(hidden, weight, target)
    logprobs.sum().backward()
    assert len(kept) == 4
    assert max(kept) == ROWS * HIDDEN < ROWS * VOCABULARY


def test_no_rows_give_no_numbers() -> None:
    hidden, weight, target, _ = _given()
    logprobs, entropies = linear_logprobs(hidden[:0], weight, target[:0])
    logprobs.sum().backward()
    assert len(logprobs) == len(entropies) == 0
    assert weight.grad is not None
    assert not weight.grad.any()


INTERPRETED = """
import torch
from swarmgame.trainer.grpo import logprob_kernels as kernels
from swarmgame.trainer.grpo.logprobs import gradient_rows, score_rows

generator = torch.Generator().manual_seed(0)
for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 1e-5)):
    for vocabulary in (5, 16, 37):
        logits = (8 * torch.randn(3, vocabulary, generator=generator) + 40).to(dtype)
        logits[0, 0] = -torch.inf
        logits[1, -1] = 300.0
        target = torch.tensor([1, vocabulary - 1, 2])
        for temperature in (1.0, 0.7):
            expected = score_rows(logits, target, temperature)
            ours = kernels.score(logits, target, temperature, block=16)
            for one, other in zip(ours, expected, strict=True):
                torch.testing.assert_close(one, other, atol=5e-5, rtol=1e-5)
            upstream = torch.randn(3, generator=generator)
            reference = gradient_rows(logits, target, expected[2], upstream, temperature).to(dtype)
            found = logits.clone()
            kernels.gradient_(found, target, ours[2], upstream, temperature, block=16)
            atol, rtol = 5e-5 if dtype == torch.float32 else 2e-2, 1e-2 if dtype == torch.bfloat16 else 1e-4
            torch.testing.assert_close(found, reference, atol=atol, rtol=rtol)
print("equal")
"""


def test_the_kernels_give_the_numbers_of_torch_under_tritons_interpreter(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    script = tmp_path / "interpreted.py"
    script.write_text(INTERPRETED, encoding="utf-8")
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=240, env=environment, check=False
    )
    assert ran.stdout.strip().endswith("equal"), ran.stderr[-3000:]
