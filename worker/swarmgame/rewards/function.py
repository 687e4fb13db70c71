"""The `function` rewards: a game author's own function `package.module:function`, called with the question and the
rollout's text.

The function takes `(question, text)`, where `question` is a dictionary with question, answer, environment and
metadata, and returns a finite number (of Python, numpy or torch; a bool counts). It runs in the sandbox, which cannot
write files or use the network. With `trusted: true` it runs in this process: faster, with all rights of the process.
Invariant: an exception, a breach or a value that is not a finite number gives a reward of 0 and is counted; a call that
was not made, after three breaches or beyond the budget of its author, gives none; a round in which every call failed
ends the run.
"""

from __future__ import annotations

import importlib
import json
import linecache
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from swarmgame.errors import BadGame, InvalidManifest
from swarmgame.game.components import ComponentContext
from swarmgame.game.reward_checks import ScoringFailure
from swarmgame.game.state import GameState, Question
from swarmgame.rewards.failures import FailureLog
from swarmgame.rewards.scoring import (
    BEYOND_BUDGET,
    MAX_REWARD,
    NOT_RUN,
    AnswerRewards,
    Provisional,
    SandboxedAnswerConfig,
)
from swarmgame.sandbox.author_budgets import DEADLINES, AuthorBudgets
from swarmgame.sandbox.client import CallFailed, CallResult, Sandbox
from swarmgame.sandbox.requests import batches
from swarmgame.user_code import CodeError, as_number, definition, describe, kind_of, printable

_PATH = "spec.game.rewards.with.function"
_REMEMBERED = 16_384
"""Answers that failed: their cached score is 0, as that of a wrong answer is."""


class FunctionRewardsConfig(SandboxedAnswerConfig):
    """Which function, and whether it is trusted."""

    function: Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")]
    """`package.module:function`; the module may lie beside the manifest. It must import what it needs at its top."""
    trusted: bool = False
    """Run it in this process, without sandbox or deadline. Never use it for a function that evaluates the answer."""
    deadline_seconds: Annotated[float, Field(gt=0, le=600)] = 2.0
    """Most processor time of one call in the sandbox."""
    memory_mebibytes: Annotated[int, Field(ge=16, le=262_144)] = 512
    """Most memory that one call may allocate in the sandbox."""


class FunctionRewards(AnswerRewards):
    """See the module."""

    Config = FunctionRewardsConfig
    config: FunctionRewardsConfig
    own_options = frozenset({"trusted", "deadline_seconds", "memory_mebibytes"})

    def __init__(self, config: FunctionRewardsConfig, context: ComponentContext | None = None) -> None:
        super().__init__(config, context or ComponentContext())
        self._function: Callable[[dict[str, Any], str], Any] | None = None
        self._sandbox: Sandbox | None = None
        self._log = FailureLog(config.function)
        self._failed: set[tuple[str, str]] = set()
        if config.trusted:
            try:
                self._function = _load(config.function)
            except Exception as error:
                # An author's module may raise anything while it is imported.
                found = describe(error)
                expected = f"a function that can be imported ({found}){found.below}"
                raise InvalidManifest(_PATH, config.function, expected) from error
            self._where = definition(self._function)
            return
        self.budgets = AuthorBudgets(
            config.author_seconds or DEADLINES * config.deadline_seconds, self.context.remote_work
        )
        self._sandbox = Sandbox(deadline=config.deadline_seconds, memory=config.memory_mebibytes * 2**20)
        try:
            self._where = printable(
                str(self._sandbox.prepare("swarmgame.rewards.function:check", config.function)), 500
            )
        except CallFailed as error:
            self.close()
            raise InvalidManifest(
                _PATH, config.function, f"a function that the sandbox can import ({error})"
            ) from error

    @classmethod
    def check_with(cls, config: Any, context: ComponentContext, question: Question) -> None:
        """Call the function once, with a question of the data and its answer.

        Raises:
            InvalidManifest: the function cannot be imported.
            BadGame: the call failed, although the answer is right.
        """
        rewards = cls(config, context)
        try:
            rewards.score([(question, question.answer)])
            failed = rewards._log.failures
        finally:
            rewards.close()
        if not failed:
            return
        # Without a known answer, an exception may be due to the empty text. One without a frame of the author's is not:
        # the call itself failed.
        error = failed[0].error
        if question.answer or not error.trace:
            right = f"the right answer of a question ({printable(repr(question.answer), 60)})"
            given = right if question.answer else "an empty text"
            raise BadGame(
                f"{_PATH} is {config.function}; it failed when it was called once, with {given}: {error}{error.below}\n"
                f"{failed[0].cure}"
            )

    def score(self, answers: Sequence[tuple[Question, str]]) -> Sequence[float]:
        calls = [(_described(question), answer) for question, answer in answers]
        if self._function is not None:
            scores = [self._trusted(self._function, *call) for call in calls]
        elif self._sandbox is not None:
            results = [
                result
                for batch in batches(calls)
                for result in self._sandbox.call_untrusted(self.config.function, batch, budget=self.budget, trial=True)
            ]
            scores = [self._sandboxed(result) for result in results]
        else:
            raise RuntimeError("the reward manager is closed")
        if len(self._failed) > _REMEMBERED:
            self._failed.clear()
        failed = [math.isnan(score) and not isinstance(score, Provisional) for score in scores]
        self._failed.update(
            (question.id, answer) for (question, answer), bad in zip(answers, failed, strict=True) if bad
        )
        return [0.0 if bad else score for score, bad in zip(scores, failed, strict=True)]

    def reuse(self, question_id: str, answer: str) -> None:
        if (question_id, answer) not in self._failed:
            self._log.add_success()

    def counters(self) -> Mapping[str, int]:
        return {**super().counters(), **(self._sandbox.counters() if self._sandbox is not None else {})}

    def failures(self) -> Sequence[ScoringFailure]:
        return self._log.failures

    def round_scored(self, state: GameState) -> None:
        self._log.end_round(state.round.number)

    def close(self) -> None:
        if self._sandbox is not None:
            self._sandbox.close()
            self._sandbox = None

    def _sandboxed(self, result: CallResult) -> float:
        """Return the score of one call: NaN where it failed, `NOT_RUN`, or a provisional 0 where it ran out of time,
        which it may have on a busy machine.
        """
        if not result.breach:
            return self._finite(result.value)
        if result.breach in ("not run", "beyond budget"):
            if result.breach == "beyond budget":
                self.count(BEYOND_BUDGET)
            self._log.add_not_run()
            return NOT_RUN
        error = result.error or CodeError(result.breach, result.message, self._where)
        self._log.add_failure(error, result.breach, own=self.scores_own)
        return Provisional(0.0) if result.breach in ("timeout", "killed") else math.nan

    def _trusted(self, function: Callable[..., Any], question: dict[str, Any], answer: str) -> float:
        """Return the score of one call, NaN where it failed."""
        try:
            value = function(question, answer)
        except (Exception, SystemExit) as error:  # noqa: BLE001 — the author's function failed on this answer
            self.count("reward_exceptions")
            self._log.add_failure(describe(error, function), own=self.scores_own)
            return math.nan
        return self._finite(value)

    def _finite(self, value: Any) -> float:
        score = as_number(value)
        if score is not None and abs(score) <= MAX_REWARD:
            self._log.add_success()
            return score
        self.count("rewards_not_finite")
        expected = f"a finite number of at most {MAX_REWARD:g}"
        error = CodeError("not a number", f"returned {kind_of(value)}; expected {expected}", self._where)
        self._log.add_failure(error, own=self.scores_own)
        return math.nan


def check(function: str) -> str:
    """Load the function, in the sandbox, and return where it is defined.

    The fork that calls it cannot read the author's files; what is read here is part of its tracebacks.
    """
    where = definition(_load(function))
    linecache.getlines(where.rpartition(":")[0])
    return where


def _load(name: str) -> Callable[[dict[str, Any], str], Any]:
    """Import the function.

    Raises:
        ImportError, AttributeError: there is none.
        TypeError: it cannot be called.
        Exception: whatever the author's module raises while it is imported.
    """
    module, _, attribute = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    if not callable(found):
        raise TypeError(f"{name} is {kind_of(found)}, not a function")
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
