"""The control of the example: the same game, with the rewards of each round shuffled among its rollouts.

Their mean is unchanged, but they carry no training signal, so held-out answers must not get better:
`swarmgame run game.yaml --name control --set game.rewards.use=control:ShuffledRewards`.
"""

from __future__ import annotations

from random import Random

from swarmgame import GameState, Rewards, derive_seed
from swarmgame.rewards.exact import ExactRewards


class ShuffledRewards(ExactRewards):
    """The true rewards, shuffled among all rollouts of the state."""

    def rewards(self, state: GameState) -> Rewards:
        true = super().rewards(state)
        if state.round.evaluation:
            return true
        pool = [reward for rewards in true.values() for reward in rewards]
        Random(derive_seed(state.round.peer_seed, "shuffle", len(pool))).shuffle(pool)
        shuffled = iter(pool)
        return {key: [next(shuffled) for _ in rewards] for key, rewards in true.items()}
