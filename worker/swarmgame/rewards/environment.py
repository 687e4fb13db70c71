"""The `environment` rewards: what the game's environment gave, in this peer's own play of each rollout."""

from __future__ import annotations

import math
from typing import Literal

from swarmgame.config import Config
from swarmgame.game.components import RewardManager
from swarmgame.game.state import GameState, Rewards, Rollout


class EnvironmentRewardsConfig(Config):
    """How the rewards of turns become that of a rollout."""

    turns: Literal["sum", "last"] = "sum"
    """The sum over turns, or the reward of the last turn that has one."""
    unfinished: float = 0.0
    """Reward of an episode that gave none, such as one whose budget ran out before its end."""


class EnvironmentRewards(RewardManager):
    """See the module. A rollout whose environment failed is not scored."""

    Config = EnvironmentRewardsConfig
    config: EnvironmentRewardsConfig

    @classmethod
    def needs_environment(cls, config: object) -> bool:
        return True

    def rewards(self, state: GameState) -> Rewards:
        return {
            key: [self._reward(rollout) for rollout in group.rollouts]
            for key, group in state.groups()
            if group.question_id in state.questions
        }

    def _reward(self, rollout: Rollout) -> float:
        if rollout.finish_reason == "error":
            return math.nan
        given = [reward for reward in rollout.turn_rewards if not math.isnan(reward)]
        if not given:
            return self.config.unfinished
        return given[-1] if self.config.turns == "last" else math.fsum(given)
