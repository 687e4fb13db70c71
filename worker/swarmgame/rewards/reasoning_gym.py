"""The `reasoning-gym` rewards: the environment's own scorer, called in the sandbox.

The sandbox regenerates the question from (environment, configuration, seed), so no data of a remote peer is used for
it. Many scorers evaluate the answer, so none runs in this process. A breach or an exception in a scorer gives a score
of 0 and is counted. Invariant: a reward depends only on the question and the rollout's text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from swarmgame.errors import BadGame, InvalidManifest
from swarmgame.game.components import ComponentContext
from swarmgame.game.reward_checks import ScoringFailure
from swarmgame.game.state import FinishReason, GameState, Question, Rollout
from swarmgame.rewards.failures import FailureLog
from swarmgame.rewards.scoring import AnswerConfig, AnswerRewards
from swarmgame.sandbox.client import CallResult, Sandbox, SharedSandbox
from swarmgame.user_code import CodeError, as_number, kind_of

_BATCH = 512


class ReasoningGymRewardsConfig(AnswerConfig):
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
        self._warm = False
        self._log = FailureLog("the environments' score")
        self._other_source = 0
        self.full_reward = 1.0 if self.config.threshold is not None else 0.99

    @classmethod
    def check_with(cls, config: Any, context: ComponentContext, question: Question) -> None:
        if "environment" not in question.metadata:
            expected = "rewards for this data, such as exact or function: its questions are not of reasoning-gym"
            raise InvalidManifest("spec.game.rewards.use", "reasoning-gym", expected)

    def score(self, answers: Sequence[tuple[Question, str]]) -> Sequence[float | None]:
        if self._sandbox is None:
            raise RuntimeError("the reward manager is closed")
        if not self._warm:
            self._sandbox.prepare("swarmgame.data.environments:warm")
            self._warm = True
        calls: list[list[object]] = []
        for question, answer in answers:
            if "environment" not in question.metadata:
                self.count("items_of_another_source")
                self._other_source += 1
            else:
                calls.append(
                    [question.metadata["environment"], question.metadata["config"], question.reference.seed, answer]
                )
        batches = [calls[start : start + _BATCH] for start in range(0, len(calls), _BATCH)]
        results = iter(
            [
                result
                for batch in batches
                for result in self._sandbox.call_untrusted("swarmgame.data.environments:score", batch)
            ]
        )
        scores: list[float | None] = []
        for question, _ in answers:
            if "environment" not in question.metadata:
                scores.append(0.0)
                continue
            scores.append(self._score_of(next(results)))
        return scores

    def reuse(self, question_id: str, answer: str) -> None:
        self._log.add_success()

    def _score_of(self, result: CallResult) -> float | None:
        """Return a score; None for a call that was not run, or that ran out of time on a busy machine: it is scored
        again for the next author.
        """
        if result.breach:
            # A scorer of reasoning-gym may fail on any answer that it does not expect. One of an author's own
            # environment is a mistake that the author should know of.
            if result.error is not None and "/reasoning_gym/" not in result.error.where:
                self._log.add_failure(result.error, result.breach, own=self.scores_own)
            return None if result.breach in ("not run", "timeout", "killed") else 0.0
        score = as_number(result.value)
        if score is None or not math.isfinite(score):
            error = CodeError("not a number", f"returned {kind_of(result.value)}; expected a number from 0 to 1")
            self._log.add_failure(error, own=self.scores_own)
            return 0.0
        self._log.add_success()
        return min(max(score, 0.0), 1.0)

    def round_scored(self, state: GameState) -> None:
        other, self._other_source = self._other_source, 0
        if other and all("environment" not in question.metadata for question in state.questions.values()):
            raise BadGame(
                f"the rewards reasoning-gym scored none of {other} answers in round {state.round.number}: the "
                "questions are of other data. Use rewards that fit the data, such as exact or function"
            )
        self._log.end_round(state.round.number)

    def failures(self) -> Sequence[ScoringFailure]:
        return self._log.failures

    def finish(self, score: float, rollout: Rollout, answer: str | None) -> float:
        if self.config.threshold is not None:
            score = float(score >= self.config.threshold)
        tagged = answer is not None and "</answer>" in rollout.text
        cut = rollout.finish_reason == FinishReason.LENGTH
        return score + self.config.format_reward * tagged - self.config.length_penalty * cut

    def counters(self) -> Mapping[str, int]:
        return {**super().counters(), **(self._sandbox.counters() if self._sandbox is not None else {})}

    def close(self) -> None:
        if self._sandbox is not None:
            self._sandbox = None
            SharedSandbox.release()
