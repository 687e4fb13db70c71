"""The `function` rewards: a game author's own function `package.module:function`, called with the question and the
rollout's text.

The function takes `(question, text)`, where `question` is a dictionary with question, answer, environment and
metadata, and returns a finite number. It runs in the sandbox, which cannot write files or use the network. With
`trusted: true` it runs in this process: faster, with all rights of the process. Invariant: an exception, a breach or a
value that is not a finite number gives a reward of 0 and is counted.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from swarmgame.errors import InvalidManifest
from swarmgame.game.components import ComponentContext
from swarmgame.game.state import Question
from swarmgame.rewards.scoring import AnswerConfig, AnswerRewards, finite
from swarmgame.sandbox.client import CallFailed, Sandbox

_PATH = "spec.game.rewards.with.function"
_BATCH = 512


class FunctionRewardsConfig(AnswerConfig):
    """Which function, and whether it is trusted."""

    function: Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")]
    """`package.module:function`; the module may lie beside the manifest. It must import what it needs at its top."""
    trusted: bool = False
    """Run it in this process, without sandbox or deadline. Never use it for a function that evaluates the answer."""
    deadline_seconds: Annotated[float, Field(gt=0, le=600)] = 2.0
    """Most processor time of one call in the sandbox."""
    memory_mebibytes: Annotated[int, Field(ge=16, le=262_144)] = 512
    """Most memory that one batch of calls may allocate in the sandbox."""


class FunctionRewards(AnswerRewards):
    """See the module."""

    Config = FunctionRewardsConfig
    config: FunctionRewardsConfig

    def __init__(self, config: FunctionRewardsConfig, context: ComponentContext | None = None) -> None:
        super().__init__(config, context or ComponentContext())
        self._function: Callable[[dict[str, Any], str], Any] | None = None
        self._sandbox: Sandbox | None = None
        if config.trusted:
            self._function = _load(config.function)
            return
        self._sandbox = Sandbox(deadline=config.deadline_seconds, memory=config.memory_mebibytes * 2**20)
        try:
            self._sandbox.prepare("swarmgame.rewards.function:check", config.function)
        except CallFailed as error:
            self.close()
            raise InvalidManifest(
                _PATH, config.function, f"a function that the sandbox can import ({error})"
            ) from error

    def score(self, answers: Sequence[tuple[Question, str]]) -> Sequence[float | None]:
        calls = [(_described(question), answer) for question, answer in answers]
        if self._function is not None:
            return [self._trusted(question, answer) for question, answer in calls]
        if self._sandbox is None:
            raise RuntimeError("the reward manager is closed")
        batches = [calls[start : start + _BATCH] for start in range(0, len(calls), _BATCH)]
        results = [result for batch in batches for result in self._sandbox.call_untrusted(self.config.function, batch)]
        scores: list[float | None] = []
        for result in results:
            score = finite(result.value)
            if score is None and not result.breach:
                self.count("rewards_not_finite")
            scores.append(None if result.breach in ("not run", "timeout", "killed") else score or 0.0)
        return scores

    def counters(self) -> Mapping[str, int]:
        return {**super().counters(), **(self._sandbox.counters() if self._sandbox is not None else {})}

    def close(self) -> None:
        if self._sandbox is not None:
            self._sandbox.close()
            self._sandbox = None

    def _trusted(self, question: dict[str, Any], answer: str) -> float:
        assert self._function is not None
        try:
            score = finite(self._function(question, answer))
        except Exception:  # noqa: BLE001 — counted: the author's function failed on this answer
            self.count("reward_exceptions")
            return 0.0
        if score is None:
            self.count("rewards_not_finite")
        return score or 0.0


def check(function: str) -> None:
    """Load the function, in the sandbox."""
    _load(function)


def _load(name: str) -> Callable[[dict[str, Any], str], Any]:
    module, _, attribute = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise InvalidManifest(_PATH, name, f"a function that can be imported ({error})") from error
    if not callable(found):
        raise InvalidManifest(_PATH, name, "a function")
    function: Callable[[dict[str, Any], str], Any] = found
    return function


def _described(question: Question) -> dict[str, Any]:
    """Return the function's first argument; metadata that JSON cannot express becomes text."""
    described = {
        "id": question.id,
        "environment": question.reference.environment,
        "question": question.text,
        "answer": question.answer,
        "metadata": dict(question.metadata),
    }
    plain: dict[str, Any] = json.loads(json.dumps(described, default=str))
    return plain
