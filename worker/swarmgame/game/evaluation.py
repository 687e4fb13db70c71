"""Evaluation: the scores of held-out questions, with their standard errors, and pass@k.

Pure functions of rewards; the loop plays the stages and calls `evaluation_of`. The score of a question is the mean
reward of its rollouts in the last stage that scored it, so that a game whose questions end at different stages is
scored too. Standard errors are over questions: rollouts of one question are not independent.

Sources: pass@k: Chen et al. 2021 (arXiv 2107.03374), eq. 1. Errors by question, and differences of the same questions:
Miller 2024 (arXiv 2411.00640).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from swarmgame.game.state import GameState, Rewards

ALL = "all"
"""The key of the mean over all environments."""
MAX_SCORES = 1024
"""Most questions whose scores are kept one by one: they are part of a line of `metrics.jsonl`."""


@dataclass(frozen=True)
class Evaluation:
    """Results on held-out questions, without training; where a mapping is by environment, `all` is over all of them.

    Args:
        average: environment → mean reward over all rollouts of the last stage (avg@k).
        passed: environment → share of questions with at least one rollout of full reward (pass@k).
        samples: k.
        errors: environment → standard error of `average`; NaN with fewer than two scored questions.
        stages: mean reward of each stage; NaN where nothing was scored.
        pass_at: k → share of questions that k rollouts pass, unbiased, for 1, 2, 4, … and `samples`.
        scores: question id → its mean reward; empty for more than 1,024 questions. For paired differences.
        sampled: the same questions with several sampled rollouts each; None where the game asks for none.
    """

    average: Mapping[str, float]
    passed: Mapping[str, float]
    samples: int
    errors: Mapping[str, float] = field(default_factory=dict)
    stages: tuple[float, ...] = ()
    pass_at: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    sampled: Evaluation | None = None

    def with_sampled(self, sampled: Evaluation) -> Evaluation:
        """Return this evaluation with the sampled pass over the same questions, without the scores of each."""
        return replace(self, sampled=replace(sampled, scores={}))

    def as_json(self) -> dict[str, Any]:
        """Return the fields as plain values; `sampled` only where there is one."""
        found: dict[str, Any] = {
            "average": dict(self.average),
            "passed": dict(self.passed),
            "samples": self.samples,
            "errors": dict(self.errors),
            "stages": list(self.stages),
            "pass_at": dict(self.pass_at),
            "scores": dict(self.scores),
        }
        return found if self.sampled is None else {**found, "sampled": self.sampled.as_json()}


def evaluation_of(state: GameState, rewards: Rewards, full_reward: float) -> Evaluation:
    """Return the results of a pass over held-out questions.

    Args:
        state: after all stages, with one contribution each, the peer's own.
        rewards: of its groups; NaN marks a rollout that was not scored.
        full_reward: a rollout with at least this reward counts as passed.
    """
    by_stage: list[list[float]] = [[] for _ in range(state.round.stages)]
    final: dict[str, Sequence[float]] = {}
    for key, values in sorted(rewards.items(), key=lambda pair: pair[0].stage):
        scored = [value for value in values if not math.isnan(value)]
        by_stage[key.stage] += scored
        if scored or key.question_id not in final:
            final[key.question_id] = scored
    names = {question: state.questions[question].reference.environment for question in final}
    average: dict[str, float] = {}
    errors: dict[str, float] = {}
    passed: dict[str, float] = {}
    for name in sorted({*names.values(), ALL} if final else ()):
        groups = [values for question, values in final.items() if name in (ALL, names[question])]
        average[name] = mean_of([value for values in groups for value in values])
        errors[name] = standard_error([mean_of(values) for values in groups if values])
        passed[name] = mean_of([float(any(value >= full_reward for value in values)) for values in groups])
    samples = max(map(len, final.values()), default=0)
    scores = {question: mean_of(values) for question, values in final.items() if values}
    return Evaluation(
        average=average,
        passed=passed,
        samples=samples,
        errors=errors,
        stages=tuple(map(mean_of, by_stage)),
        pass_at=pass_at_powers([[value >= full_reward for value in values] for values in final.values()], samples),
        scores=scores if len(scores) <= MAX_SCORES else {},
    )


def pass_at_powers(passed: Sequence[Sequence[bool]], samples: int) -> dict[str, float]:
    """Return pass@k for k = 1, 2, 4, … and `samples`, over the questions with at least k scored rollouts."""
    found: dict[str, float] = {}
    for k in sorted({*(2**power for power in range(samples.bit_length())), samples} - {0}):
        estimates = [pass_at_k(len(each), sum(each), k) for each in passed if len(each) >= k]
        if estimates:
            found[str(k)] = mean_of(estimates)
    return found


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Return the probability that at least one of k rollouts passes, unbiased, from `correct` of `samples`.

    Raises:
        ValueError: there are fewer than k samples, or more correct ones than samples.
    """
    if not 0 <= correct <= samples or not 1 <= k <= samples:
        raise ValueError(f"pass@{k} cannot be estimated from {correct} correct of {samples} rollouts")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean (of n values, with n - 1); NaN with fewer than two."""
    if len(values) < 2:
        return math.nan
    mean = mean_of(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def mean_of(values: Sequence[float]) -> float:
    """Return the mean; NaN without values."""
    return sum(values) / len(values) if values else math.nan
