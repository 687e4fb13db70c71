"""The loss on its own: what adds up, what may be left out, what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from swarmgame.trainer.grpo.loss import (
    LossInputs,
    LossOptions,
    Mean,
    Normalizer,
    entropy_threshold,
    importance_weights,
    loss,
)

B, T, LONGEST = 7, 5, 8
FAMILY = ["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "gspo", "luspo", "sapo", "vespo"]


def options(loss_type="dapo", **more):
    return LossOptions(**({"epsilon_high": 5.0} if loss_type == "cispo" else {}) | {"loss_type": loss_type} | more)


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([5, 1, 3, 4, 2, 5, 3])
    new = -torch.rand(B, T, generator=generator) - 0.1
    return LossInputs(
        logprobs_BT=new.requires_grad_(),
        old_logprobs_BT=new.detach() + 0.3 * torch.randn(B, T, generator=generator),
        advantages_B=torch.tensor([1.0, -1.0, 0.0, 0.5, 0.0, -2.0, 0.7]),
        mask_BT=torch.arange(T) < lengths.unsqueeze(1),
        entropies_BT=torch.rand(B, T, generator=generator),
        reference_logprobs_BT=new.detach() + 0.3 * torch.randn(B, T, generator=generator),
        truncated_B=torch.tensor([True, False, False, True, False, False, False]),
        remote_importance_weights_BT=torch.rand(B, T, generator=generator) + 0.5,
    )


def rows(inputs, chosen):
    fields = {name: value if value is None else value[chosen] for name, value in vars(inputs).items()}
    return LossInputs(**fields)


def gradient(inputs, options, normalizer, parts):
    """Gradient with regard to the complete batch's log-probabilities, and the summed outputs."""
    inputs.logprobs_BT.grad = None
    outputs = [loss(rows(inputs, part), options, normalizer) for part in parts]
    sum(output.loss for output in outputs).backward()
    return inputs.logprobs_BT.grad.clone(), outputs


@pytest.mark.parametrize("loss_type", FAMILY)
@pytest.mark.parametrize(
    "more", [{}, {"beta": 0.2}, {"mask_truncated_completions": True}, {"top_entropy_quantile": 0.4}]
)
def test_micro_batches_add_up_to_the_whole_batch(loss_type, more):
    inputs, chosen = batch(), options(loss_type, **more)
    normalizer = Normalizer.of(inputs, chosen, LONGEST)
    if chosen.needs_entropies:
        threshold = entropy_threshold(inputs.entropies_BT[inputs.mask_BT], chosen)
        normalizer = Normalizer(normalizer.rollouts, normalizer.tokens, LONGEST, threshold)
    complete, [one] = gradient(inputs, chosen, normalizer, [list(range(B))])
    pieces, parts = gradient(inputs, chosen, normalizer, [[0, 3], [1], [2, 4, 5, 6]])
    torch.testing.assert_close(pieces, complete)
    assert complete.abs().max() > 1e-3
    assert sum(part.loss.item() for part in parts) == pytest.approx(one.loss.item(), abs=1e-6)
    for name, mean in one.metrics.items():
        merged = parts[0].metrics[name] + parts[1].metrics[name] + parts[2].metrics[name]
        assert merged.value == pytest.approx(mean.value, abs=1e-6), name


@pytest.mark.parametrize("loss_type", FAMILY)
def test_rollouts_without_advantage_may_be_left_out_without_changing_a_gradient(loss_type):
    inputs, chosen = batch(), options(loss_type)
    normalizer = Normalizer.of(inputs, chosen, LONGEST)
    complete, _ = gradient(inputs, chosen, normalizer, [list(range(B))])
    without, _ = gradient(inputs, chosen, normalizer, [[0, 1, 3, 5, 6]])
    assert torch.equal(complete, without)


@pytest.mark.parametrize("loss_type", FAMILY)
def test_what_stands_in_the_padding_has_no_influence(loss_type):
    inputs, chosen = batch(), options(loss_type, beta=0.1)
    normalizer = Normalizer.of(inputs, chosen, LONGEST)
    expected = loss(inputs, chosen, normalizer)
    garbage = {
        name: value.detach().masked_fill(~inputs.mask_BT, -math.inf)
        for name, value in vars(inputs).items()
        if name in ("logprobs_BT", "old_logprobs_BT", "reference_logprobs_BT", "entropies_BT")
    }
    spoilt = loss(LossInputs(**vars(inputs) | garbage), chosen, normalizer)
    assert spoilt.loss.item() == expected.loss.item()
    assert {name: mean.value for name, mean in spoilt.metrics.items()} == {
        name: mean.value for name, mean in expected.metrics.items()
    }


@pytest.mark.parametrize("loss_type", FAMILY)
def test_a_small_step_down_the_gradient_favours_good_rollouts(loss_type):
    inputs, chosen = batch(), options(loss_type)
    on_policy = LossInputs(inputs.logprobs_BT, None, inputs.advantages_B, inputs.mask_BT)
    direction, _ = gradient(on_policy, chosen, Normalizer.of(on_policy, chosen, LONGEST), [list(range(B))])
    for row, advantage in enumerate(inputs.advantages_B.tolist()):
        step = -direction[row][inputs.mask_BT[row]]
        assert (step * advantage > 0).all() if advantage else (step == 0).all()


def test_a_batch_of_truncated_rollouts_has_a_loss_of_zero_and_not_nan():
    inputs = rows(batch(), [0, 3])
    for loss_type in FAMILY:
        chosen = options(loss_type, mask_truncated_completions=True)
        output = loss(inputs, chosen, Normalizer.of(inputs, chosen, LONGEST))
        assert output.loss.item() == 0
        assert math.isnan(output.metrics["entropy"].value)


def test_importance_weights_are_one_where_both_agree_and_bounded_where_not():
    start = torch.tensor([[-1.0, -1.0, -1.0, -5.0]])
    sender = torch.tensor([[-1.0, -9.0, -1.5, -1.0]])
    weights = importance_weights(start, sender, torch.ones(1, 4), options(importance_cap=2.0, importance_floor=0.1))
    assert weights.tolist()[0] == pytest.approx([1.0, 2.0, math.exp(0.5), 0.1])
    masked = importance_weights(
        start, sender, torch.ones(1, 4), options(importance_mode="token_mask", importance_cap=2.0, importance_floor=0.1)
    )
    assert masked.tolist()[0] == pytest.approx([1.0, 0.0, math.exp(0.5), 0.0])


@pytest.mark.parametrize("mode", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
@pytest.mark.parametrize("claim", [math.nan, math.inf, -math.inf])
def test_a_sender_that_claims_invalid_numbers_gains_no_influence(mode, claim):
    start = torch.tensor([[-1.0, -1.0], [-1.0, -1.0]])
    sender = torch.tensor([[claim, -1.0], [-1.0, -1.0]])
    weights = importance_weights(start, sender, torch.ones(2, 2), options(importance_mode=mode, importance_floor=0.5))
    assert weights[0, 0] == 0
    assert weights[1, 0] == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss": "cispo"}, "cispo needs epsilonHigh"),
        ({"delta": 1.1}, "expected more than 1 \\+ epsilonHigh"),
        ({"loss": "vespo", "importanceMode": "sequence_mask"}, "token_truncate or token_mask"),
        ({"importanceFloor": 4}, "above importanceCap"),
        ({"loss": "ppo"}, "loss"),
        ({"epsilonhigh": 0.3}, "epsilonhigh"),
        ({"topEntropyQuantile": 0}, "greater than 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(given, message):
    with pytest.raises(ValidationError, match=message):
        LossOptions.model_validate(given)


@pytest.mark.parametrize(
    ("chosen", "missing", "message"),
    [
        ({"beta": 0.1}, "reference_logprobs_BT", "reference model"),
        ({"top_entropy_quantile": 0.5}, "entropies_BT", "entropies"),
        ({"mask_truncated_completions": True}, "truncated_B", "which rollouts were truncated"),
    ],
)
def test_a_missing_input_is_named(chosen, missing, message):
    inputs = LossInputs(**vars(batch()) | {missing: None})
    with pytest.raises(ValueError, match=message):
        loss(inputs, options(**chosen), Normalizer(B, 20, LONGEST))


def test_the_kl_is_a_mean_over_our_own_tokens_and_no_gradient_depends_on_it():
    inputs, chosen = batch(), options("dapo", beta=0.2)
    own = torch.tensor([True, True, True, False, False, False, False])
    mixed = replace(inputs, own_B=own)
    normalizer = Normalizer.of(inputs, chosen, LONGEST)
    gradients, [found] = gradient(mixed, chosen, normalizer, [list(range(B))])
    alone = loss(rows(inputs, own), chosen, normalizer).metrics["kl"]
    assert found.metrics["kl"].value == pytest.approx(alone.value, rel=1e-5)
    # The gradient of own rollouts is that of an update where all are our own; others have none of the reference.
    complete, _ = gradient(inputs, chosen, normalizer, [list(range(B))])
    torch.testing.assert_close(gradients[own], complete[own])
    without, _ = gradient(inputs, options("dapo"), normalizer, [list(range(B))])
    torch.testing.assert_close(gradients[~own], without[~own])
    assert math.isnan(loss(replace(mixed, own_B=own & ~own), chosen, normalizer).metrics["kl"].value)


def test_a_mean_of_nothing_is_nan():
    assert math.isnan(Mean(0.0, 0.0).value)
    assert (Mean(2.0, 1.0) + Mean(4.0, 3.0)).value == 1.5
