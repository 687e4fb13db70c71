"""The `reasoning-gym` rewards: the same code for our own answers and for remote ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from swarmgame import (
    ComponentContext,
    Contribution,
    FinishReason,
    GameState,
    Group,
    GroupKey,
    Question,
    QuestionRef,
    Rollout,
    Round,
)
from swarmgame.data.reasoning_gym import ReasoningGymConfig, ReasoningGymData
from swarmgame.rewards.reasoning_gym import ReasoningGymRewards, ReasoningGymRewardsConfig
from swarmgame.sandbox.client import Sandbox

ROUND = Round(number=0, seed=1, peer_seed=2, stages=1, peer="a", members=("a", "b"))


@pytest.fixture(scope="module")
def data(sandbox: Sandbox) -> Iterator[ReasoningGymData]:
    environments = [{"name": "chain_sum"}, {"name": "n_queens"}, {"name": "prime_factorization"}]
    data = ReasoningGymData(
        ReasoningGymConfig.model_validate({"environments": environments, "questionsPerRound": 9}), ComponentContext()
    )
    yield data
    data.close()


@pytest.fixture
def rewards(sandbox: Sandbox) -> Iterator[ReasoningGymRewards]:
    rewards = ReasoningGymRewards()
    yield rewards
    rewards.close()


def state_of(
    data: ReasoningGymData,
    answers: dict[str, list[str]],
    question: Question | None = None,
    reason: FinishReason = FinishReason.STOP,
) -> GameState:
    """Return a state with these answers of each peer to one question."""
    question = question or data.round_data(ROUND)[0]
    state = GameState.begin(ROUND, [question])
    for peer, texts in answers.items():
        group = Group(data.prompt(question), tuple(Rollout(text, finish_reason=reason) for text in texts))
        state = state.with_contribution(Contribution(peer, 0, 0, (group,), {question.id: question.reference}))
    return state


def one_of(data: ReasoningGymData, name: str) -> Question:
    return next(
        question
        for number in range(9)
        for question in data.round_data(replace(ROUND, number=number))
        if question.reference.environment == name
    )


def scores(rewards: ReasoningGymRewards, state: GameState) -> dict[str, list[float]]:
    return {key.peer: list(values) for key, values in rewards.rewards(state).items()}


def test_right_answers_of_anybody_score_1_and_wrong_ones_0(
    data: ReasoningGymData, rewards: ReasoningGymRewards
) -> None:
    question = one_of(data, "chain_sum")
    answers = {"a": [question.answer, "x", f"  {question.answer}\n"], "b": [question.answer, ""]}
    assert scores(rewards, state_of(data, answers, question)) == {"a": [1, 0, 1], "b": [1, 0]}


def test_a_scorer_that_raises_is_a_score_of_0_and_a_count(data: ReasoningGymData, rewards: ReasoningGymRewards) -> None:
    question = one_of(data, "prime_factorization")
    before = rewards.counters().get("sandbox_exception", 0)
    assert scores(rewards, state_of(data, {"a": ["no numbers", question.answer]}, question)) == {"a": [0, 1]}
    assert rewards.counters()["sandbox_exception"] == before + 1


def test_one_authors_breaches_do_not_affect_the_rewards_of_others(
    data: ReasoningGymData, rewards: ReasoningGymRewards, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "deadline", 1.0)
    question = one_of(data, "n_queens")
    slow = " + ".join(["len(sorted(range(500000)))"] * 250)
    bombs = [f"[{slow} + {n}]" for n in range(8)]
    found = scores(rewards, state_of(data, {"b": [*bombs, question.answer], "a": [question.answer]}, question))
    assert found["a"] == [1]
    assert [found["b"][position] for position in (0, 1, 2, 8)] == [0, 0, 0, 1]
    assert all(map(math.isnan, found["b"][3:8]))  # not run, so neither right nor wrong
    assert rewards.counters()["sandbox_timeout"] >= 3
    assert rewards.counters()["sandbox_not_run"] >= 5


def test_a_score_is_cached(data: ReasoningGymData, rewards: ReasoningGymRewards) -> None:
    state = state_of(data, {"a": ["1", "2", "1"]})
    first = rewards.rewards(state)
    rewards._sandbox.call_untrusted = None  # type: ignore[method-assign, union-attr, assignment] — a second call would fail
    try:
        assert rewards.rewards(state) == first
    finally:
        del rewards._sandbox.call_untrusted  # type: ignore[union-attr]


def test_an_answer_that_is_too_long_scores_0_unread(data: ReasoningGymData, rewards: ReasoningGymRewards) -> None:
    assert scores(rewards, state_of(data, {"a": ["1" * 10_000]})) == {"a": [0]}
    assert rewards.counters()["answers_too_long"] == 1


def test_items_of_another_source_score_0_and_are_counted(data: ReasoningGymData, rewards: ReasoningGymRewards) -> None:
    question = Question(QuestionRef("text", "x", 0, 0), "2 + 2?", "4")
    assert scores(rewards, state_of(data, {"a": ["4"]}, question)) == {"a": [0]}
    assert rewards.counters()["items_of_another_source"] == 1


@pytest.mark.parametrize(
    ("config", "text", "reason", "expected"),
    [
        ({"answerFormat": "tagged"}, "so <answer>{answer}</answer>", FinishReason.STOP, 1.0),
        ({"answerFormat": "tagged"}, "<answer>1</answer> no, <answer> {answer} </answer>", FinishReason.STOP, 1.0),
        ({"answerFormat": "tagged"}, "{answer}", FinishReason.STOP, 0.0),
        ({"answerFormat": "tagged", "formatReward": 0.1}, "<answer>x</answer>", FinishReason.STOP, 0.1),
        ({"answerFormat": "tagged", "formatReward": 0.1}, "x", FinishReason.STOP, 0.0),
        ({"threshold": 0.99}, "it is {answer}, I think", FinishReason.STOP, 0.0),
        ({"lengthPenalty": 0.25}, "{answer}", FinishReason.LENGTH, 0.75),
        ({"lengthPenalty": 0.25}, "{answer}", FinishReason.STOP, 1.0),
    ],
)
def test_scores_become_rewards_as_configured(
    data: ReasoningGymData, config: dict[str, Any], text: str, reason: FinishReason, expected: float
) -> None:
    question = one_of(data, "chain_sum")
    rewards = ReasoningGymRewards(ReasoningGymRewardsConfig.model_validate(config), ComponentContext())
    try:
        assert scores(rewards, state_of(data, {"a": [text.format(answer=question.answer)]}, question, reason)) == {
            "a": [expected]
        }
    finally:
        rewards.close()


def test_every_group_of_the_state_is_rewarded_late_ones_too(
    data: ReasoningGymData, rewards: ReasoningGymRewards
) -> None:
    questions = data.round_data(ROUND)
    later = replace(ROUND, number=1)
    groups = tuple(Group(data.prompt(question), (Rollout(question.answer),)) for question in questions)
    late = Contribution("b", 0, 0, groups, {question.id: question.reference for question in questions})
    state = GameState.begin(later, questions).with_contribution(late)
    assert rewards.rewards(state) == {GroupKey(0, 0, "b", question.id): [1.0] for question in questions}
