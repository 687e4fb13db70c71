"""Rewards with a slow scorer: each call waits as for a remote judge or a compiler, without using this processor."""

from __future__ import annotations

import time
from typing import Annotated

from pydantic import Field

from swarmgame import GameState, Rewards
from swarmgame.rewards.reasoning_gym import ReasoningGymRewards, ReasoningGymRewardsConfig


class JudgedConfig(ReasoningGymRewardsConfig):
    """The rewards of reasoning-gym with a delay."""

    seconds: Annotated[float, Field(ge=0)] = 0.1
    """Seconds that each call waits before it scores."""


class JudgedRewards(ReasoningGymRewards):
    """reasoning-gym's rewards after `seconds`."""

    Config = JudgedConfig
    config: JudgedConfig

    def rewards(self, state: GameState) -> Rewards:
        time.sleep(self.config.seconds)
        return super().rewards(state)
