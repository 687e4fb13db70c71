"""Advantages as properties: what centring and scaling may and may not do."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmgame.trainer.grpo.advantages import Scale, group_advantages, leave_one_out, ragged_advantages, scored_rollouts

REWARD = st.one_of(st.floats(-100, 100, width=32), st.sampled_from([0.0, 0.1, 1.0]))
GROUPS = st.lists(st.lists(REWARD, min_size=2, max_size=9), min_size=1, max_size=6)


@given(GROUPS, st.sampled_from(list(Scale)))
@settings(max_examples=150, deadline=None)
def test_the_advantages_of_a_group_sum_to_zero(groups, scale):
    for advantages in ragged_advantages(groups, scale=scale):
        assert math.fsum(advantages) == pytest.approx(0, abs=1e-6 * (1 + max(map(abs, advantages))))


@given(REWARD, st.integers(2, 33), st.sampled_from(list(Scale)), st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=150, deadline=None)
def test_equal_rewards_give_exactly_zero(reward, size, scale, dtype):
    other = torch.linspace(0, 1, size, dtype=dtype)
    rewards = torch.stack([torch.full((size,), reward, dtype=dtype), other])
    assert group_advantages(rewards, scale=scale)[0].tolist() == [0.0] * size
    assert leave_one_out(rewards)[0].tolist() == [0.0] * size


def test_the_mean_of_equal_floats_is_off_by_an_ulp_and_must_not_become_an_advantage():
    rewards = torch.full((1, 7), 0.1, dtype=torch.float64)
    assert (rewards - rewards.mean(dim=1, keepdim=True)).abs().max() > 0, "the trap that this test is about has gone"
    assert group_advantages(rewards).abs().max() == 0


@given(GROUPS, st.floats(-50, 50), st.sampled_from(list(Scale)))
@settings(max_examples=100, deadline=None)
def test_a_constant_added_to_a_groups_rewards_changes_nothing(groups, constant, scale):
    before = ragged_advantages(groups, scale=scale, epsilon=1e-2)
    after = ragged_advantages([[reward + constant for reward in group] for group in groups], scale=scale, epsilon=1e-2)
    for one, other in zip(before, after, strict=True):
        assert other == pytest.approx(one, abs=1e-6)


@given(GROUPS, st.sampled_from(list(Scale)))
@settings(max_examples=100, deadline=None)
def test_an_unscored_rollout_stays_nan_and_changes_no_other(groups, scale):
    without = ragged_advantages(groups, scale=scale)
    with_nan = ragged_advantages([[math.nan, *group] for group in groups], scale=scale)
    for one, other in zip(without, with_nan, strict=True):
        assert math.isnan(other[0])
        assert other[1:] == pytest.approx(one, abs=1e-9)


def test_group_scale_divides_by_the_unbiased_standard_deviation():
    rewards = torch.tensor([[1.0, 2.0, 3.0, 6.0]])
    expected = (rewards - 3) / (rewards.std(correction=1) + 1e-6)
    torch.testing.assert_close(group_advantages(rewards), expected)


def test_batch_scale_divides_every_group_by_the_same_number():
    rewards = torch.tensor([[0.0, 1.0], [0.0, 10.0]])
    advantages = group_advantages(rewards, scale=Scale.BATCH)
    assert advantages[1, 1] / advantages[0, 1] == pytest.approx(10)
    assert advantages[1, 1].item() == pytest.approx(5 / (rewards.std(correction=1).item() + 1e-6))


def test_leave_one_out_compares_with_the_mean_of_the_others():
    rewards = [1.0, 2.0, 6.0]
    [advantages] = ragged_advantages([rewards], baseline="leave-one-out")
    assert advantages == pytest.approx([1 - 4, 2 - 3.5, 6 - 1.5])


def test_the_update_s_baseline_is_the_mean_of_our_own_rollouts_alone():
    own, remote = [0.0, 1.0, 2.0], [9.0, 5.0]
    plain = ragged_advantages([own, remote], scale=Scale.NONE, baseline="update", own=[True, False])
    assert plain == [pytest.approx([-1, 0, 1]), pytest.approx([8, 4])]
    scaled = ragged_advantages([own, remote], scale=Scale.BATCH, baseline="update", own=[True, False], epsilon=0.0)
    assert scaled == plain  # the deviation of own rewards is 1
    assert ragged_advantages([own], scale=Scale.NONE, baseline="none") == [own]
    alone = ragged_advantages([remote], scale=Scale.NONE, baseline="update", own=[False])
    assert alone == [pytest.approx([2, -2])]


def test_equal_own_rewards_have_no_advantage_and_blow_up_none_of_others():
    found = ragged_advantages(
        [[0.1, 0.1, 0.1], [0.1, 0.3]], scale=Scale.BATCH, baseline="update", own=[True, False], epsilon=1e-6
    )
    assert found == [[0, 0, 0], pytest.approx([0, 0.2])]


def test_a_baseline_of_the_update_is_not_scaled_by_groups():
    with pytest.raises(ValueError, match="the scale is group"):
        ragged_advantages([[0.0, 1.0]], baseline="update")


@pytest.mark.parametrize("function", [group_advantages, leave_one_out])
@pytest.mark.parametrize("group", [[1.0], [math.nan, 1.0], [math.nan, math.nan]])
def test_a_group_with_fewer_than_two_scored_rollouts_is_an_error_that_names_it(function, group):
    fine = [0.0] * len(group) if len(group) > 1 else None
    rows = [fine, group] if fine else [group]
    with pytest.raises(ValueError, match=rf"groups \[{len(rows) - 1}\] have fewer than two"):
        function(torch.tensor(rows))


def test_an_infinite_reward_is_an_error():
    with pytest.raises(ValueError, match="infinite"):
        group_advantages(torch.tensor([[0.0, math.inf]]))


def test_an_unknown_baseline_is_an_error():
    with pytest.raises(ValueError, match="baseline is 'median'"):
        ragged_advantages([[0.0, 1.0]], baseline="median")


def test_scored_rollouts_are_those_that_are_not_nan():
    assert scored_rollouts([1.0, math.nan, 0.0]) == 2
    assert ragged_advantages([]) == []
