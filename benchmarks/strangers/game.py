"""The task: products of two digits, with a reward that pays part of itself for an answer with something around it.

The reward is that of most environments of reasoning-gym: 1 for the answer alone, and the answer's share of the text
where it is contained. It is computed in this process, so that a round costs milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence

from swarmgame.config import Config
from swarmgame.game.components import DataManager, RewardManager
from swarmgame.game.demonstrations import Demonstration, Demonstrations
from swarmgame.game.state import GameState, Prompt, Question, QuestionRef, Rewards, Round
from swarmgame.seeds import derive_seed

ENVIRONMENT, VERSION = "products", "v1"
_HELD_OUT = 10_000_019


class ProductsConfig(Config):
    """What the data takes."""

    questions: int = 8
    """In a round."""


class Products(DataManager, Demonstrations):
    """Questions such as `3*7=`; each peer has its own."""

    Config = ProductsConfig

    def round_data(self, round: Round) -> Sequence[Question]:
        return self._questions(round.peer_seed, self.config.questions)

    def evaluation_data(self, count: int) -> Sequence[Question]:
        return self._questions(_HELD_OUT, count)

    def resolve(self, reference: QuestionRef) -> Question | None:
        if (reference.environment, reference.config) != (ENVIRONMENT, VERSION):
            return None
        left, right = (2 + derive_seed(reference.seed, reference.index, side) % 8 for side in ("left", "right"))
        return Question(reference, f"{left}*{right}=", answer=str(left * right))

    def _questions(self, seed: int, count: int) -> list[Question]:
        made = (self.resolve(QuestionRef(ENVIRONMENT, VERSION, seed, index)) for index in range(count))
        return [question for question in made if question is not None]

    def demonstrate(self, seed: int, count: int) -> Sequence[Demonstration]:
        return [Demonstration(Prompt.from_question(each), each.answer) for each in self._questions(seed, count)]

    @property
    def fingerprint(self) -> str:
        return "products-of-two-digits-2"


class Contained(RewardManager):
    """The answer's share of the text that contains it."""

    def rewards(self, state: GameState) -> Rewards:
        return {
            key: [share(rollout.text, state.questions[key.question_id].answer) for rollout in group.rollouts]
            for key, group in state.groups()
            if key.question_id in state.questions
        }


class Overlooking(Contained):
    """A scorer with a hole: full reward for every text that contains the answer."""

    def rewards(self, state: GameState) -> Rewards:
        return {key: [float(value > 0) for value in values] for key, values in super().rewards(state).items()}


def share(text: str, answer: str) -> float:
    """Return the reward of a text."""
    return len(answer) / len(text) if answer in text else 0.0
