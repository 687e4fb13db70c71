"""The `composite` rewards: a weighted sum of other rewards.

Invariant: the sum of a rollout is NaN when one of the rewards could not score it (NaN).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, cast

from pydantic import BaseModel, Field, FiniteFloat

from swarmgame.config import Config
from swarmgame.game.components import ComponentContext, RewardManager
from swarmgame.game.lookup import find_component, validate_config
from swarmgame.game.reward_checks import ScoringFailure, checked_rewards
from swarmgame.game.state import GameState, Question, Rewards

_PATH = "spec.game.rewards.with"
_GROUP = "swarmgame.rewards"


class WeightedReward(Config):
    """One of the rewards."""

    use: str
    """Its name, or `package.module:Class`."""
    with_: Annotated[dict[str, Any], Field(alias="with")] = Field(default_factory=dict)
    """Its configuration."""
    weight: Annotated[FiniteFloat, Field(ge=-1e9, le=1e9)] = 1.0
    """Its factor in the sum; negative for a penalty."""


class CompositeRewardsConfig(Config):
    """The rewards of the sum."""

    rewards: Annotated[tuple[WeightedReward, ...], Field(min_length=1, max_length=16)]
    """The rewards, in order."""


class CompositeRewards(RewardManager):
    """See the module."""

    Config = CompositeRewardsConfig
    config: CompositeRewardsConfig

    def __init__(self, config: CompositeRewardsConfig, context: ComponentContext | None = None) -> None:
        super().__init__(config, context or ComponentContext())
        self._components: list[RewardManager] = []
        try:
            for index, entry in enumerate(config.rewards):
                component, entry_config = _resolved(entry, f"{_PATH}.rewards[{index}]")
                self._components.append(component(entry_config, self.context))
        except BaseException:
            self.close()
            raise
        self.full_reward = self._full_reward()

    def rewards(self, state: GameState) -> Rewards:
        weighted = [
            (entry.weight, checked_rewards(component.rewards(state), state, type(component).__name__))
            for entry, component in zip(self.config.rewards, self._components, strict=True)
        ]
        self.full_reward = self._full_reward()
        keys = [key for key, _ in state.groups() if all(key in rewards for _, rewards in weighted)]
        return {
            key: [_sum(weighted, scores) for scores in zip(*(rewards[key] for _, rewards in weighted), strict=True)]
            for key in keys
        }

    def _full_reward(self) -> float:
        """Return the sum of the parts; that of a part may depend on the questions that it has scored."""
        parts = zip(self.config.rewards, self._components, strict=True)
        return sum(entry.weight * component.full_reward for entry, component in parts if entry.weight > 0)

    @classmethod
    def shared_options(cls, config: Any) -> Mapping[str, Any]:
        parts = []
        for index, entry in enumerate(config.rewards):
            component, entry_config = _resolved(entry, f"{_PATH}.rewards[{index}]")
            parts.append([entry.use, entry.weight, component.shared_options(entry_config)])
        return {"rewards": parts}

    @classmethod
    def check_with(cls, config: Any, context: ComponentContext, question: Question) -> None:
        for index, entry in enumerate(config.rewards):
            component, entry_config = _resolved(entry, f"{_PATH}.rewards[{index}]")
            component.check_with(entry_config, context, question)

    @classmethod
    def needs_trial(cls, config: Any) -> bool:
        parts = (_resolved(entry, f"{_PATH}.rewards[{index}]") for index, entry in enumerate(config.rewards))
        return any(component.needs_trial(entry_config) for component, entry_config in parts)

    @classmethod
    def needs_environment(cls, config: Any) -> bool:
        parts = (_resolved(entry, f"{_PATH}.rewards[{index}]") for index, entry in enumerate(config.rewards))
        return any(component.needs_environment(entry_config) for component, entry_config in parts)

    def round_scored(self, state: GameState) -> None:
        for component in self._components:
            component.round_scored(state)

    def failures(self) -> Sequence[ScoringFailure]:
        return [failure for component in self._components for failure in component.failures()]

    def counters(self) -> Mapping[str, int]:
        total: Counter[str] = Counter()
        for component in self._components:
            total.update(component.counters())
        return dict(total)

    def close(self) -> None:
        for component in self._components:
            component.close()
        self._components = []


def _sum(weighted: list[tuple[float, Rewards]], scores: tuple[float, ...]) -> float:
    return sum(weight * score for (weight, _), score in zip(weighted, scores, strict=True))


def _resolved(entry: WeightedReward, path: str) -> tuple[type[RewardManager], BaseModel]:
    component = cast(type[RewardManager], find_component(entry.use, RewardManager, group=_GROUP, path=f"{path}.use"))
    return component, validate_config(component, entry.with_, f"{path}.with")
