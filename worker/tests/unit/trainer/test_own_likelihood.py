"""Which rollouts our own policy would hardly ever sample."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swarmgame.trainer.own_likelihood import LEAST_ROLLOUTS, ROUNDS, WINDOW, Floors, OwnLikelihood, implausible


def sampled(policy: torch.Tensor, count: int, length: int, seed: int) -> torch.Tensor:
    """Ids drawn from one distribution."""
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(policy.exp().expand(count, -1), length, replacement=True, generator=generator)


def policy(scale: float, seed: int = 0) -> torch.Tensor:
    return torch.log_softmax(torch.randn(100, generator=torch.Generator().manual_seed(seed)) * scale, -1)


def floors_of(logprobs: torch.Tensor) -> Floors:
    own = OwnLikelihood()
    own.add(logprobs.tolist())
    floors = own.floors()
    assert floors is not None
    return floors


@pytest.mark.parametrize("scale", [0.5, 2.0, 6.0])
@pytest.mark.parametrize("length", [1, 3, 8, 60])
def test_rollouts_of_the_same_policy_are_plausible(scale: float, length: int) -> None:
    ours = policy(scale)
    floors = floors_of(ours[sampled(ours, 64, length, 1)])
    others = ours[sampled(ours, 4000, length, 2)]
    assert float(implausible(others, torch.ones_like(others), floors).float().mean()) <= 1 / 200


def test_a_few_junk_tokens_in_a_long_rollout_are_found_and_one_rare_token_is_not() -> None:
    ours = policy(3.0)
    floors = floors_of(ours[sampled(ours, 64, 60, 1)])
    rows = ours[sampled(ours, 3, 60, 5)]
    rows[1, 20:28] = float(ours.min())
    rows[2, 30] = float(ours.min())
    assert implausible(rows, torch.ones_like(rows), floors).tolist() == [False, True, False]


def test_a_mean_far_below_our_own_is_found_where_no_window_is() -> None:
    floors = Floors(window=-4.0, mean=-1.0)
    rows = torch.full((2, 40), -0.5)
    rows[1] = -1.5
    assert implausible(rows, torch.ones_like(rows), floors).tolist() == [False, True]


def test_padding_counts_for_nothing_and_short_rollouts_as_if_the_rest_were_certain() -> None:
    floors = Floors(window=-1.0, mean=-1.0)
    rows, mask = torch.full((3, 12), -50.0), torch.zeros(3, 12)
    for row, length, each in ((0, 2, -3.9), (1, 2, -4.1), (2, 12, -0.9)):
        rows[row, :length], mask[row, :length] = each, 1
    assert WINDOW == 8
    assert implausible(rows, mask, floors).tolist() == [False, True, False]
    assert implausible(rows[:2, :2], mask[:2, :2], floors).tolist() == [False, True]


def test_a_policy_that_has_become_certain_still_accepts_what_is_a_little_less_likely() -> None:
    floors = floors_of(torch.full((16, 20), -0.001))
    assert floors.window == pytest.approx(-1.501)
    assert floors.mean == pytest.approx(-1.501)


def test_there_are_no_floors_without_rollouts_of_our_own_and_they_forget_and_come_back_exactly() -> None:
    own = OwnLikelihood()
    own.add([])
    own.add([(-1.0,)] * (LEAST_ROLLOUTS - 1))
    assert own.floors() is None
    own.add([(-9.0, -8.0)])
    first = own.floors()
    again = OwnLikelihood()
    again.load_state_dict(json.loads(json.dumps(own.state_dict())))
    assert again.floors() == first is not None
    for _ in range(ROUNDS):
        own.add([(-0.1,) * 9] * 4)
    assert own.floors() != first
    assert len(own.state_dict()) == ROUNDS


@given(
    rollouts=st.lists(
        st.lists(st.floats(-20.0, 0.0), min_size=0, max_size=3 * WINDOW), min_size=LEAST_ROLLOUTS + 4, max_size=20
    )
)
def test_windows_are_those_of_each_rollout_alone(rollouts: list[list[float]]) -> None:
    windows = [
        sum(each[start : start + WINDOW]) / WINDOW
        for each in rollouts
        if each
        for start in range(max(0, len(each) - WINDOW) + 1)
    ]
    means = [sum(each) / max(len(each), WINDOW) for each in rollouts if each]
    likelihood = OwnLikelihood()
    likelihood.add(rollouts)
    if not windows:
        assert likelihood.state_dict() == []
        return
    ((of_windows, of_means),) = likelihood.state_dict()
    for (count, total, squares, least), expected in ((of_windows, windows), (of_means, means)):
        assert count == len(expected)
        assert (total, least) == pytest.approx((sum(expected), min(expected)), abs=1e-6)
        assert squares == pytest.approx(sum(each * each for each in expected), abs=1e-6)
