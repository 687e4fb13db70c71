"""Guessing a number: after each guess the policy reads whether the number is larger or smaller."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

from swarmgame.config import Config
from swarmgame.game.environment import Environment, Episode, Step
from swarmgame.game.state import Question

_GUESS = re.compile(r"-?\d{1,9}(?!\d)")


class NumberGuessingConfig(Config):
    """How a guess is rewarded."""

    per_turn: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Taken off the reward of 1 for each guess before the right one; never below 0."""


class _Guessing(Episode):
    def __init__(self, number: int, per_turn: float) -> None:
        self._number, self._per_turn = number, per_turn
        self._guesses = 0

    def step(self, action: str) -> Step:
        self._guesses += 1
        found = _GUESS.search(action)
        if found is None:
            return Step("A number, please.")
        guess = int(found[0])
        if guess == self._number:
            return Step("Right.", max(0.0, 1 - self._per_turn * (self._guesses - 1)), done=True)
        return Step("larger" if guess < self._number else "smaller")


class NumberGuessing(Environment):
    """`use: number-guessing`. The number is the question's answer."""

    Config = NumberGuessingConfig
    config: NumberGuessingConfig

    def start(self, question: Question) -> Episode:
        return _Guessing(int(question.answer), self.config.per_turn)
