"""Own rewards: whether what a group of another peer holds up as good is good by our own rollouts.

An advantage compares a rollout with others of its group, and a sender chooses those: a poor answer is far above the
mean of worse ones. So the reward of each rollout above the mean is ranked among those of our own rollouts that are
above the mean of their groups. The rank, a share in [0, 1], is the factor of its advantage: 1 where it is as good as
our best, as every right answer is where rewards are 0 or 1. Rollouts below the mean have the factor with which the
group's advantages still add up to 0. By environment, since rewards of different ones do not compare.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from swarmgame.game.state import GameState, GroupKey, Rewards

ROUNDS = 4
LEAST = 8
"""With fewer own rollouts of an environment nothing is ranked."""
_ROUNDING = 1e-9


class OwnRewards:
    """The rewards of our own good rollouts in the last `ROUNDS` rounds. Part of the checkpoint."""

    def __init__(self) -> None:
        self._rounds: deque[Mapping[str, Sequence[float]]] = deque(maxlen=ROUNDS)
        self._factors: dict[GroupKey, list[float]] = {}

    def begin(self, state: GameState, rewards: Rewards) -> None:
        """Add our own rollouts of a round, and rank the groups of other peers in it."""
        found: defaultdict[str, list[float]] = defaultdict(list)
        for key, _ in state.own_groups():
            found[_environment(state, key)] += _good(rewards.get(key, ()))
        self._rounds.append(dict(found))
        own = {name: sorted(v for each in self._rounds for v in each.get(name, ())) for name in self._names()}
        self._factors = {
            key: _factors(rewards.get(key, ()), own.get(_environment(state, key), ())) for key in state.external
        }

    def factor(self, key: GroupKey, position: int) -> float:
        """Return the factor of a rollout of another peer, in [0, 1]."""
        factors = self._factors.get(key, ())
        return factors[position] if position < len(factors) else 1.0

    def _names(self) -> set[str]:
        return {name for each in self._rounds for name in each}

    def state_dict(self) -> Sequence[Any]:
        return [{name: list(values) for name, values in each.items()} for each in self._rounds]

    def load_state_dict(self, state: Sequence[Any]) -> None:
        self._rounds.clear()
        self._rounds.extend(state)


def _environment(state: GameState, key: GroupKey) -> str:
    question = state.questions.get(key.question_id)
    return question.reference.environment if question is not None else ""


def _good(rewards: Sequence[float]) -> list[float]:
    """Return the rewards above their mean."""
    scored = [value for value in rewards if math.isfinite(value)]
    return [value for value in scored if value > fmean(scored) + _ROUNDING]


def _factors(rewards: Sequence[float], own: Sequence[float]) -> list[float]:
    """Return the factors of a group's rollouts.

    Args:
        own: sorted rewards of our own good rollouts.
    """
    good = _good(rewards)
    if not good or len(own) < LEAST:
        return [1.0] * len(rewards)
    mean = fmean(value for value in rewards if math.isfinite(value))
    above = math.fsum((value - mean) * _rank(value, own) for value in good)
    rest = above / math.fsum(value - mean for value in good)
    return [_rank(value, own) if value > mean + _ROUNDING else rest for value in rewards]


def _rank(value: float, own: Sequence[float]) -> float:
    return bisect_right(own, value + _ROUNDING) / len(own)
