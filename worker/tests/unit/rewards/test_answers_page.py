"""Every row of docs/reference/answers.md is what the rewards do."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import pytest

from swarmgame import ComponentContext, Question, QuestionRef
from swarmgame.rewards.choices import chosen_letter
from swarmgame.rewards.exact import ExactRewards, ExactRewardsConfig
from swarmgame.rewards.numbers_in_text import last_number

PAGE = (Path(__file__).parents[4] / "docs/reference/answers.md").read_text(encoding="utf-8")
ROW = re.compile(r"\| `(.+?)` \| `?(.+?)`? \| (.*?) ?\|")


def rows(heading: str, columns: str) -> list[tuple[str, str, str]]:
    """Return the cells of the table with these columns below a heading."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = section.partition(f"| {columns} |\n|---|---|---|\n")[2].partition("\n\n")[0].strip().splitlines()
    found = [match.groups() for line in lines if (match := ROW.fullmatch(line))]
    assert lines
    assert len(found) == len(lines), f"a row of {heading} is not read by this test"
    return [(first, second, third) for first, second, third in found]


def is_right(match: str, known: str, answer: str) -> bool:
    rewards = ExactRewards(ExactRewardsConfig.model_validate({"match": match}), ComponentContext())
    question = Question(QuestionRef("text", "x", 0, 0), "?", known)
    [score] = rewards.score([(question, answer)])
    assert score in (0.0, 1.0)
    return score == 1.0


NUMBERS = "`exact` with `match: number`"


@pytest.mark.parametrize(("text", "value", "rule"), rows(NUMBERS, "text | read as | rule"))
def test_a_text_is_read_as_the_number_of_the_page(text: str, value: str, rule: str) -> None:
    assert last_number(text) == (None if value == "none" else Fraction(value)), rule


@pytest.mark.parametrize(("known", "answer", "verdict"), rows(NUMBERS, "known answer | answer |"))
def test_numbers_are_compared_as_on_the_page(known: str, answer: str, verdict: str) -> None:
    assert is_right("number", known, answer) == {"right": True, "wrong": False}[verdict]


@pytest.mark.parametrize(("known", "answer", "verdict"), rows("`exact` with `match: text`", "known answer | answer |"))
def test_texts_are_compared_as_on_the_page(known: str, answer: str, verdict: str) -> None:
    assert is_right("text", known, answer) == {"right": True, "wrong": False}[verdict]


@pytest.mark.parametrize(("text", "letter", "rule"), rows("`exact` with `match: choice`", "text | chosen | rule"))
def test_a_text_chooses_the_letter_of_the_page(text: str, letter: str, rule: str) -> None:
    assert chosen_letter(text, frozenset("ABCD")) == (None if letter == "none" else letter), rule
