"""Rollouts of other peers whose tokens surprise us more than our own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from swarmgame.trainer.grpo.config import GRPOConfig
from swarmgame.trainer.grpo.denominators import denominators
from swarmgame.trainer.grpo.samples import TrainingSample
from swarmgame.trainer.rarity import RarityFactors, Surprise

SURPRISE = 0.2


def scale_of(probability: float, *, claimed: float | None = None, remote: bool = True, weighted: bool = True) -> float:
    """The factor of the advantage of a rollout of four tokens, each with that probability under our policy."""
    claims = (math.log(claimed or probability),) * 4
    own = None if weighted else claims
    sample = TrainingSample((1,), (2,) * 4, 1.0, False, own, claims if weighted else None, remote=remote)
    ours = torch.full((1, 4), math.log(probability))
    found = denominators([sample], ours, torch.ones(1, 4, dtype=torch.bool), GRPOConfig(), None, Surprise(SURPRISE))
    if found.scale_B is None:
        return 1.0
    assert float(sample.weight) == pytest.approx(
        min(1.0, probability / (claimed or probability)) * float(found.scale_B)
    )
    return float(found.scale_B)


@pytest.mark.parametrize(("probability", "expected"), [(0.95, 1.0), (0.8, 1.0), (0.6, 0.5), (0.01, SURPRISE / 0.99)])
def test_the_mean_of_1_minus_p_counts_up_to_that_of_our_own(probability: float, expected: float) -> None:
    assert scale_of(probability) == pytest.approx(expected)


def test_what_its_weight_takes_away_is_not_taken_twice() -> None:
    assert scale_of(0.1, claimed=0.9) == pytest.approx(1.0)  # weight 1/9: 0.9 / 9 is below
    assert scale_of(0.5, claimed=0.6) == pytest.approx(SURPRISE / (0.5 * 5 / 6))


def test_our_own_rollouts_stay_as_they_are() -> None:
    assert scale_of(0.01, remote=False, weighted=False) == 1.0
    assert scale_of(0.01, remote=False) == 1.0  # of an older version


def rare_sample(*, remote: bool) -> TrainingSample:
    """One with a token of 1 %, others of 90 %, and true claims."""
    logprobs = tuple(map(math.log, (0.9, 0.01, 0.9)))
    return TrainingSample((1,), (2,) * 3, 1.0, False, None, logprobs, remote=remote)


@pytest.mark.parametrize("remote", [True, False])
@pytest.mark.parametrize(("level", "factor"), [(0.02, 0.25), (0.01, 0.25), (0.005, 1.0)])
def test_a_rollout_with_a_rare_token_counts_by_the_factor_of_its_level(
    level: float, factor: float, remote: bool
) -> None:
    sample = rare_sample(remote=remote)
    ours = torch.tensor([[*sample.behavior_logprobs, -99.0]] * 2)  # type: ignore[misc]
    mask = torch.tensor([[True, True, True, False]] * 2)
    rarity = RarityFactors(np.array([float(np.float32(math.log(level)))]), np.array([0.25, 1.0]))
    batch = [sample, rare_sample(remote=True)]
    found = denominators(batch, ours, mask, GRPOConfig(), None, Surprise(1.0, rarity))
    assert found.scale_B is not None
    assert float(found.scale_B[0]) == pytest.approx(factor if remote else 1.0)
    assert float(sample.weight) == pytest.approx(factor if remote else 1.0)
    assert float(sample.offered) == pytest.approx(1.0), "what it would count without the factor"
    assert sample.initial_logprobs is not None
    assert sample.initial_logprobs.tolist() == pytest.approx(list(sample.behavior_logprobs or ()))


@pytest.mark.parametrize(("token", "factor"), [(2, 0.1), (3, 1.0)])
def test_a_rollout_with_an_unlikely_token_that_others_send_often_counts_by_the_factor_of_the_token(
    token: int, factor: float
) -> None:
    sample = rare_sample(remote=True)
    rarity = RarityFactors(np.array([-9.0]), np.array([0.5, 1.0]), {token: 0.1})
    ours = torch.tensor([[*sample.behavior_logprobs]])  # type: ignore[misc]
    found = denominators([sample], ours, torch.ones(1, 3, dtype=torch.bool), GRPOConfig(), None, Surprise(1.0, rarity))
    assert found.scale_B is not None
    assert float(found.scale_B) == pytest.approx(factor)
