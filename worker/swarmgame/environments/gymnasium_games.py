"""Environments of gymnasium with discrete or text actions: `use: gymnasium`.

An episode begins with `reset(seed=…)`, with a seed from the question, so that two peers with one version of the package
see the same. The policy reads each observation as a text, or what the environment draws as text. A turn that names no
action is answered with those that there are; the environment does not step then. gymnasium is an optional package.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Annotated, Any, Literal

from pydantic import Field

from swarmgame.config import Config
from swarmgame.errors import InvalidManifest
from swarmgame.game.code import find_code
from swarmgame.game.components import ComponentContext
from swarmgame.game.environment import Environment, Episode, Step
from swarmgame.game.state import Question
from swarmgame.seeds import derive_seed
from swarmgame.user_code import describe, printable

_PATH = "spec.game.environment"
_HIGHLIGHTED = re.compile("\x1b\\[4\\dm(.)\x1b\\[0m")
_CONTROL = re.compile("\x1b\\[[0-9;]*m")
_NUMBER = re.compile(r"(?<!\d)-?\d{1,9}(?!\d)")
_MOST_SHOWN = 12
"""Actions that a correction lists."""


class GymnasiumConfig(Config):
    """The environment, and how the policy reads and acts."""

    id: Annotated[str, Field(min_length=1, max_length=200)]
    """Its id: `FrozenLake-v1`, or `my_module:MyGame-v0`, whose import registers it."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Arguments of `gymnasium.make`, such as `is_slippery: false`."""
    actions: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=40)], ...], Field(max_length=1000)] = ()
    """Words for discrete actions, in their order; without them the policy writes numbers."""
    shows: Literal["observation", "drawing"] = "observation"
    """What the policy reads: the observation as text, or what `render` draws with the render mode `ansi`."""


class Gymnasium(Environment):
    """An environment of gymnasium with discrete or text actions; needs `pip install "swarmgame[gymnasium]"`."""

    Config = GymnasiumConfig
    config: GymnasiumConfig

    def __init__(self, config: GymnasiumConfig, context: ComponentContext) -> None:
        super().__init__(config, context)
        try:
            self._gymnasium = importlib.import_module("gymnasium")
        except ImportError as error:
            expected = f'a package that is installed: pip install "swarmgame[gymnasium]" ({error})'
            raise InvalidManifest(f"{_PATH}.use", "gymnasium", expected) from error
        game = self._make()
        self._check(game)
        if config.shows == "drawing":
            game.reset(seed=0)
            if not isinstance(game.render(), str):
                raise InvalidManifest(f"{_PATH}.with.shows", "drawing", "an environment whose mode ansi draws a text")
        game.close()

    def start(self, question: Question) -> Episode:
        reference = question.reference
        seed = derive_seed(reference.environment, reference.config, reference.seed, reference.index) % 2**31
        return _Playing(self._make(), seed, self.config)

    def content_digest(self) -> str:
        module = self.config.id.partition(":")[0] if ":" in self.config.id else ""
        code = find_code([{"use": f"{module}:"}], self.context.folder).fingerprint if module else ""
        return f"gymnasium {version('gymnasium')} {code}"

    def _make(self) -> Any:
        drawing = {"render_mode": "ansi"} if self.config.shows == "drawing" else {}
        try:
            return self._gymnasium.make(self.config.id, **drawing, **self.config.options)
        except Exception as error:
            path, got = f"{_PATH}.with.id", self.config.id
            if isinstance(error, TypeError):
                raise InvalidManifest(
                    f"{_PATH}.with.options", self.config.options, f"arguments of {got} ({printable(str(error), 200)})"
                ) from error
            # A module of the author's, which registers it, may raise anything.
            of_package = isinstance(error, self._gymnasium.error.Error)
            found = printable(str(error), 200) if of_package else str(describe(error))
            raise InvalidManifest(path, got, f"an environment that gymnasium can make ({found})") from error

    def _check(self, game: Any) -> None:
        spaces, space = self._gymnasium.spaces, game.action_space
        words = self.config.actions
        if isinstance(space, spaces.Discrete):
            if words and (len(words) != space.n or len({word.casefold() for word in words}) != space.n):
                raise InvalidManifest(f"{_PATH}.with.actions", list(words), f"{space.n} different words, one an action")
        elif not isinstance(space, spaces.Text):
            raise InvalidManifest(f"{_PATH}.with.id", self.config.id, f"discrete or text actions; it has {space}")
        elif words:
            raise InvalidManifest(f"{_PATH}.with.actions", list(words), "none, since the actions are texts")


class _Playing(Episode):
    def __init__(self, game: Any, seed: int, config: GymnasiumConfig) -> None:
        self._game, self._config = game, config
        self._first = game.reset(seed=seed)[0]

    def first(self) -> str:
        return self._shown(self._first)

    def step(self, action: str) -> Step:
        chosen = self._action(action)
        if chosen is None:
            return Step(self._correction())
        observation, reward, terminated, truncated, _ = self._game.step(chosen)
        done = bool(terminated or truncated)
        return Step(self._shown(observation) or ("" if done else "-"), float(reward), done)

    def _action(self, text: str) -> Any:
        """Return the first action that a turn names; None where it names none. Other numbers are passed over."""
        space, words = self._game.action_space, self._config.actions
        if not hasattr(space, "n"):
            plain = text.strip()
            return plain if space.contains(plain) else None
        start = int(space.start)
        if words:
            found = re.search(rf"(?<!\w)({'|'.join(map(re.escape, self._longest_first()))})(?!\w)", text.casefold())
            return start + [word.casefold() for word in words].index(found[1]) if found else None
        numbers = (int(found[0]) for found in _NUMBER.finditer(text))
        return next(filter(space.contains, numbers), None)

    def _longest_first(self) -> list[str]:
        return sorted((word.casefold() for word in self._config.actions), key=len, reverse=True)

    def _correction(self) -> str:
        space, words = self._game.action_space, self._config.actions
        if not hasattr(space, "n"):
            return f"a text of {space.min_length} to {space.max_length} known characters, please"
        if words:
            return f"one of {', '.join(words[:_MOST_SHOWN])}{', …' if len(words) > _MOST_SHOWN else ''}, please"
        return f"a number from {int(space.start)} to {int(space.start + space.n) - 1}, please"

    def _shown(self, observation: Any) -> str:
        if self._config.shows == "observation":
            return as_text(observation)
        return _CONTROL.sub("", _HIGHLIGHTED.sub(r"[\1]", self._game.render())).strip()


def as_text(observation: Any) -> str:
    """Return an observation as the policy reads it: numbers in short form, with spaces between them."""
    if isinstance(observation, str):
        return observation
    if isinstance(observation, Mapping):
        return ", ".join(f"{name}: {as_text(value)}" for name, value in observation.items())
    if hasattr(observation, "tolist"):  # an array or a number of numpy
        return as_text(observation.tolist())
    if isinstance(observation, float):
        return f"{observation:.6g}" if math.isfinite(observation) else str(observation)
    if isinstance(observation, Iterable):
        return " ".join(map(as_text, observation))
    return str(observation)
