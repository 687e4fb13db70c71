"""The `episodes` data: one text, seeds that differ, and no seed of an evaluation in a round."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pydantic import ValidationError

from swarmgame import ComponentContext, Round
from swarmgame.data.episodes import Episodes, EpisodesConfig

ROUND = Round(number=0, seed=1, peer_seed=2, stages=1, peer="me", members=("me",))


def data(text: str = "reach the goal:", **options: object) -> Episodes:
    return Episodes(EpisodesConfig(text=text, **options), ComponentContext(seed=1))  # type: ignore[arg-type]


def test_questions_of_a_round_differ_in_their_seeds_alone_and_come_again() -> None:
    questions = data().round_data(ROUND)
    assert {question.text for question in questions} == {"reach the goal:"}
    assert len({question.id for question in questions}) == 8
    assert data().round_data(ROUND) == questions
    later = data().round_data(replace(ROUND, number=1))
    assert not {question.id for question in questions} & {question.id for question in later}


def test_another_peer_resolves_rounds_and_no_evaluation() -> None:
    for question in data().round_data(ROUND):
        assert data().resolve(question.reference) == question
        assert data("other rules:").resolve(question.reference) is None
    held_out = data().evaluation_data(40)
    assert len({question.id for question in held_out}) == 40
    assert not any(data().resolve(question.reference) for question in held_out)


def test_turns_of_the_warm_start_are_those_of_the_manifest_and_part_of_its_fingerprint() -> None:
    shown = data(turns=["left", "right"]).demonstrate(3, 50)
    assert {example.completion for example in shown} == {"left", "right"}
    assert {example.prompt.text for example in shown} == {"reach the goal:"}
    assert data(turns=["left", "right"]).demonstrate(3, 50) == shown
    assert data().demonstrate(3, 50) == ()
    assert len({data().fingerprint, data(turns=["left"]).fingerprint, data("x").fingerprint}) == 3


def test_a_text_is_required() -> None:
    with pytest.raises(ValidationError):
        EpisodesConfig()  # type: ignore[call-arg]
