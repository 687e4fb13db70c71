"""The `reasoning-gym` rewards: the environment's own scorer, called in the sandbox.

The question is made again there from (environment, configuration, seed), so that nothing a peer says about it is
believed. Many scorers evaluate the answer, which is why none runs here. A breach or an exception in a scorer is a score
of 0 and a count. Invariant: a reward depends on the item and the rollout's text alone.
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
    """When given, the reward is 1 for a score of at least this and 0 otherwise; many scorers give a little for nothing,
    so 0.99 is a good one.
    """
    format_reward: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Added for an answer in the asked format, whatever it says; only for the tagged format."""
    length_penalty: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Taken off a rollout that was cut at its limit of tokens."""


class ReasoningGymRewards(AnswerRewards):
    """For items of the `reasoning-gym` data; an item of another source scores 0 and is counted."""

    Config = ReasoningGymRewardsConfig
    config: ReasoningGymRewardsConfig

    def __init__(
        self, config: ReasoningGymRewardsConfig | None = None, context: ComponentContext | None = None
    ) -> None:
        super().__init__(config or ReasoningGymRewardsConfig(), context or ComponentContext())
        self._sandbox: Sandbox | None = SharedSandbox.hold()
        self._warm = False
        self.full_reward = 1.0 if self.config.threshold is not None else 0.99

    def score(self, asked: Sequence[tuple[Question, str]]) -> Sequence[float | None]:
        if self._sandbox is None:
            raise RuntimeError("the reward manager is closed")
        if not self._warm:
            self._sandbox.prepare("swarmgame.data.environments:warm")
            self._warm = True
        calls: list[list[object]] = []
        for question, answer in asked:
            if "environment" not in question.metadata:
                self.count("items_of_another_source")
            else:
                calls.append(
                    [question.metadata["environment"], question.metadata["config"], question.reference.seed, answer]
                )
        batches = [calls[start : start + _BATCH] for start in range(0, len(calls), _BATCH)]
        outcomes = iter(
            [
                outcome
                for batch in batches
                for outcome in self._sandbox.call_untrusted("swarmgame.data.environments:score", batch)
            ]
        )
        scores: list[float | None] = []
        for question, _ in asked:
            if "environment" not in question.metadata:
                scores.append(0.0)
                continue
            outcome = next(outcomes)
            score = finite(outcome.value)
            # What was not run for another's sake, or ran out of time on a busy machine, gets another chance elsewhere.
            fleeting = outcome.breach in ("not run", "timeout", "killed")
            scores.append(None if fleeting else min(max(score or 0.0, 0.0), 1.0))
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
