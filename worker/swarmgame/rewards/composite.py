"""The `composite` rewards: a weighted sum of other rewards.

Invariant: the sum of a rollout is NaN when one of the rewards could not score it (NaN).
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Annotated, Any

from pydantic import Field, ValidationError

from swarmgame.config import Config
from swarmgame.errors import InvalidManifest
from swarmgame.game.components import ComponentContext, RewardManager
from swarmgame.game.state import GameState, Rewards
from swarmgame_api.validation_messages import did_you_mean, explain

_PATH = "spec.game.rewards.with"
_GROUP = "swarmgame.rewards"


class WeightedReward(Config):
    """One of the rewards."""

    use: str
    """Its name, or `package.module:Class`."""
    with_: Annotated[dict[str, Any], Field(alias="with")] = Field(default_factory=dict)
    """Its configuration."""
    weight: float = 1.0
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
                self._components.append(_made(entry, self.context, f"{_PATH}.rewards[{index}]"))
        except BaseException:
            self.close()
            raise
        self.full_reward = sum(
            entry.weight * component.full_reward
            for entry, component in zip(config.rewards, self._components, strict=True)
            if entry.weight > 0
        )

    def rewards(self, state: GameState) -> Rewards:
        weighted = [
            (entry.weight, component.rewards(state))
            for entry, component in zip(self.config.rewards, self._components, strict=True)
        ]
        keys = [key for key, _ in state.groups() if all(key in rewards for _, rewards in weighted)]
        return {
            key: [_sum(weighted, scores) for scores in zip(*(rewards[key] for _, rewards in weighted), strict=True)]
            for key in keys
        }

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


def _made(entry: WeightedReward, context: ComponentContext, path: str) -> RewardManager:
    component = _found(entry.use, f"{path}.use")
    try:
        config = component.Config.model_validate(entry.with_, by_alias=True, by_name=False)
    except ValidationError as error:
        raise InvalidManifest(
            problems=explain(component.Config, error.errors(include_url=False), f"{path}.with")
        ) from error
    return component(config, context)


def _found(name: str, path: str) -> type[RewardManager]:
    if ":" in name:
        module, _, attribute = name.partition(":")
        try:
            found: Any = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise InvalidManifest(path, name, f"a class that can be imported ({error})") from error
    else:
        registered = {entry.name: entry for entry in entry_points(group=_GROUP)}
        if name not in registered:
            raise InvalidManifest(
                path,
                name,
                f"one of {', '.join(sorted(registered))}, or package.module:Class{did_you_mean(name, registered)}",
            )
        found = registered[name].load()
    if not (isinstance(found, type) and issubclass(found, RewardManager)):
        raise InvalidManifest(path, name, "a subclass of swarmgame.RewardManager")
    return found
