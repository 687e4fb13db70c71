"""Answers that were not run are neither right nor wrong: they have no score, and nobody else loses by them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from swarmgame import ComponentContext, Contribution, GameState, Group, Prompt, Question, QuestionRef, Rollout, Round
from swarmgame.rewards.composite import _sum
from swarmgame.rewards.reasoning_gym import ReasoningGymRewards, ReasoningGymRewardsConfig
from swarmgame.rewards.scoring import NOT_RUN, AnswerConfig, AnswerRewards, Provisional

QUESTION = Question(QuestionRef("text", "x", 0, 0), "?", "4")


class Scripted(AnswerRewards):
    """Returns the next of some scores for each answer of a batch."""

    def __init__(self, *batches: Sequence[float]) -> None:
        super().__init__(AnswerConfig(), ComponentContext())
        self.batches = list(batches)
        self.scored: list[list[str]] = []

    def score(self, answers: Sequence[tuple[Question, str]]) -> Sequence[float]:
        self.scored.append([answer for _, answer in answers])
        return self.batches.pop(0)


def state_of(**texts: str) -> GameState:
    state = GameState.begin(Round(0, 1, 2, 1, "me", tuple(sorted(texts))), [QUESTION])
    for peer, answers in texts.items():
        group = Group(Prompt.from_question(QUESTION), tuple(map(Rollout, answers)))
        state = state.with_contribution(Contribution(peer, 0, 0, (group,), {QUESTION.id: QUESTION.reference}))
    return state


def by_peer(manager: AnswerRewards, state: GameState) -> dict[str, list[float]]:
    return {key.peer: list(values) for key, values in manager.rewards(state).items()}


def test_an_answer_that_was_not_run_has_no_score_and_is_scored_for_the_next_author() -> None:
    manager = Scripted([1.0, NOT_RUN, NOT_RUN], [0.5])
    found = by_peer(manager, state_of(me="abc", you="b"))
    assert found["me"][:2] == [1.0, 0.5]
    assert math.isnan(found["me"][2])
    assert found["you"] == [0.5]
    assert manager.scored == [["a", "b", "c"], ["b"]]
    manager.batches = [[0.25]]
    assert by_peer(manager, state_of(me="abc"))["me"] == [1.0, 0.5, 0.25]  # what was not run is not remembered


def test_a_held_out_answer_that_was_not_run_is_wrong_so_that_slow_answers_do_not_raise_the_mean() -> None:
    state = state_of(me="ab")
    held_out = replace(state, round=replace(state.round, evaluation=True))
    assert by_peer(Scripted([1.0, NOT_RUN]), held_out) == {"me": [1.0, 0.0]}


def test_a_time_out_is_0_for_its_author_and_is_no_verdict_on_the_same_answer_of_another() -> None:
    assert by_peer(Scripted([Provisional(0.0)], [1.0]), state_of(me="a", you="a")) == {"me": [1.0], "you": [1.0]}
    assert by_peer(Scripted([Provisional(0.0)], [NOT_RUN]), state_of(me="a", you="a")) == {"me": [0.0], "you": [0.0]}
    assert by_peer(Scripted([NOT_RUN], [Provisional(0.0)]), state_of(me="a", you="a")) == {"me": [0.0], "you": [0.0]}


@pytest.mark.parametrize("config", [{}, {"threshold": 0.99}, {"format_reward": 0.1}, {"length_penalty": 0.1}])
def test_no_option_turns_a_missing_score_into_one(config: dict[str, float]) -> None:
    manager = ReasoningGymRewards.__new__(ReasoningGymRewards)
    manager.config = ReasoningGymRewardsConfig(**config)  # type: ignore[arg-type]
    assert math.isnan(manager.finish(NOT_RUN, Rollout("x"), "x"))


def test_a_sum_with_a_missing_score_is_missing() -> None:
    assert math.isnan(_sum([(1.0, {}), (2.0, {})], (1.0, NOT_RUN)))
