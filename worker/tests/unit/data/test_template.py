"""Templates of prompts: one pass, known columns, never the answer by accident."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmgame.data.template import Template
from swarmgame.errors import InvalidManifest

PATH = "spec.game.data.with.promptTemplate"
COLUMNS = {"question": "Q", "level": "2", "first name": "Ada", "a.b": "dot", "answer": "SECRET"}


def fill(template: str, **changed: str) -> str:
    return Template(template, COLUMNS, answer="answer", path=PATH).fill({**COLUMNS, **changed})


@pytest.mark.parametrize(
    ("template", "filled"),
    [
        ("{question}", "Q"),
        ("[{level}] {question} {question}", "[2] Q Q"),
        ("{first name}: {a.b}", "Ada: dot"),
        ('{question} as {"a": {"b": 1}}, {} or { question }', 'Q as {"a": {"b": 1}}, {} or { question }'),
        ("{question} in {{answer}}", "Q in {answer}"),
        ("{question} of {{x}}", "Q of {x}"),
        ("{{question}}", "{Q}"),
        (r"{question} Put it in \boxed{answer} or \boxed{}.", r"Q Put it in \boxed{answer} or \boxed{}."),
        (r"{question} \frac{a}{b} x^{2} x_{i} \text{your answer}", r"Q \frac{a}{b} x^{2} x_{i} \text{your answer}"),
        (r"\text{question}", r"\textQ"),
        (r"\boxed{answer}{question}", r"\boxed{answer}Q"),
    ],
)
def test_names_are_replaced_and_other_braces_stay(template: str, filled: str) -> None:
    assert fill(template) == filled


@given(st.sampled_from(["{question}", "{level}", "{answer}", "{{x}}", "{", "}", r"\boxed{answer}", "text"]).flatmap(
    lambda part: st.lists(st.just(part), max_size=4).map("".join)
))  # fmt: skip
def test_a_value_is_never_expanded_again(value: str) -> None:
    assert fill("<{question}|{level}>", question=value, level=value) == f"<{value}|{value}>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("Answer this: {questoin}", r"no column \(did you mean \{question\}\?\); there are .*\{level\}"),
        ("{question} {nothing}", r"no \{nothing\}, which is no column; there are"),
        ("{question}, which is {answer}", "would show the policy the answer.*answerInPrompt"),
        ("no column at all", "a text with a column in braces"),
        ("", "a text with a column in braces"),
        (r"only \boxed{answer} and {{level2}}", "a text with a column in braces"),
    ],
)
def test_a_template_that_would_ask_the_wrong_words_is_refused(template: str, message: str) -> None:
    with pytest.raises(InvalidManifest, match=message) as caught:
        fill(template)
    assert caught.value.problems[0].path == PATH


def test_the_answer_is_a_column_where_the_game_asks_for_it() -> None:
    assert Template("{question} {answer}", COLUMNS, path=PATH).fill(COLUMNS) == "Q SECRET"


def test_a_long_list_of_columns_is_cut() -> None:
    with pytest.raises(InvalidManifest, match="and 80 more"):
        Template("{x}", [f"column{number}" for number in range(100)], path=PATH)
