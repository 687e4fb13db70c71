"""Levels of an environment, and its curriculum: harder while the rewards are high, easier when they are low.

An environment without a curriculum has one level. The others are those of reasoning-gym's curricula. `level_configs`
computes their configurations in the sandbox; the level moves by the mean reward of our own groups over a window.
Invariant: the level is a function of the rewards seen, and part of `state_dict`. Every level has a digest of its own,
so peers at different levels can exchange rollouts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from swarmgame.config import Config
from swarmgame.errors import InvalidManifest

if TYPE_CHECKING:
    from swarmgame.sandbox.client import Sandbox

_CATALOG = "swarmgame.data.environment_catalog"


class CurriculumConfig(Config):
    """When an environment's level moves."""

    attributes: tuple[str, ...] = ()
    """Attributes of reasoning-gym's curriculum that move, together; all of them when empty."""
    start_level: Annotated[int, Field(ge=0, le=1000)] = 0
    """Level of the first round."""
    max_level: Annotated[int, Field(ge=0, le=1000)] | None = None
    """Highest level; the last one of the curriculum when not given."""
    raise_above: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Mean reward over a full window above which the level rises by one."""
    lower_below: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Mean reward over a full window below which the level falls by one."""
    window: Annotated[int, Field(ge=1, le=10_000)] = 32
    """Number of questions in the window; it is emptied whenever the level moves."""

    @model_validator(mode="after")
    def _ordered(self) -> CurriculumConfig:
        if self.lower_below >= self.raise_above:
            raise ValueError("lowerBelow must be less than raiseAbove")
        if self.max_level is not None and self.max_level < self.start_level:
            raise ValueError("maxLevel must be at least startLevel")
        return self


class CurriculumLevel:
    """The current level of one environment.

    Args:
        config: when the level moves.
        levels: number of levels.
    """

    def __init__(self, config: CurriculumConfig, levels: int) -> None:
        self._config = config
        self._last = levels - 1
        self.level = min(config.start_level, self._last)
        self._window: deque[float] = deque(maxlen=config.window)

    def add(self, reward: float) -> None:
        """Add the mean reward of one of our groups at the current level, and move the level when the window is full."""
        self._window.append(reward)
        if len(self._window) < self._config.window:
            return
        mean = sum(self._window) / len(self._window)
        step = 1 if mean > self._config.raise_above else -1 if mean < self._config.lower_below else 0
        level = min(max(self.level + step, 0), self._last)
        if level != self.level:
            self.level = level
            self._window.clear()

    def state_dict(self) -> dict[str, Any]:
        return {"level": self.level, "window": list(self._window)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.level = min(max(int(state["level"]), 0), self._last)
        self._window = deque((float(reward) for reward in state["window"]), maxlen=self._config.window)


@dataclass(frozen=True)
class Level:
    """An environment of a game in one configuration.

    Args:
        digest: of name, configuration and version of the library.
        position: of the environment in the game's mix.
        level: number of the level.
    """

    name: str
    config: dict[str, Any]
    digest: str
    position: int
    level: int


def resolve_levels(
    sandbox: Sandbox, name: str, config: dict[str, Any], curriculum: CurriculumConfig | None, position: int, path: str
) -> list[Level]:
    """Return all levels of an environment of a game.

    Args:
        path: of the environment in the manifest, for messages.

    Raises:
        InvalidManifest: name, configuration or curriculum cannot be used.
    """

    def digest(config: dict[str, Any]) -> str:
        return str(_valued(sandbox.call_trusted(f"{_CATALOG}:resolve", name, config), path)["digest"])

    configs, digests = [config], [digest(config)]
    if curriculum is not None:
        wanted = (list(curriculum.attributes), curriculum.max_level, curriculum.start_level)
        answer = sandbox.call_trusted(f"{__name__}:level_configs", name, config, *wanted)
        configs = _valued(answer, path)["levels"]
        digests = [digest(each) for each in configs]
    pairs = zip(configs, digests, strict=True)
    return [Level(name, each, found, position, level) for level, (each, found) in enumerate(pairs)]


def _valued(answer: dict[str, Any], path: str) -> dict[str, Any]:
    """Return what a function of the sandbox found.

    Raises:
        InvalidManifest: it found a mistake.
    """
    if "problem" in answer:
        problem = answer["problem"]
        raise InvalidManifest(f"{path}.{problem['path']}", problem["got"], problem["expected"])
    return answer


def level_configs(
    name: str, config: dict[str, Any], attributes: list[str], most: int | None, start: int = 0
) -> dict[str, Any]:
    """Return the configuration of every level: the author's with the moving attributes replaced. Runs in the sandbox.

    Args:
        attributes: those that move; all when empty.
        most, start: the highest and the first level that the author asks for.

    Returns:
        `{"levels": [config, …]}`, up to the first that the dataset refuses; or `{"problem": {"path", "got",
        "expected"}}`.
    """
    from reasoning_gym.coaching.attributes import RangeAttributeDefinition
    from reasoning_gym.coaching.base_curriculum import DefaultCurriculumContext
    from reasoning_gym.factory import CURRICULA

    from swarmgame.data.environment_catalog import resolve

    if name not in CURRICULA:
        return {
            "problem": {
                "path": "curriculum",
                "got": name,
                "expected": "an environment that has a curriculum; see `swarmgame env list`",
            }
        }
    curriculum = CURRICULA[name]()
    known = list(curriculum.attributes)
    for attribute in attributes:
        if attribute not in known:
            expected = f"attributes of this curriculum: {', '.join(known)}"
            return {"problem": {"path": "curriculum.attributes", "got": attribute, "expected": expected}}
    moving = [curriculum.attributes[attribute] for attribute in (attributes or known)]
    longest = max(len(attribute.levels) for attribute in moving)
    context = DefaultCurriculumContext()
    levels: list[dict[str, Any]] = []
    for level in range(longest if most is None else min(most + 1, longest)):
        merged = dict(config)
        for attribute in moving:
            curriculum.set_attr_level(attribute.name, min(level, len(attribute.levels) - 1))
            value = context.get_attr_value(curriculum, attribute)
            if isinstance(attribute, RangeAttributeDefinition):
                merged[attribute.lower_field_name] = min(value)
                merged[attribute.upper_field_name] = max(value)
            else:
                merged[attribute.field_name] = value
        if "problem" in resolve(name, merged):
            break
        levels.append(merged)
    if not levels:
        return {
            "problem": {"path": "curriculum", "got": name, "expected": f"a curriculum whose first level {name} accepts"}
        }
    last = len(levels) - 1
    for path, asked in (("maxLevel", most), ("startLevel", start)):
        if asked is not None and asked > last:
            expected = f"a level from 0 to {last}: the curriculum of {name} has no more"
            return {"problem": {"path": f"curriculum.{path}", "got": asked, "expected": expected}}
    return {"levels": levels}
