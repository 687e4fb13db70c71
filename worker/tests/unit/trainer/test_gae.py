"""Advantages of tokens and the value loss, by hand and by their properties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swarmgame.trainer.grpo.gae import (
    ValueInputs,
    explained_variance,
    token_advantages,
    token_rewards,
    value_loss,
    whitened,
)

numbers = st.floats(-10, 10, allow_nan=False)


def test_advantages_of_three_tokens_are_those_computed_by_hand() -> None:
    # Differences: 0.5 * 0.4 - 0.2 = 0, 0.5 * 0.8 - 0.4 = 0, 1 - 0.8 = 0.2; each later one counts 0.5 * 0.5 less.
    found = token_advantages([0.2, 0.4, 0.8], [0.0, 0.0, 1.0], gamma=0.5, lam=0.5)
    assert found == pytest.approx([0.0125, 0.05, 0.2])


@given(st.lists(numbers, min_size=1, max_size=12), numbers)
def test_lambda_1_compares_the_reward_and_lambda_0_the_next_value(values: list[float], reward: float) -> None:
    rewards = token_rewards(len(values), reward, ())
    far = token_advantages(values, rewards, gamma=1.0, lam=1.0)
    assert far == pytest.approx([reward - value for value in values], abs=1e-9)
    near = token_advantages(values, rewards, gamma=1.0, lam=0.0)
    following = [*values[1:], reward]
    assert near == pytest.approx([after - value for after, value in zip(following, values, strict=True)], abs=1e-9)


def test_a_perfect_value_function_leaves_no_advantage() -> None:
    assert token_advantages([1.0, 1.0], [0.0, 1.0], gamma=1.0, lam=0.9) == [0.0, 0.0]
    assert token_advantages([], token_rewards(0, 1.0, ()), gamma=1.0, lam=0.9) == []


def test_the_second_turn_of_a_game_has_no_part_in_the_reward_of_the_first() -> None:
    """Two turns of two tokens; the first was worth 1, the second -0.5. Values are 0, lambda is 1."""
    turns = ((1, 1.0), (3, -0.5))
    assert token_rewards(4, 0.5, turns) == [0.0, 1.0, 0.0, -0.5]
    found = token_advantages([0.0] * 4, token_rewards(4, 0.5, turns), gamma=1.0, lam=1.0)
    assert found == [0.5, 0.5, -0.5, -0.5]
    # With the reward at the end, or of a manager that judges otherwise, all tokens have the same.
    assert token_advantages([0.0] * 4, token_rewards(4, 0.5, ()), gamma=1.0, lam=1.0) == [0.5] * 4
    assert token_rewards(4, 2.0, turns) == [0.0, 0.0, 0.0, 2.0]


@given(st.lists(st.lists(numbers, min_size=1, max_size=4), min_size=1, max_size=5), numbers)
def test_whitening_has_a_mean_of_0_over_our_own_whatever_others_have(own: list[list[float]], sent: float) -> None:
    found = whitened([*own, [sent] * 50], [True] * len(own) + [False])
    flat = [value for each in found[:-1] for value in each]
    assert math.fsum(flat) / len(flat) == pytest.approx(0.0, abs=1e-6)
    assert found[:-1] == whitened([*own, [-sent]], [True] * len(own) + [False])[:-1]


def test_whitening_divides_by_the_unbiased_deviation() -> None:
    ((low, high),) = whitened([[-1.0, 1.0]], [True])
    assert (low, high) == pytest.approx((-1 / math.sqrt(2), 1 / math.sqrt(2)), rel=1e-3)
    assert whitened([[-1.0, 1.0]], [False]) == [[low, high]], "only others': compared among themselves"


def test_explained_variance_is_1_for_perfect_values_and_0_for_constant_ones() -> None:
    returns = [0.0, 1.0, 1.0, 0.0]
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance([0.5] * 4, returns) == 0.0
    assert explained_variance([1.0, 0.0, 0.0, 1.0], returns) == -3.0
    assert math.isnan(explained_variance([0.0, 1.0], [1.0, 1.0]))
    assert math.isnan(explained_variance([], []))


def test_a_value_beyond_the_clip_has_no_gradient_unless_it_moves_back() -> None:
    # The target is 1 and the old value 0, so up is right. 0.5 has moved further than 0.2, and -0.5 the wrong way.
    values = torch.tensor([[0.1, 0.5, -0.5, 9.0]], requires_grad=True)
    old, returns = torch.zeros(1, 4), torch.ones(1, 4)
    inputs = ValueInputs(values, old, returns, torch.tensor([[True, True, True, False]]))
    loss, metrics = value_loss(inputs, 3, 0.2)
    assert float(loss.detach()) == pytest.approx(0.5 * (0.9**2 + 0.8**2 + 1.5**2) / 3)
    loss.backward()
    assert values.grad is not None
    assert values.grad.tolist() == [pytest.approx([-0.3, 0.0, -0.5, 0.0])]
    assert metrics["value_clip"].value == pytest.approx(1 / 3)
    free, _ = value_loss(inputs, 3, None)
    assert float(free.detach()) == pytest.approx(0.5 * (0.9**2 + 0.5**2 + 1.5**2) / 3)
