"""Rarity: how much of an update rollouts may be that our own policy seldom samples.

A sender decides how often it sends a text: one that our policy samples once in a thousand times may be half of what it
sends, with claims that are true. So two shares of the signal of all other peers together are compared with the same
shares of our own: of the rollouts whose least likely token, under our own policy, is below any level; and of those with
a given token where it is unlikely (a payload is the same few tokens again and again). A peer that samples what it sends
stays within both, however different its policy q is from ours, p: its weights are at most p / q, and the sum of
min(1, p / q) q over any rollouts is at most that of p. What is beyond is scaled down in the next update by own share /
theirs, for levels the least over all that are less rare. Before any rollout of others was seen, the own share of a
level is its factor. Identities do not matter. Pure state and numbers.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

UPDATES = 4
"""Updates that are compared: before them the policy was another one."""
LEAST_ROLLOUTS = 8
"""With fewer own rollouts that have a signal nothing is bounded."""
UNLIKELY = math.log(0.1)
"""A token with a lower log-probability is unlikely."""
UNSEEN = 2.0
"""Own rollouts that count as if they had a token, besides those that have: a share of 0 is not known from a few."""

Numbers = np.ndarray[Any, np.dtype[np.float64]]


class RatedRollout(NamedTuple):
    """A rollout as it is compared.

    Args:
        least: log-probability of its least likely token.
        signal: its part of an update, before weights.
        weight: mean importance weight, in [0, 1]; 1 of our own.
        unlikely: ids of its unlikely tokens.
    """

    least: float
    signal: float
    weight: float
    unlikely: Sequence[int]

    @classmethod
    def of(cls, ids: Sequence[int], logprobs: Sequence[float], signal: float, weight: float = 1.0) -> RatedRollout:
        unlikely = {token for token, logprob in zip(ids, logprobs, strict=True) if logprob < UNLIKELY}
        return cls(min(logprobs), signal, weight, sorted(unlikely))


@dataclass(frozen=True, slots=True)
class RarityFactors:
    """The factors of one update, each in [0, 1].

    Args:
        levels: log-probabilities of least likely tokens, sorted.
        factors: of rollouts at or below each level and above the one before; the last, 1, is of those above all levels.
        tokens: of rollouts with an unlikely token, by its id; 1 for others.
    """

    levels: Numbers
    factors: Numbers
    tokens: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Surprise:
    """What bounds the rollouts of other peers in one update.

    Args:
        mean: of 1 - p over our own rollouts, up to which that of another peer's rollout counts.
        rarity: factors of rare rollouts; None: there are too few own rollouts.
    """

    mean: float
    rarity: RarityFactors | None = None


class _Update:
    """The rollouts of one update, as they are compared."""

    def __init__(self, rollouts: Sequence[RatedRollout]) -> None:
        self.rollouts = rollouts
        self.signal = sum(each.signal for each in rollouts)
        ordered = sorted((each.least, each.signal * each.weight) for each in rollouts)
        self.levels: Numbers = np.array([least for least, _ in ordered])
        self._sums: Numbers = np.concatenate([[0.0], np.cumsum([signal for _, signal in ordered])])
        self.by_token: defaultdict[int, float] = defaultdict(float)
        """Weighted signal of the rollouts with each unlikely token."""
        for each in rollouts:
            for token in each.unlikely:
                self.by_token[token] += each.signal * each.weight

    def below(self, levels: Numbers) -> Numbers:
        """Return the weighted signal of the rollouts at or below each level."""
        return np.asarray(self._sums[np.searchsorted(self.levels, levels, side="right")])


class Rarity:
    """Our own rollouts and those of other peers in the last updates. Part of the checkpoint."""

    def __init__(self, state: Sequence[Any] = ((), ())) -> None:
        own, others = ([_Update([RatedRollout(*each) for each in update]) for update in updates] for updates in state)
        self._own: deque[_Update] = deque(own, maxlen=UPDATES)
        self._others: deque[_Update] = deque(others, maxlen=UPDATES)
        self._factors: RarityFactors | None = None
        self._is_compared = False

    def add_own(self, rollouts: Iterable[RatedRollout]) -> None:
        """Add our own rollouts of an update."""
        self._add(self._own, rollouts)

    def add_others(self, rollouts: Iterable[RatedRollout]) -> None:
        """Add rollouts of other peers of an update, with the weights that they would have without these factors."""
        self._add(self._others, rollouts)

    @property
    def factors(self) -> RarityFactors | None:
        """The factors of the next update; None: there are too few own rollouts."""
        if not self._is_compared:
            self._factors, self._is_compared = self._compared(), True
        return self._factors

    def _add(self, updates: deque[_Update], rollouts: Iterable[RatedRollout]) -> None:
        if found := [rollout for rollout in rollouts if rollout.signal > 0]:
            updates.append(_Update(found))
            self._is_compared = False

    def _compared(self) -> RarityFactors | None:
        count = sum(len(update.rollouts) for update in self._own)
        if count < LEAST_ROLLOUTS:
            return None
        levels = np.unique(np.concatenate([update.levels for update in (*self._own, *self._others)]))
        total = sum(update.signal for update in self._own)
        mean = total / count
        ours = (mean + sum(update.below(levels) for update in self._own)) / (mean + total)
        if not self._others:
            return RarityFactors(levels, np.append(ours, 1.0))
        sent = sum(update.signal for update in self._others)  # their weights are a part of what they send
        theirs = sum(update.below(levels) for update in self._others) / sent
        factors = np.divide(ours, theirs, out=np.ones_like(ours), where=theirs > ours)
        own_tokens, sent_tokens = _by_token(self._own), _by_token(self._others)
        tokens = {
            token: (own_tokens[token] + UNSEEN * mean) / (total + UNSEEN * mean) / (signal / sent)
            for token, signal in sent_tokens.items()
            if signal > 0
        }
        return RarityFactors(
            levels,
            np.minimum.accumulate([1.0, *factors[::-1]])[::-1].copy(),
            {token: factor for token, factor in sorted(tokens.items()) if factor < 1},
        )

    def state_dict(self) -> list[Any]:
        return [
            [[list(each) for each in update.rollouts] for update in updates] for updates in (self._own, self._others)
        ]


def _by_token(updates: Iterable[_Update]) -> defaultdict[int, float]:
    found: defaultdict[int, float] = defaultdict(float)
    for update in updates:
        for token, signal in update.by_token.items():
            found[token] += signal
    return found
