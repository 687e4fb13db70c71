"""Plays one episode: the side in the sandbox.

The class is found and configured once for adjacent calls with the same first four arguments; each call makes a new
episode. What an environment returns is checked here, so that its mistake has the place in its code.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from swarmgame.game.components import ComponentContext
from swarmgame.game.environment import Environment, Step
from swarmgame.game.explained import explained
from swarmgame.game.lookup import find_component, validate_config
from swarmgame.game.state import Question, QuestionRef
from swarmgame.user_code import as_number, kind_of

GROUP = "swarmgame.turn_environments"
"""Entry points of environments. Those of questions, which reasoning-gym plays, are `swarmgame.environments`."""
MAX_OBSERVATION = 1 << 16
"""Characters of one observation; more are an error of the environment."""
_LARGEST_REWARD = 1e15


class BadStep(Exception):
    """An environment returned what it must not return."""


@functools.lru_cache(maxsize=4)
def made(use: str, config: str, folder: str, seed: int) -> Environment:
    """Return the environment of a manifest.

    Args:
        config: its `with` block as JSON.
        folder: of the manifest; empty where there is none.
        seed: of the game.

    Raises:
        InvalidManifest: it cannot be imported or configured.
        BadGame: its constructor failed; with the author's lines.
    """
    found = find_component(use, Environment, group=GROUP, path="spec.game.environment.use")
    settings = validate_config(found, json.loads(config), "spec.game.environment.with")
    with explained(found, "its constructor"):
        environment = found(settings, ComponentContext(seed=seed, folder=Path(folder) if folder else None))
    assert isinstance(environment, Environment)
    return environment


def call_of(use: str, options: Mapping[str, Any], folder: Path | None, seed: int) -> tuple[str, str, str, int]:
    """Return the arguments of `made` for an environment of a manifest.

    Args:
        folder: of the manifest.
        seed: of the game.
    """
    return use, json.dumps(dict(options), sort_keys=True), "" if folder is None else str(folder.absolute()), seed


def digest_of(use: str, options: Mapping[str, Any], folder: Path | None, seed: int) -> str:
    """Return what an environment of a manifest says that its episodes are made from.

    Raises:
        BadGame: its `content_digest` failed; with the author's lines.
    """
    environment = made(*call_of(use, options, folder, seed))
    with explained(type(environment), "content_digest"):
        return environment.content_digest()


def prepare(use: str, config: str, folder: str, seed: int) -> str:
    """Import and make the environment, in the sandbox, before any turn; return the name of its class."""
    return type(made(use, config, folder, seed)).__qualname__


def play(
    use: str, config: str, folder: str, seed: int, question: dict[str, Any], turns: Sequence[str]
) -> dict[str, Any]:
    """Play an episode, and return its first observation and a list of [observation, reward, done].

    Raises:
        BadStep: the environment returned something else than texts, finite rewards and truth values.
    """
    episode = made(use, config, folder, seed).start(question_from(question))
    first = _text(episode.first(), "first()")
    steps: list[list[Any]] = []
    for turn in turns:
        step = episode.step(turn)
        steps.append(_checked(step))
        if step.done:
            break
    return {"first": first, "steps": steps}


def _checked(step: Any) -> list[Any]:
    if not isinstance(step, Step):
        raise BadStep(f"step() returned {kind_of(step)}; expected swarmgame.Step(observation, reward, done)")
    reward = None
    if step.reward is not None:
        reward = as_number(step.reward)
        if reward is None or not math.isfinite(reward) or abs(reward) > _LARGEST_REWARD:
            raise BadStep(f"step() returned the reward {kind_of(step.reward)}; expected a finite number or None")
    if not isinstance(step.done, bool):
        raise BadStep(f"step() returned done = {kind_of(step.done)}; expected True or False")
    observation = _text(step.observation, "step()")
    if not observation and not step.done:
        raise BadStep("step() returned no observation; expected a text, or done=True")
    return [observation, reward, step.done]


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise BadStep(f"{where} returned {kind_of(value)}; expected a text")
    if len(value) > MAX_OBSERVATION:
        raise BadStep(f"{where} returned {len(value)} characters; expected at most {MAX_OBSERVATION}")
    # As it arrives at other peers: a lone surrogate is none of UTF-8's characters.
    return value.encode(errors="replace").decode()


def described(question: Question) -> dict[str, Any]:
    """Return a question as JSON-like data; metadata that JSON cannot express becomes text. Its payload stays behind."""
    reference = question.reference
    found = {
        "reference": [reference.environment, reference.config, reference.seed, reference.index],
        "text": question.text,
        "answer": question.answer,
        "metadata": dict(question.metadata),
    }
    plain: dict[str, Any] = json.loads(json.dumps(found, default=str))
    return plain


def question_from(data: dict[str, Any]) -> Question:
    """Return the question that `described` has described."""
    return Question(
        QuestionRef(*data["reference"]), data["text"], data["answer"], MappingProxyType(dict(data["metadata"]))
    )
