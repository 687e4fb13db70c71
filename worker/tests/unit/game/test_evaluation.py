"""Scores of held-out questions: errors by question, stages, pass@k."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_game import Scripted, manager
from toys import ToyRewards, ToyTrainer

from swarmgame import Contribution, GameState, Group, GroupKey, Prompt, Question, QuestionRef, Rewards, Rollout, Round
from swarmgame.game.evaluation import MAX_SCORES, evaluation_of, pass_at_k, standard_error
from swarmgame.game.manager import Progression, RunResult
from swarmgame.game.state import Sampling


def played(*stages: dict[tuple[str, int], Sequence[float]]) -> tuple[GameState, Rewards]:
    """Return a state with one contribution a stage; the keys are environment and index of a question."""
    questions = {
        each: Question(QuestionRef(each[0], "v1", 7, each[1])) for each in sorted({key for s in stages for key in s})
    }
    state = GameState.begin(Round(0, 0, 0, len(stages), "me", evaluation=True), questions.values())
    rewards: dict[GroupKey, Sequence[float]] = {}
    for stage, scores in enumerate(stages):
        groups = tuple(
            Group(Prompt.from_question(questions[each]), tuple(Rollout(str(i)) for i in range(len(values))))
            for each, values in scores.items()
        )
        references = {questions[each].id: questions[each].reference for each in scores}
        state = state.with_contribution(Contribution("me", 0, stage, groups, references, tokenizer="t"))
        rewards |= {GroupKey(0, stage, "me", questions[each].id): values for each, values in scores.items()}
    return state, rewards


@given(
    st.integers(1, 9).flatmap(lambda n: st.tuples(st.lists(st.booleans(), min_size=n, max_size=n), st.integers(1, n)))
)
def test_pass_at_k_is_the_share_of_all_choices_of_k_rollouts_that_hold_a_right_one(
    case: tuple[list[bool], int],
) -> None:
    passed, k = case
    choices = list(itertools.combinations(passed, k))
    assert pass_at_k(len(passed), sum(passed), k) == pytest.approx(sum(map(any, choices)) / len(choices))


@pytest.mark.parametrize(("samples", "correct", "k"), [(3, 0, 4), (3, 4, 1), (3, 1, 0)])
def test_pass_at_k_of_too_few_samples_is_an_error(samples: int, correct: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"pass@{k}"):
        pass_at_k(samples, correct, k)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30))
def test_the_standard_error_is_that_of_the_mean(values: list[float]) -> None:
    assert standard_error(values) == pytest.approx(statistics.stdev(values) / math.sqrt(len(values)), abs=1e-9)


def test_the_error_is_over_questions_and_not_over_their_rollouts() -> None:
    state, rewards = played({("a", 0): [1.0] * 100, ("a", 1): [0.0] * 100})
    found = evaluation_of(state, rewards, 1.0)
    assert found.average == {"a": 0.5, "all": 0.5}
    assert found.errors["all"] == pytest.approx(0.5)
    assert found.passed["all"] == 0.5
    assert found.pass_at == {"1": 0.5, "2": 0.5, "4": 0.5, "8": 0.5, "16": 0.5, "32": 0.5, "64": 0.5, "100": 0.5}


def test_each_stage_has_a_mean_and_a_question_counts_in_the_last_stage_that_scored_it() -> None:
    state, rewards = played(
        {("a", 0): [0.0, 1.0], ("b", 1): [1.0, 1.0]},
        {("a", 0): [1.0, 1.0]},
    )
    found = evaluation_of(state, rewards, 1.0)
    assert found.stages == (0.75, 1.0)
    assert found.average == {"a": 1.0, "b": 1.0, "all": 1.0}
    assert set(found.scores.values()) == {1.0}


def test_rollouts_without_a_score_are_left_out() -> None:
    state, rewards = played({("a", 0): [math.nan, 1.0], ("a", 1): [math.nan, math.nan], ("a", 2): [0.0, 0.5]})
    found = evaluation_of(state, rewards, 1.0)
    assert found.average["all"] == pytest.approx(0.5)
    assert len(found.scores) == 2
    assert found.pass_at == {"1": pytest.approx(0.5), "2": 0.0}
    assert found.samples == 2


def test_a_pass_without_a_scored_rollout_has_no_numbers() -> None:
    state, rewards = played({})
    found = evaluation_of(state, rewards, 1.0)
    assert (found.average, found.passed, found.samples, found.pass_at, found.scores) == ({}, {}, 0, {}, {})
    assert math.isnan(found.stages[0])


def test_the_scores_of_many_questions_are_not_kept_one_by_one() -> None:
    state, rewards = played({("a", index): [1.0] for index in range(MAX_SCORES + 1)})
    assert evaluation_of(state, rewards, 1.0).scores == {}


def test_the_first_evaluation_is_before_the_first_update_and_the_last_after_the_last_round() -> None:
    versions: list[tuple[int, int]] = []

    class Recording(ToyTrainer):
        def generate(self, prompts: Sequence[Prompt], round: Round) -> Sequence[Group]:
            if round.evaluation:
                versions.append((round.number, self.policy_version))
            return super().generate(prompts, round)

    game, seen, _ = manager(Scripted(), Progression(max_rounds=5, evaluate_every=3), trainer=Recording())
    game.run()
    assert versions == [(0, 0), (2, 3), (4, 5)]
    assert [report.first_evaluation is not None for report in seen.reports] == [True, False, False, False, False]
    assert [report.evaluation is not None for report in seen.reports] == [False, False, True, False, True]


def test_a_resumed_run_does_not_evaluate_before_its_first_round_again() -> None:
    game, seen, _ = manager(Scripted(), Progression(max_rounds=4, evaluate_every=9))
    game.run(2)
    assert [(r.round, r.first_evaluation is None, r.evaluation is None) for r in seen.reports] == [
        (2, True, True),
        (3, True, False),
    ]


def test_a_run_that_is_stopped_and_resumed_has_the_same_numbers_as_one_that_is_not() -> None:
    progression = Progression(max_rounds=6, seed=3, evaluate_every=2, evaluation_sampling=Sampling(3))
    straight, complete, _ = manager(Scripted(), progression)
    straight.run()
    stop = False
    communication = Scripted()
    game, seen, trainer = manager(communication, progression, stopped=lambda: stop)

    def stop_in_round_three() -> None:
        nonlocal stop
        stop = communication.published[-1][0].round == 3

    communication.on_collect = stop_in_round_three
    assert game.run() is RunResult.STOPPED
    resumed = ToyTrainer()
    resumed.load_state_dict(trainer.state_dict())
    again, rest, _ = manager(Scripted(), progression, trainer=resumed)
    again.run(3)

    def comparable(report: object) -> dict[str, object]:
        return {name: value for name, value in report.as_json().items() if name != "seconds"}  # type: ignore[attr-defined]

    assert [comparable(r) for r in (*seen.reports, *rest.reports)] == [comparable(r) for r in complete.reports]


def test_the_second_pass_samples_as_the_game_asks_over_the_same_questions() -> None:
    passes: list[Sampling | None] = []

    class Recording(ToyTrainer):
        def generate(self, prompts: Sequence[Prompt], round: Round) -> Sequence[Group]:
            if round.evaluation:
                passes.append(round.sampling)
            return super().generate(prompts, round)

    progression = Progression(
        max_rounds=1, evaluate_every=1, evaluation_questions=5, evaluation_sampling=Sampling(4, 0.7)
    )
    game, seen, _ = manager(Scripted(), progression, trainer=Recording(), rewards=ToyRewards())
    game.run()
    assert passes == [None, Sampling(4, 0.7)] * 2
    evaluation = seen.reports[0].evaluation
    assert evaluation is not None
    assert evaluation.sampled is not None
    assert set(evaluation.sampled.pass_at) == {"1", "2", "4"}
    assert evaluation.sampled.pass_at["4"] >= evaluation.sampled.pass_at["1"]
    written = seen.reports[0].as_json()
    assert set(written["evaluation"]["scores"]) == {q.id for q in game.data.evaluation_data(5)}
    assert written["evaluation"]["sampled"]["scores"] == {}
    assert written["first_evaluation"]["samples"] == 4
