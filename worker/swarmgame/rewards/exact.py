"""The `exact` rewards: the answer is known, and the rollout either gives it or does not.

Three ways to compare: the words, the number, or the letter of a choice. Nothing is evaluated: numbers are parsed, never
computed. Invariant: a reward is 0 or 1 (or the author's own two values), and never depends on anything but the answer
and the text.
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
    """`text`: equal words. `number`: the last number of the text equals the answer's. `choice`: the last letter that
    stands alone does.
    """
    ignore_case: bool = False
    """Whether upper and lower case are the same; letters of a choice always are."""
    tolerance: Annotated[float, Field(ge=0)] = 1e-6
    """How far numbers may differ, relative to the larger, or absolutely below one."""
    right: float = 1.0
    """Reward of a right answer."""
    wrong: float = 0.0
    """Reward of any other."""


class ExactRewards(AnswerRewards):
    """For data that knows its answers. For a policy over actions, the text is the number of the action."""

    Config = ExactRewardsConfig
    config: ExactRewardsConfig

    def __init__(self, config: ExactRewardsConfig | None = None, context: ComponentContext | None = None) -> None:
        super().__init__(config or ExactRewardsConfig(), context or ComponentContext())
        self.full_reward = self.config.right

    def score(self, asked: Sequence[tuple[Question, str]]) -> Sequence[float | None]:
        return [float(self._right(question.answer, answer)) for question, answer in asked]

    def finish(self, score: float, rollout: object, answer: str | None) -> float:
        return self.config.right if score > 0 else self.config.wrong

    def _right(self, expected: str, answer: str) -> bool:
        match self.config.match:
            case "number":
                return _same_number(expected, answer, self.config.tolerance)
            case "choice":
                letters, wanted = _CHOICE.findall(answer), _CHOICE.findall(expected)
                return bool(letters and wanted) and letters[-1].upper() == wanted[-1].upper()
            case _:
                expected, answer = expected.strip(), answer.strip()
                return expected.casefold() == answer.casefold() if self.config.ignore_case else expected == answer


def last_number(text: str) -> float | None:
    """The last number in a text: decimal, with separators of thousands, with an exponent, or a fraction. None where
    there is none.
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
