"""Two roles over one text file: readers translate numerals (XIV to 14), writers numbers (14 to XIV).

A peer asks itself the questions of its role only. It learns the other role from the rollouts of the peers that have
it: every peer can regenerate their questions, and trains on some of their groups. Held-out questions are of both roles.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Annotated

from pydantic import Field

from swarmgame import (
    ComponentContext,
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

FILE = Path(__file__).with_name("numerals.csv")
ROLES = ("reader", "writer")
PARTS = ("round",) * 5 + ("held-out",) * 2 + ("demonstration",) * 3


class NumeralsConfig(Config):
    """The `with:` block."""

    questions_per_round: Annotated[int, Field(ge=1, le=64)] = 8
    """Rows that a peer draws in a round."""


class Numerals(DataManager, Demonstrations):
    """Rows of the file. Each is used for rounds, for evaluation or for the warm start, in both directions."""

    Config = NumeralsConfig
    config: NumeralsConfig

    def __init__(self, config: NumeralsConfig, context: ComponentContext) -> None:
        super().__init__(config, context)
        text = FILE.read_text(encoding="utf-8")
        self._rows = list(csv.DictReader(text.splitlines()))
        self._digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        self._parts: dict[str, list[int]] = {part: [] for part in PARTS}
        for row in range(len(self._rows)):
            self._parts[PARTS[derive_seed("part", row) % len(PARTS)]].append(row)

    def round_data(self, round: Round) -> Sequence[Question]:
        """Return the questions of this peer's role."""
        rows = Random(round.peer_seed).sample(self._parts["round"], self.config.questions_per_round)
        return [self._question(round.role, row) for row in rows]

    def resolve(self, reference: QuestionRef) -> Question | None:
        """Regenerate the question of another peer, of any role; never one that is held out."""
        if reference.environment not in ROLES or reference.index not in self._parts["round"]:
            return None
        question = self._question(reference.environment, reference.index)
        return question if question.reference == reference else None

    def evaluation_data(self, count: int) -> Sequence[Question]:
        """Return questions of both roles in turn. Every peer answers them all."""
        rows = Random(self.context.seed).sample(self._parts["held-out"], k=len(self._parts["held-out"]))
        return [self._question(role, row) for row in rows for role in ROLES][:count]

    def demonstrate(self, seed: int, count: int) -> Sequence[Demonstration]:
        """Return examples for the warm start of the builtin model."""
        random = Random(seed)
        rows = random.choices(self._parts["demonstration"], k=count)
        questions = [self._question(random.choice(ROLES), row) for row in rows]
        return [Demonstration(Prompt.from_question(question), question.answer) for question in questions]

    @property
    def fingerprint(self) -> str:
        """A digest of the file: peers with another one do not resolve our questions."""
        return self._digest

    def _question(self, role: str, row: int) -> Question:
        roman, number = self._rows[row]["roman"], self._rows[row]["number"]
        text, answer = (roman, number) if role == "reader" else (number, roman)
        return Question(QuestionRef(role, self.fingerprint, 0, row), text=f"{text}=", answer=answer)
