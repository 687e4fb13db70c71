"""The trial of a game before anything starts: the author's errors with the author's lines, and a time limit."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
from toys import ToyData, ToyRewards

from swarmgame import ComponentContext, GameState, Prompt, Question, QuestionRef, Round
from swarmgame.errors import BadGame, InvalidManifest
from swarmgame.game.external_sampling import ExternalSamplingPolicy
from swarmgame.game.manager import Progression
from swarmgame.runtime.trial import try_game

SHARES = Progression(max_rounds=3, sharing=ExternalSamplingPolicy(external_groups=8), evaluate_every=1)


def tried(
    data: type[ToyData] = ToyData,
    rewards: type[ToyRewards] = ToyRewards,
    progression: Progression = SHARES,
    seconds: float = 60.0,
) -> tuple[str, ...]:
    return try_game(progression, data, data.Config(), rewards, ToyRewards.Config(), ComponentContext(), seconds=seconds)


def test_a_sound_game_has_no_warnings_and_its_data_is_closed() -> None:
    closed: list[bool] = []

    class Closing(ToyData):
        def close(self) -> None:
            closed.append(True)

    assert tried(Closing) == ()
    assert closed == [True]


def test_an_error_of_the_data_names_class_method_and_the_authors_line() -> None:
    class Failing(ToyData):
        def round_data(self, round: Round) -> Sequence[Question]:
            raise KeyError("column")

    with pytest.raises(BadGame) as caught:
        tried(Failing)
    message = str(caught.value)
    assert "test_trial:Failing failed in round_data: KeyError: 'column' at " in message
    assert 'raise KeyError("column")' in message


def test_an_error_of_the_constructor_is_explained_alike() -> None:
    class Failing(ToyData):
        def __init__(self, config: Any, context: ComponentContext) -> None:
            raise ZeroDivisionError("no rows")

    with pytest.raises(BadGame, match=r"Failing failed in its constructor: ZeroDivisionError: no rows at .*test_trial"):
        tried(Failing)


@pytest.mark.parametrize(
    ("returned", "found"),
    [
        (None, "Odd.round_data returned None; expected a list of Question"),
        (["q"], "Odd.round_data returned a list with 'q' (str); expected a list of Question"),
    ],
)
def test_data_that_returns_no_questions_is_refused(returned: Any, found: str) -> None:
    class Odd(ToyData):
        def round_data(self, round: Round) -> Sequence[Question]:
            return returned  # type: ignore[no-any-return]

    with pytest.raises(BadGame) as caught:
        tried(Odd)
    assert str(caught.value) == found


def test_prompts_that_depend_on_who_calls_are_found() -> None:
    class Turns(ToyData):
        def stage_inputs(self, state: GameState, stage: int) -> Sequence[Prompt]:
            first = min(state.round.members)
            return super().stage_inputs(state, stage) if state.round.peer == first else []

    class Named(ToyData):
        def stage_inputs(self, state: GameState, stage: int) -> Sequence[Prompt]:
            return [Prompt.from_question(q, f"{state.round.peer}: {q.text}") for q in state.questions.values()]

    assert [warning.split(" when")[0] for data in (Turns, Named) for warning in tried(data)] == [
        "Turns.stage_inputs makes no prompt for the same question",
        "Named.stage_inputs makes another prompt for the same question",
    ]
    assert tried(Named, progression=Progression(max_rounds=3)) == ()
    assert tried(Named, progression=Progression(max_rounds=3, sharing=SHARES.sharing, single_peer=True)) == ()


def test_questions_that_cannot_be_made_again_are_found() -> None:
    class Unknown(ToyData):
        def resolve(self, reference: QuestionRef) -> Question | None:
            return None

    class Different(ToyData):
        def resolve(self, reference: QuestionRef) -> Question | None:
            return Question(reference, "another question", "1")

    assert "other peers drop all groups as unresolvable" in tried(Unknown)[0]
    assert "Different.resolve makes another question from a reference" in tried(Different)[0]


def test_an_evaluation_without_questions_is_found() -> None:
    class Without(ToyData):
        def evaluation_data(self, count: int) -> Sequence[Question]:
            return ()

    assert tried(Without) == (
        "spec.game.evaluation is set, but Without.evaluation_data returns no question: nothing is evaluated",
    )
    assert tried(Without, progression=Progression(max_rounds=3)) == ()


def test_errors_of_the_rewards_are_raised_as_they_are() -> None:
    class Refusing(ToyRewards):
        @classmethod
        def check_with(cls, config: Any, context: ComponentContext, question: Question) -> None:
            raise InvalidManifest("spec.game.rewards.use", question.answer, "other rewards")

    with pytest.raises(InvalidManifest, match="expected other rewards"):
        tried(rewards=Refusing)


def test_a_trial_that_takes_too_long_is_left_out_with_a_word() -> None:
    waiting = threading.Event()

    class Slow(ToyData):
        def round_data(self, round: Round) -> Sequence[Question]:
            waiting.wait()
            return ()

    assert tried(Slow, seconds=0.05) == (
        "the trial of Slow and ToyRewards took longer than 0.05 s and was left out: a mistake in them shows in the "
        "first round",
    )
    waiting.set()
