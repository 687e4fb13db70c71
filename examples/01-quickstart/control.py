"""The control of the quickstart: the same game, with rewards shuffled within the batch.

A rise of the reward must come from the rewards. Here each round's rewards are dealt out again at random among the
rollouts, so their mean is still the true one, and nothing can be learnt from them: `swarmgame run game.yaml --name
control --set game.rewards.use=control:ShuffledRewards`.
"""

from __future__ import annotations

from random import Random

from swarmgame import GameState, Rewards
from swarmgame.rewards.reasoning_gym import ReasoningGymRewards
from swarmgame.seeds import derive_seed


class ShuffledRewards(ReasoningGymRewards):
    """True rewards, dealt out at random among all rollouts of the state."""

    def rewards(self, state: GameState) -> Rewards:
        true = super().rewards(state)
        if state.round.evaluation:
            return true
        pool = [reward for rewards in true.values() for reward in rewards]
        Random(derive_seed(state.round.peer_seed, "shuffle", len(pool))).shuffle(pool)
        dealt = iter(pool)
        return {key: [next(dealt) for _ in rewards] for key, rewards in true.items()}
