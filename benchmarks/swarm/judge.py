"""Rewards of a game whose scorer is away: each call takes as long as a remote judge or a compiler would, without using
this processor.
"""

from __future__ import annotations

import time
from typing import Annotated

from pydantic import Field

from swarmgame import GameState, Rewards
from swarmgame.rewards.reasoning_gym import ReasoningGymRewards, ReasoningGymRewardsConfig


class JudgedConfig(ReasoningGymRewardsConfig):
    """The rewards of reasoning-gym, and how long they take."""

    seconds: Annotated[float, Field(ge=0)] = 0.1
    """Each call waits so long before it scores."""


class JudgedRewards(ReasoningGymRewards):
    """reasoning-gym's own rewards, `seconds` later."""

    Config = JudgedConfig
    config: JudgedConfig

    def rewards(self, state: GameState) -> Rewards:
        time.sleep(self.config.seconds)
        return super().rewards(state)
