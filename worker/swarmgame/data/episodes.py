"""The `episodes` data: questions for environments that make everything of a seed, such as those of gymnasium.

All questions have one text; their seeds differ, and no seed of an evaluation is that of a round. For a builtin model,
`turns` are texts that the warm start shows: what a turn looks like, in equal parts, and none that is better.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from random import Random
from typing import Annotated

from pydantic import Field

from swarmgame.config import Config
from swarmgame.game.components import DataManager
from swarmgame.game.demonstrations import Demonstration, Demonstrations
from swarmgame.game.state import Prompt, Question, QuestionRef, Round
from swarmgame.seeds import derive_seed

_ROUND, _EVALUATION = "round", "evaluation"


class EpisodesConfig(Config):
    """What the policy reads first, and how many episodes begin."""

    text: Annotated[str, Field(max_length=100_000)]
    """What the policy reads before what the environment writes: rules, and how to answer."""
    questions_per_round: Annotated[int, Field(ge=1, le=1024)] = 8
    """Questions of a peer in a round, each with several episodes of one seed."""
    turns: tuple[str, ...] = ()
    """Turns that the warm start of a builtin model shows."""


class Episodes(DataManager, Demonstrations):
    """Questions of one text and different seeds, for environments that make all else from the seed."""

    Config = EpisodesConfig
    config: EpisodesConfig

    def round_data(self, round: Round) -> Sequence[Question]:
        seed = derive_seed(_ROUND, round.peer_seed, round.number)
        return [self._question(_ROUND, seed, index) for index in range(self.config.questions_per_round)]

    def resolve(self, reference: QuestionRef) -> Question | None:
        if (reference.environment, reference.config) != (_ROUND, self._digest):
            return None
        return self._question(_ROUND, reference.seed, reference.index)

    def evaluation_data(self, count: int) -> Sequence[Question]:
        seed = derive_seed(_EVALUATION, self.context.seed)
        return [self._question(_EVALUATION, seed, index) for index in range(count)]

    def demonstrate(self, seed: int, count: int) -> Sequence[Demonstration]:
        if not self.config.turns:
            return ()
        random = Random(seed)
        prompt = Prompt.from_question(self._question("demonstration", 0, 0))
        return [Demonstration(prompt, random.choice(self.config.turns)) for _ in range(count)]

    @property
    def fingerprint(self) -> str:
        return hashlib.blake2b(repr((self.config.text, self.config.turns)).encode(), digest_size=8).hexdigest()

    @property
    def _digest(self) -> str:
        return hashlib.blake2b(self.config.text.encode(), digest_size=8).hexdigest()

    def _question(self, purpose: str, seed: int, index: int) -> Question:
        return Question(QuestionRef(purpose, self._digest, seed, index), self.config.text, "")
