"""The `exact` rewards: whether the rollout gives the known answer.

Compares the text, the number, or the letter of a choice; nothing is evaluated. docs/reference/answers.md lists what is
read as what (see `numbers_in_text` and `choices`). A reward has one of two values, 0 and 1 by default, and depends only
on the question, its answer and the text. Invariant: where the known answer is empty, or is no number or letter, no
rollout of the question is scored (NaN): a reward would not depend on what the policy answers.
"""

from __future__ import annotations

import logging
import math
import unicodedata
from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, model_validator

from swarmgame.errors import InvalidManifest
from swarmgame.game.components import ComponentContext
from swarmgame.game.state import Question
from swarmgame.rewards.choices import ANY, chosen_letter, listed_letters
from swarmgame.rewards.numbers_in_text import known_number, last_number, plain_number
from swarmgame.rewards.scoring import AnswerConfig, AnswerRewards
from swarmgame.user_code import printable

_log = logging.getLogger("swarmgame.rewards")

_PATH = "spec.game.rewards.with"
_CLOSE = Fraction(1, 10**6)


class ExactRewardsConfig(AnswerConfig):
    """How to compare."""

    match: Literal["text", "number", "choice"] = "text"
    """`text`: the texts are equal, or are the same decimal number. `number`: the last numbers are equal. `choice`: the
    letters are equal. docs/reference/answers.md lists what is read as what.
    """
    ignore_case: bool = False
    """Whether upper and lower case are equal; for letters of a choice they always are."""
    tolerance: Annotated[FiniteFloat, Field(ge=0)] | None = None
    """Largest difference of equal numbers: relative to the larger one, absolute below one. When not given, two whole
    numbers must be equal, and others may differ by 0.000001: of a right answer that is no whole number, this part.
    """
    choices: Annotated[str, Field(pattern=r"^[A-Za-z]*$")] = ""
    """Letters of the choices, such as ABCD; when empty, those that the question lists, else any."""
    right: FiniteFloat = 1.0
    """Reward of a right answer."""
    wrong: FiniteFloat = 0.0
    """Reward of any other; less than `right`."""

    @model_validator(mode="after")
    def _ordered(self) -> ExactRewardsConfig:
        if self.wrong >= self.right:
            raise ValueError("wrong must be less than right")
        return self


class ExactRewards(AnswerRewards):
    """For data with answers. A question whose answer cannot be read (empty, no number, no letter of a choice) is not
    scored, and counted. For a policy over actions, the text is the number of the action.
    """

    Config = ExactRewardsConfig
    config: ExactRewardsConfig

    def __init__(self, config: ExactRewardsConfig | None = None, context: ComponentContext | None = None) -> None:
        super().__init__(config or ExactRewardsConfig(), context or ComponentContext())
        self.full_reward = self.config.right
        self._unreadable: set[str] = set()

    @classmethod
    def check_with(cls, config: Any, context: ComponentContext, question: Question) -> None:
        problem = _problem(config, question)
        if not question.answer.strip():
            expected = f"rewards that need no answer, such as function: {problem} (question {_shown(question.text)})"
            raise InvalidManifest("spec.game.rewards.use", "exact", expected)
        if problem:
            raise InvalidManifest(
                f"{_PATH}.match", config.match, f"a comparison that fits the data: {problem}; see "
                "docs/reference/answers.md"
            )  # fmt: skip

    def score(self, answers: Sequence[tuple[Question, str]]) -> Sequence[float]:
        return [self._score(question, answer) for question, answer in answers]

    def finish(self, score: float, rollout: object, answer: str | None) -> float:
        if math.isnan(score):
            return score
        return self.config.right if score > 0 else self.config.wrong

    def _score(self, question: Question, answer: str) -> float:
        problem = _problem(self.config, question)
        if problem:
            self._note(question, problem)
            return math.nan
        return float(_is_right(self.config, question, answer))

    def _note(self, question: Question, problem: str) -> None:
        if question.id not in self._unreadable:
            self.count("questions_without_readable_answer")
            if not self._unreadable:
                _log.warning(
                    "%s: rollouts of such questions are not scored and not trained on. First: question %s",
                    problem,
                    _shown(question.text),
                )
            self._unreadable.add(question.id)


def _problem(config: ExactRewardsConfig, question: Question) -> str:
    """Return why no answer to a question can be scored; empty when one can."""
    if not question.answer.strip():
        return "the data has no answer"
    if config.match == "number" and known_number(question.answer) is None:
        return f"the answer {_shown(question.answer)} is not one number"
    if config.match == "choice" and chosen_letter(question.answer, _letters(config, question)) is None:
        return f"the answer {_shown(question.answer)} is no letter of a choice"
    return ""


def _is_right(config: ExactRewardsConfig, question: Question, answer: str) -> bool:
    match config.match:
        case "number":
            right, given = known_number(question.answer), last_number(answer)
            return right is not None and given is not None and _equal(right, given, config.tolerance)
        case "choice":
            letters = _letters(config, question)
            return chosen_letter(answer, letters) == chosen_letter(question.answer, letters)
        case _:
            return _same_text(question.answer, answer, config.ignore_case)


def _letters(config: ExactRewardsConfig, question: Question) -> frozenset[str]:
    if config.choices:
        return frozenset(config.choices.upper())
    listed = listed_letters(question.text)
    return listed if chosen_letter(question.answer, listed) is not None else ANY


def _equal(right: Fraction, given: Fraction, tolerance: float | None) -> bool:
    difference = abs(right - given)
    if tolerance is not None:
        return difference <= Fraction(tolerance) * max(abs(right), abs(given), Fraction(1))
    if right.denominator == 1:
        return (given.denominator > 1 and difference <= _CLOSE) or not difference
    return difference <= _CLOSE * abs(right)


def _same_text(expected: str, answer: str, ignore_case: bool) -> bool:
    # Letters with an accent have two forms in Unicode; the canonical one of both is compared.
    expected, answer = (unicodedata.normalize("NFC", text.strip()) for text in (expected, answer))
    if ignore_case:
        expected, answer = (unicodedata.normalize("NFC", text.casefold()) for text in (expected, answer))
    if expected == answer:
        return True
    right, given = plain_number(expected), plain_number(answer)
    return right is not None and right == given


def _shown(text: str) -> str:
    return printable(repr(text), 80)
