"""Numbers from 1 to 9 that a policy guesses; what answers its guesses is the built-in environment `number-guessing`."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Annotated

from pydantic import Field

from swarmgame import (
    Config,
    DataManager,
    Demonstration,
    Demonstrations,
    Prompt,
    Question,
    QuestionRef,
    Round,
    derive_seed,
)

HIGHEST = 9
TEXT = f"1 to {HIGHEST}:"


class NumbersConfig(Config):
    """The `with:` block."""

    questions_per_round: Annotated[int, Field(ge=1, le=64)] = 8
    """Numbers that a peer guesses in a round, each in several episodes."""


class Numbers(DataManager, Demonstrations):
    """Questions with one text and different answers: only the environment's words tell them apart."""

    Config = NumbersConfig
    config: NumbersConfig

    def round_data(self, round: Round) -> Sequence[Question]:
        seeds = [derive_seed(round.peer_seed, "number", index) for index in range(self.config.questions_per_round)]
        return [self._question(seed) for seed in seeds]

    def resolve(self, reference: QuestionRef) -> Question | None:
        question = self._question(reference.seed)
        return question if question.reference == reference else None

    def evaluation_data(self, count: int) -> Sequence[Question]:
        """Return every number equally often; nothing of a number can be learned by heart."""
        return [self._question(seed) for seed in range(count)]

    def demonstrate(self, seed: int, count: int) -> Sequence[Demonstration]:
        """Return guesses at random: the policy learns before the game what a guess is, and none that is good."""
        random = Random(seed)
        return [
            Demonstration(Prompt.from_question(self._question(seed)), str(random.randint(1, HIGHEST)))
            for _ in range(count)
        ]

    @property
    def fingerprint(self) -> str:
        return TEXT

    def _question(self, seed: int) -> Question:
        return Question(QuestionRef("numbers", TEXT, seed, 0), TEXT, str(1 + seed % HIGHEST))
