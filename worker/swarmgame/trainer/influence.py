"""Influence: how much of an update the rollouts of other peers may be.

Pure functions of numbers. The signal of a rollout is its absolute advantage, times its tokens where the loss is a mean
over tokens; with a weight of at most 1 it bounds the rollout's part of the gradient. All other peers together may be
`most` of an update's signal. One of them may be a part of that: its equal part among at least three, or what the
manifest gives a peer of the external groups (`maxPerPeer` of `externalGroups`), if that is more. What is beyond is
scaled down.

Tokens are not equal: the gradient of a log-probability is about 1 - p long, so tokens that the policy hardly ever
samples push it most, and rollouts made of them would have more of the gradient than of the signal. The mean of 1 - p
over a rollout of another peer counts up to that over our own (`OwnSurprise`); what is beyond is scaled down as well.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from swarmgame.game.state import PeerId

LEAST_AUTHORS = 3
ROUNDS = 16
"""Own updates whose mean signal counts where the present one has less: rounds without own signal are usual early."""


def scales(signals: Mapping[PeerId, float], own: float, most: float, part: float = 0.0) -> dict[PeerId, float]:
    """Return the factor for the rollouts of each author.

    Args:
        signals: of each other author in the update.
        own: our own signal, with which it is compared.
        most: largest share of all other authors together, in [0, 1]; 1: no bound.
        part: of `most`, what one author may have at least.

    Returns:
        In [0, 1] for every author: 1 for those within their share.
    """
    if most >= 1:
        return dict.fromkeys(signals, 1.0)
    share = most * min(1.0, max(part, 1 / max(LEAST_AUTHORS, len(signals))))
    ordered = sorted(signals.values(), reverse=True)
    total = own / (1 - most)  # of an update in which the others together are at their bound
    # With the j largest authors at their share, and the rest below, the signal is (own + the rest) / (1 - j share).
    for bounded in range(len(ordered) + 1):
        if bounded * share >= 1:
            break
        reached = (own + sum(ordered[bounded:])) / (1 - bounded * share)
        if bounded == len(ordered) or ordered[bounded] <= share * reached:
            total = min(total, reached)
            break
    kept = {peer: min(signal, share * total) for peer, signal in signals.items()}
    together = sum(kept.values())
    common = min(1.0, most * total / together) if together > 0 else 1.0
    return {peer: common * kept[peer] / signal if signal > 0 else 1.0 for peer, signal in signals.items()}


class OwnSurprise:
    """Mean of 1 - p over the tokens of our own rollouts with an advantage, in the last updates."""

    def __init__(self, recent: Iterable[Sequence[float]] = ()) -> None:
        self.recent: deque[tuple[float, float]] = deque(((total, size) for total, size in recent), maxlen=ROUNDS)

    def add(self, rollouts: Iterable[tuple[float, Sequence[float]]]) -> None:
        """Add an update.

        Args:
            rollouts: absolute advantage, and log-probability of each token.
        """
        total = size = 0.0
        for advantage, logprobs in rollouts:
            if advantage > 0:
                total -= advantage * sum(map(math.expm1, logprobs))
                size += advantage * len(logprobs)
        if size > 0:
            self.recent.append((total, size))

    @property
    def mean(self) -> float | None:
        """In [0, 1]; None while no own rollout has had an advantage."""
        size = sum(size for _, size in self.recent)
        return sum(total for total, _ in self.recent) / size if size > 0 else None


class OwnSignal:
    """Our own signal in the last updates. Part of the checkpoint."""

    def __init__(self, recent: Sequence[float] = ()) -> None:
        self.recent: deque[float] = deque(recent, maxlen=ROUNDS)

    def reference(self, signal: float, possible: float) -> float:
        """Add the signal of an update, and return the one that other peers' is compared with.

        Args:
            signal: of our own rollouts.
            possible: what it would be if each of them had an absolute advantage of 1; it counts as long as no recent
                update had any own signal.
        """
        self.recent.append(signal)
        return max(signal, fmean(self.recent)) or possible
