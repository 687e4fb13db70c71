"""The `exact` rewards: whether the rollout gives the known answer.

Compares the text, the number, or the letter of a choice. Numbers are parsed; nothing is evaluated. A reward has one of
two values, 0 and 1 by default, and depends only on the answer and the text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field

from swarmgame.game.components import ComponentContext
from swarmgame.game.state import Question
from swarmgame.rewards.scoring import AnswerConfig, AnswerRewards

_NUMBER = re.compile(r"[-+]?(?:\d[\d,_ ]*)?\.?\d+(?:[eE][-+]?\d{1,3})?(?:\s*/\s*\d+)?")
_LONGEST_NUMBER = 100
_CHOICE = re.compile(r"\b([A-Za-z])\b")


class ExactRewardsConfig(AnswerConfig):
    """How to compare."""

    match: Literal["text", "number", "choice"] = "text"
    """`text`: the texts are equal. `number`: the last numbers are equal. `choice`: the last single letters are equal.
    """
    ignore_case: bool = False
    """Whether upper and lower case are equal; for letters of a choice they always are."""
    tolerance: Annotated[float, Field(ge=0)] = 1e-6
    """Largest difference of equal numbers: relative to the larger one, absolute below one."""
    right: float = 1.0
    """Reward of a right answer."""
    wrong: float = 0.0
    """Reward of any other."""


class ExactRewards(AnswerRewards):
    """For data with answers. For a policy over actions, the text is the number of the action."""

    Config = ExactRewardsConfig
    config: ExactRewardsConfig

    def __init__(self, config: ExactRewardsConfig | None = None, context: ComponentContext | None = None) -> None:
        super().__init__(config or ExactRewardsConfig(), context or ComponentContext())
        self.full_reward = self.config.right

    def score(self, answers: Sequence[tuple[Question, str]]) -> Sequence[float | None]:
        return [float(self._right(question.answer, answer)) for question, answer in answers]

    def finish(self, score: float, rollout: object, answer: str | None) -> float:
        return self.config.right if score > 0 else self.config.wrong

    def _right(self, expected: str, answer: str) -> bool:
        match self.config.match:
            case "number":
                return _same_number(expected, answer, self.config.tolerance)
            case "choice":
                given, right = _CHOICE.findall(answer), _CHOICE.findall(expected)
                return bool(given and right) and given[-1].upper() == right[-1].upper()
            case _:
                expected, answer = expected.strip(), answer.strip()
                return expected.casefold() == answer.casefold() if self.config.ignore_case else expected == answer


def last_number(text: str) -> float | None:
    """Return the last number in a text, None when there is none. It may have thousands separators or an exponent, or
    be a fraction.
    """
    found = _NUMBER.findall(text)
    if not found or len(found[-1]) > _LONGEST_NUMBER:
        return None
    plain = re.sub(r"[,_ ]", "", found[-1])
    try:
        return float(Fraction(plain)) if "/" in plain else float(plain)
    except (ValueError, ZeroDivisionError, OverflowError):
        return None


def _same_number(expected: str, answer: str, tolerance: float) -> bool:
    right, given = last_number(expected), last_number(answer)
    if right is None or given is None:
        return False
    return math.isclose(right, given, rel_tol=tolerance, abs_tol=tolerance)
