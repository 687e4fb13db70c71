"""examples/05-own-game: the roles' questions, and the rewards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from running import EXAMPLES

from swarmgame import ComponentContext, Round


@pytest.fixture(autouse=True)
def beside_the_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES / "05-own-game")


def numerals() -> Any:
    from numerals import Numerals, NumeralsConfig

    return Numerals(NumeralsConfig(questions_per_round=20), ComponentContext(seed=1))


def round_of(role: str) -> Round:
    return Round(number=0, seed=1, peer_seed=2, stages=1, peer="a", members=("a", "b"), role=role)


def test_a_peer_asks_the_questions_of_its_role_and_every_peer_resolves_them() -> None:
    reading, writing = (numerals().round_data(round_of(role)) for role in ("reader", "writer"))
    assert all(question.text.strip("=").isalpha() and question.answer.isdigit() for question in reading)
    assert [(q.answer, q.text) for q in writing] == [(q.text.strip("="), f"{q.answer}=") for q in reading]
    for question in (*reading, *writing):
        assert numerals().resolve(question.reference) == question
        for change in ({"environment": "judge"}, {"config": "other"}, {"seed": 1}, {"index": 10**6}, {"index": -1}):
            assert numerals().resolve(replace(question.reference, **change)) is None


def test_held_out_rows_are_of_both_roles_and_in_no_round_or_warm_start() -> None:
    data = numerals()
    held_out = data.evaluation_data(40)
    assert [question.reference.environment for question in held_out] == ["reader", "writer"] * 20
    assert len({question.id for question in held_out}) == 40
    assert not any(data.resolve(question.reference) for question in held_out)
    shown = {example.prompt.text for example in data.demonstrate(seed=1, count=500)}
    assert not shown & {question.text for question in held_out}
    asked = {q.text for role in ("reader", "writer") for q in replace_size(130).round_data(round_of(role))}
    assert not shown & asked


def replace_size(count: int) -> Any:
    from numerals import Numerals, NumeralsConfig

    return Numerals(NumeralsConfig.model_construct(questions_per_round=count), ComponentContext(seed=1))


@pytest.mark.parametrize(
    ("given", "reward"), [("14", 1.0), (" 14 ", 1.0), ("15", 0.25), ("1", 0.25), ("144", 1 / 3), ("", 0.0), ("x", 0.0)]
)
def test_an_answer_that_is_right_in_part_gets_less_than_half(given: str, reward: float) -> None:
    from rewards import partly_right

    assert partly_right({"answer": "14"}, given) == pytest.approx(reward)
