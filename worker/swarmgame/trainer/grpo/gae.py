"""Generalized advantage estimation and the loss of a value function, as pure functions.

A rollout is one episode; its reward comes with its last token, or parts of it with the last tokens of turns.
Invariants: the statistics that scale advantages are of our own rollouts, and the value loss is of our own alone, so
other peers move neither. Shapes: B rollouts, T completion tokens.

Source: GAE (arXiv 1506.02438) eq. 16; PPO (arXiv 1707.06347), with the clipped value loss of its reference code. Names
of options are those that TRL's PPOConfig had.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from swarmgame.trainer.grpo.loss import Mean

EPSILON = 1e-4
"""Added to the standard deviation of advantages, as to that of rewards."""


def token_advantages(values: Sequence[float], rewards: Sequence[float], *, gamma: float, lam: float) -> list[float]:
    """Return the advantage of each token of a rollout.

    Args:
        values: of the state before each token; behind the last there is none.
        rewards: of each token.
        gamma: discount a token.
        lam: weight of later temporal differences, in [0, 1]: 1 is the sum of discounted rewards minus the value.
    """
    advantages = [0.0] * len(values)
    following = behind = 0.0
    for at in range(len(values) - 1, -1, -1):
        difference = rewards[at] + gamma * behind - values[at]
        following = difference + gamma * lam * following
        advantages[at], behind = following, values[at]
    return advantages


def token_rewards(tokens: int, reward: float, turns: Sequence[tuple[int, float]]) -> list[float]:
    """Return the reward of each token of a rollout.

    Args:
        tokens: how many there are.
        reward: of the rollout.
        turns: last token and reward of turns. They are used where they add up to the rollout's; another reward is that
            of a reward manager which judges the rollout as a whole, and stands at its end.
    """
    given = [0.0] * tokens
    if turns and math.isclose(math.fsum(each for _, each in turns), reward, rel_tol=1e-6, abs_tol=1e-9):
        for at, each in turns:
            given[at] += each
    elif tokens:
        given[-1] = reward
    return given


def whitened(advantages: Sequence[Sequence[float]], counted: Sequence[bool]) -> list[list[float]]:
    """Return advantages minus their mean, over their standard deviation.

    Args:
        advantages: one list a rollout.
        counted: the rollouts whose tokens mean and (unbiased) deviation are of; where there is none, of all.
    """
    if not any(counted):
        counted = [True] * len(advantages)
    found = [value for each, counts in zip(advantages, counted, strict=True) if counts for value in each]
    if not found:
        return [list(each) for each in advantages]
    mean = math.fsum(found) / len(found)
    variance = math.fsum((value - mean) ** 2 for value in found) / max(1, len(found) - 1)
    scale = math.sqrt(variance) + EPSILON
    return [[(value - mean) / scale for value in each] for each in advantages]


def explained_variance(values: Sequence[float], returns: Sequence[float]) -> float:
    """Return 1 - Var(returns - values) / Var(returns): 1 for a perfect value function, 0 for a constant; NaN where
    all returns are equal.
    """
    if len(returns) < 2:
        return math.nan
    spread = _variance(returns)
    missed = _variance([reached - value for reached, value in zip(returns, values, strict=True)])
    return 1 - missed / spread if spread > 0 else math.nan


def _variance(numbers: Sequence[float]) -> float:
    mean = math.fsum(numbers) / len(numbers)
    return math.fsum((number - mean) ** 2 for number in numbers) / len(numbers)


@dataclass(frozen=True)
class ValueInputs:
    """A micro-batch of values.

    Args:
        values_BT: of the states before each token, with gradient.
        old_values_BT: the same before the update.
        returns_BT: what they should be: old values plus advantages.
        mask_BT: 1 on the tokens that count: of our own rollouts.
    """

    values_BT: Tensor
    old_values_BT: Tensor
    returns_BT: Tensor
    mask_BT: Tensor


def value_loss(inputs: ValueInputs, tokens: int, clip: float | None) -> tuple[Tensor, Mapping[str, Mean]]:
    """Return half the mean squared error of a micro-batch, to be added to those of the others, and metrics.

    Args:
        tokens: of our own rollouts in the complete update.
        clip: how far a value may move from the old one before its gradient is cut; None: as far as it will.
    """
    mask = inputs.mask_BT.float()
    values = inputs.values_BT.float().masked_fill(~inputs.mask_BT.bool(), 0.0)
    error = (values - inputs.returns_BT) ** 2
    is_clipped = torch.zeros_like(mask)
    if clip is not None:
        bounded = inputs.old_values_BT + (values - inputs.old_values_BT).clamp(-clip, clip)
        beyond = (bounded - inputs.returns_BT) ** 2
        is_clipped = (beyond > error).float()
        error = torch.maximum(error, beyond)
    loss = 0.5 * (error * mask).sum() / max(1, tokens)
    count = mask.sum()
    return loss, {
        "value_loss": Mean(0.5 * (error.detach() * mask).sum(), count),
        "value_clip": Mean((is_clipped * mask).sum(), count),
    }
