"""The `reasoning-gym` rewards: the environment's own scorer, called in the sandbox.

The sandbox regenerates the question from (environment, configuration, seed), so no data of a remote peer is used for
it. Many scorers evaluate the answer, so none runs in this process. A breach or an exception in a scorer gives a score
of 0 and is counted; a call that was not made gives none. Invariant: a reward depends only on the question and the
rollout's text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from swarmgame.errors import BadGame, InvalidManifest
from swarmgame.game.components import ComponentContext
from swarmgame.game.reward_checks import ScoringFailure
from swarmgame.game.state import FinishReason, GameState, Question, Rewards, Rollout
from swarmgame.rewards.failures import FailureLog
from swarmgame.rewards.scoring import (
    BEYOND_BUDGET,
    NOT_RUN,
    AnswerRewards,
    Provisional,
    SandboxedAnswerConfig,
)
from swarmgame.sandbox.author_budgets import DEADLINES, AuthorBudgets
from swarmgame.sandbox.client import CallResult, Sandbox, SharedSandbox
from swarmgame.sandbox.requests import batches
from swarmgame.user_code import CodeError, as_number, kind_of

_ENVIRONMENTS = "swarmgame.data.environments"


class ReasoningGymRewardsConfig(SandboxedAnswerConfig):
    """How a score becomes a reward."""

    threshold: Annotated[float, Field(gt=0, le=1)] | None = None
    """When given, the reward is 1 for a score of at least this and 0 otherwise. 0.99 is a good value: many scorers
    give a little for any answer.
    """
    format_reward: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Added for any answer in the right format; only for the tagged format."""
    length_penalty: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Subtracted for a rollout that was cut at its limit of tokens."""


class ReasoningGymRewards(AnswerRewards):
    """For questions of the `reasoning-gym` data; any other question scores 0 and is counted."""

    Config = ReasoningGymRewardsConfig
    config: ReasoningGymRewardsConfig

    def __init__(
        self, config: ReasoningGymRewardsConfig | None = None, context: ComponentContext | None = None
    ) -> None:
        super().__init__(config or ReasoningGymRewardsConfig(), context or ComponentContext())
        self._sandbox: Sandbox | None = SharedSandbox.hold()
        self.budgets = AuthorBudgets(
            self.config.author_seconds or DEADLINES * self._sandbox.deadline, self.context.remote_work
        )
        self._warm = False
        self._log = FailureLog("the environments' score")
        self._other_source = 0
        self.full_reward = self._full_reward(self.config.answer_format == "tagged")

    @classmethod
    def check_with(cls, config: Any, context: ComponentContext, question: Question) -> None:
        if not _is_of_an_environment(question):
            expected = "rewards for this data, such as exact or function: its questions are not of reasoning-gym"
            raise InvalidManifest("spec.game.rewards.use", "reasoning-gym", expected)

    def rewards(self, state: GameState) -> Rewards:
        if state.questions:  # which may name the format
            are_tagged = all(self.format_of(question) == "tagged" for question in state.questions.values())
            self.full_reward = self._full_reward(are_tagged)
        return super().rewards(state)

    def _full_reward(self, is_tagged: bool) -> float:
        """Return what a right answer gets: an answer in the right format must not pass for a part of a score."""
        return (1.0 if self.config.threshold is not None else 0.99) + self.config.format_reward * is_tagged

    def score(self, answers: Sequence[tuple[Question, str]]) -> Sequence[float]:
        if self._sandbox is None:
            raise RuntimeError("the reward manager is closed")
        if not self._warm:
            self._sandbox.prepare(f"{_ENVIRONMENTS}:warm")
            self._warm = True
        calls: list[list[object]] = []
        for question, answer in answers:
            if not _is_of_an_environment(question):
                self.count("items_of_another_source")
                self._other_source += 1
            else:
                calls.append(
                    [question.metadata["environment"], question.metadata["config"], question.reference.seed, answer]
                )
        results = iter(
            [
                result
                for batch in batches(calls)
                for result in self._sandbox.call_untrusted(
                    f"{_ENVIRONMENTS}:score",
                    batch,
                    budget=self.budget,
                    before=f"{_ENVIRONMENTS}:ready",
                    shared=3,
                    trial=True,
                )
            ]
        )
        scores: list[float] = []
        for question, _ in answers:
            if not _is_of_an_environment(question):
                scores.append(0.0)
                continue
            scores.append(self._score_of(next(results)))
        return scores

    def reuse(self, question_id: str, answer: str) -> None:
        self._log.add_success()

    def _score_of(self, result: CallResult) -> float:
        """Return a score: `NOT_RUN`, or a provisional 0 for a call that ran out of time, which it may have on a busy
        machine.
        """
        if result.breach in ("not run", "beyond budget"):
            if result.breach == "beyond budget":
                self.count(BEYOND_BUDGET)
            return NOT_RUN
        if result.breach:
            # A scorer of reasoning-gym may fail on any answer that it does not expect. One of an author's own
            # environment is a mistake that the author should know of.
            if result.error is not None and "/reasoning_gym/" not in result.error.where:
                self._log.add_failure(result.error, result.breach, own=self.scores_own)
            return Provisional(0.0) if result.breach in ("timeout", "killed") else 0.0
        score = as_number(result.value)
        if score is None or not math.isfinite(score):
            error = CodeError("not a number", f"returned {kind_of(result.value)}; expected a number from 0 to 1")
            self._log.add_failure(error, own=self.scores_own)
            return 0.0
        self._log.add_success()
        return min(max(score, 0.0), 1.0)

    def round_scored(self, state: GameState) -> None:
        other, self._other_source = self._other_source, 0
        if other and not any(map(_is_of_an_environment, state.questions.values())):
            raise BadGame(
                f"the rewards reasoning-gym scored none of {other} answers in round {state.round.number}: the "
                "questions are of other data. Use rewards that fit the data, such as exact or function"
            )
        self._log.end_round(state.round.number)

    def failures(self) -> Sequence[ScoringFailure]:
        return self._log.failures

    def finish(self, score: float, rollout: Rollout, answer: str | None) -> float:
        if self.config.threshold is not None and not math.isnan(score):
            score = float(score >= self.config.threshold)
        tagged = answer is not None and answer != rollout.text.strip()  # the plain answer is the complete text
        cut = rollout.finish_reason == FinishReason.LENGTH
        return score + self.config.format_reward * tagged - self.config.length_penalty * cut

    def counters(self) -> Mapping[str, int]:
        return {**super().counters(), **(self._sandbox.counters() if self._sandbox is not None else {})}

    def close(self) -> None:
        if self._sandbox is not None:
            self._sandbox = None
            SharedSandbox.release()


def _is_of_an_environment(question: Question) -> bool:
    """Return whether a question has the metadata of the `reasoning-gym` data; columns of other data may have the same
    names.
    """
    environment, config = question.metadata.get("environment"), question.metadata.get("config")
    return isinstance(environment, str) and isinstance(config, Mapping)
