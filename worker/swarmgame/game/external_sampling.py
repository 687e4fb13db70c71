"""External sampling: which groups of other peers a peer trains on.

Pure functions. The candidates were verified and scored by this peer; their authors' claims are not used here.
`nonzero-advantage` is the rule of the SAPO paper (arXiv 2509.08721), which no release of GenRL implemented;
`top-score` is GenRL's rule, kept as a control. Invariant: the selection depends on the candidates and the seed, not on
their order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from swarmgame.game.state import GroupKey, PeerId, Rewards
from swarmgame.seeds import derive_seed


@dataclass(frozen=True, slots=True)
class ExternalSamplingPolicy:
    """How many groups of other peers are trained on, and which.

    Args:
        external_groups: most groups a round; 0 trains on own rollouts only.
        strategy: a name in `STRATEGIES`.
        max_per_peer: most groups of one author.
        max_staleness: greatest age of a group, in rounds.
    """

    external_groups: int = 0
    strategy: str = "nonzero-advantage"
    max_per_peer: int = 4
    max_staleness: int = 1


def has_nonzero_advantage(rewards: Sequence[float]) -> bool:
    """Return whether a group has a training signal: at least two scored rollouts with different rewards."""
    scored = [reward for reward in rewards if not math.isnan(reward)]
    return len(scored) >= 2 and max(scored) > min(scored)


def mean_reward(rewards: Sequence[float]) -> float:
    """Return the mean over the scored rollouts, NaN when there is none."""
    scored = [reward for reward in rewards if not math.isnan(reward)]
    return sum(scored) / len(scored) if scored else math.nan


Strategy = Callable[[Sequence[GroupKey], Rewards], Sequence[GroupKey]]
"""Maps candidates in random order to candidates in order of preference; it may leave some out."""


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
    """Return the groups of other peers to train on, at most `policy.external_groups`.

    Args:
        candidates: keys of verified groups of other peers; those that are too old or have no scored rollout are left
            out.
        rewards: our own scores.
        round: the current round, from which age is counted.
        seed: breaks ties.
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
