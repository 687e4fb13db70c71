"""Products of two numbers of two digits. Before it answers, the policy may call the built-in calculator."""

from __future__ import annotations

import hashlib
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

ROUND, EVALUATION, DEMONSTRATION = "round", "evaluation", "demonstration"
VERSION = "products of two digits, calls and answers"


class ProductsConfig(Config):
    """The `with:` block."""

    questions_per_round: Annotated[int, Field(ge=1, le=64)] = 8
    """Products that a peer asks for in a round, each in several episodes."""


def purpose_of(text: str) -> str:
    """Return the purpose of a question, by a hash of its text: training and evaluation have no question in common."""
    place = hashlib.blake2b(text.encode(), digest_size=1).digest()[0] % 4
    return EVALUATION if place == 0 else DEMONSTRATION if place == 1 else ROUND


class Products(DataManager, Demonstrations):
    """Questions such as `12*34=`."""

    Config = ProductsConfig
    config: ProductsConfig
    fingerprint = VERSION

    def round_data(self, round: Round) -> Sequence[Question]:
        seed = derive_seed(ROUND, round.peer_seed, round.number)
        return [self._question(ROUND, seed, index) for index in range(self.config.questions_per_round)]

    def resolve(self, reference: QuestionRef) -> Question | None:
        if (reference.environment, reference.config) != (ROUND, VERSION):
            return None
        return self._question(ROUND, reference.seed, reference.index)

    def evaluation_data(self, count: int) -> Sequence[Question]:
        seed = derive_seed(EVALUATION, self.context.seed)
        return [self._question(EVALUATION, seed, index) for index in range(count)]

    def demonstrate(self, seed: int, count: int) -> Sequence[Demonstration]:
        """Return in equal parts guesses, calls, and answers behind a result: what can be written, not what is good."""
        random = Random(seed)
        made = []
        for index in range(count):
            question = self._question(DEMONSTRATION, seed, index)
            call = f"<c>{question.text[:-1]}</c>"
            end = random.choice(("", " "))  # in an episode, the id that ends a turn stands there; a text has none
            read, written = random.choice(
                [
                    (question.text, str(random.randint(100, 9801))),
                    (question.text, call),
                    (f"{question.text}{call}{end}\n{question.answer}\n", question.answer),
                ]
            )
            made.append(Demonstration(Prompt.from_question(Question(question.reference, read, "")), written))
        return made

    def _question(self, purpose: str, seed: int, index: int) -> Question:
        random = Random(derive_seed(seed, index))
        while True:
            first, second = random.randint(10, 99), random.randint(10, 99)
            text = f"{first}*{second}="
            if purpose_of(text) == purpose:
                return Question(QuestionRef(purpose, VERSION, seed, index), text, str(first * second))
