"""The `reasoning-gym` rewards: the environment's own scorer, called in the sandbox.

The sandbox regenerates the question from (environment, configuration, seed), so no data of a remote peer is used for
it. Many scorers evaluate the answer, so none runs in this process. A breach or an exception in a scorer gives a score
of 0 and is counted. Invariant: a reward depends only on the question and the rollout's text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field

from swarmgame.game.components import ComponentContext
from swarmgame.game.state import FinishReason, Question, Rollout
from swarmgame.rewards.scoring import AnswerConfig, AnswerRewards, finite
from swarmgame.sandbox.client import Sandbox, SharedSandbox

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
        self.full_reward = 1.0 if self.config.threshold is not None else 0.99

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
            result = next(results)
            score = finite(result.value)
            # A call that was not run, or that ran out of time on a busy machine, is scored again for the next author.
            retry = result.breach in ("not run", "timeout", "killed")
            scores.append(None if retry else min(max(score or 0.0, 0.0), 1.0))
        return scores

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
