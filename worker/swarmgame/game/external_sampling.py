"""Sharing: which groups of others a peer trains on.

Pure. Candidates were checked and re-scored by ourselves; what their authors claimed plays no part here.
`nonzero-advantage` is what the SAPO paper (arXiv 2509.08721) describes and no release of GenRL did; `top-score` is
GenRL's rule, kept as a control. Invariant: the choice depends on the candidates and the seed, not on the order in which
they came.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from swarmgame.game.state import GroupKey, PeerId, Rewards
from swarmgame.seeds import derive_seed


@dataclass(frozen=True, slots=True)
class ExternalSamplingPolicy:
    """How many groups of others are wanted, and which.

    Args:
        external_groups: at most so many a round; 0 trains on own rollouts alone.
        strategy: a name in `STRATEGIES`.
        max_per_peer: at most so many of one author.
        max_staleness: how many rounds old a group may be.
    """

    external_groups: int = 0
    strategy: str = "nonzero-advantage"
    max_per_peer: int = 4
    max_staleness: int = 1


def has_nonzero_advantage(rewards: Sequence[float]) -> bool:
    """Whether a group teaches anything: at least two scored rollouts that differ."""
    scored = [reward for reward in rewards if not math.isnan(reward)]
    return len(scored) >= 2 and max(scored) > min(scored)


def mean_reward(rewards: Sequence[float]) -> float:
    """Mean over the scored rollouts, NaN when there is none."""
    scored = [reward for reward in rewards if not math.isnan(reward)]
    return sum(scored) / len(scored) if scored else math.nan


Strategy = Callable[[Sequence[GroupKey], Rewards], Sequence[GroupKey]]
"""From candidates in a random order to candidates in order of preference; those left out are never used."""


def _nonzero_advantage(candidates: Sequence[GroupKey], rewards: Rewards) -> Sequence[GroupKey]:
    return [key for key in candidates if has_nonzero_advantage(rewards[key])]


def _uniform(candidates: Sequence[GroupKey], rewards: Rewards) -> Sequence[GroupKey]:
    return candidates


def _top_score(candidates: Sequence[GroupKey], rewards: Rewards) -> Sequence[GroupKey]:
    return sorted(candidates, key=lambda key: -mean_reward(rewards[key]))


STRATEGIES: Mapping[str, Strategy] = {
    "nonzero-advantage": _nonzero_advantage,
    "uniform": _uniform,
    "top-score": _top_score,
}


def select_external(
    candidates: Iterable[GroupKey], rewards: Rewards, policy: ExternalSamplingPolicy, *, round: int, seed: int
) -> tuple[GroupKey, ...]:
    """The groups of others to train on, at most `policy.external_groups`.

    Args:
        candidates: keys of foreign groups that were checked; those without a scored rollout or too old are left out
            here.
        rewards: our own scores.
        round: the present round, from which age is counted.
        seed: decides among equals.
    """
    usable = [
        key
        for key in candidates
        if round - key.round <= policy.max_staleness and not math.isnan(mean_reward(rewards.get(key, ())))
    ]
    shuffled = sorted(usable, key=lambda key: derive_seed(seed, *key))
    taken: list[GroupKey] = []
    by_author: dict[PeerId, int] = {}
    for key in STRATEGIES[policy.strategy](shuffled, rewards):
        if len(taken) == policy.external_groups:
            break
        if by_author.get(key.peer, 0) < policy.max_per_peer:
            by_author[key.peer] = by_author.get(key.peer, 0) + 1
            taken.append(key)
    return tuple(taken)
