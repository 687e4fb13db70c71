"""The data of a game with an environment: what the environment says first belongs to the prompt."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from swarmgame.errors import BadGame
from swarmgame.game.components import DataManager
from swarmgame.game.environment import Episodes, Play
from swarmgame.game.state import GameState, Message, PeerId, Prompt, Question, QuestionRef, Rewards, Rollout, Round
from swarmgame.game.transcripts import NOT_PLAYED

_CACHED = 4096
"""Most first observations that are kept: each question is asked for when it is resolved, and again for its prompt."""


class EnvironmentData(DataManager):
    """A DataManager whose prompts end with the first observation of their episodes.

    Everything else is that of the game's own. The prompts of other peers are compared with those that this class makes,
    so the first observation is verified as the question is. Whoever resolves questions of another peer asks `unbegun`
    which of them have one, before prompts are made of them: so nobody can end a peer with one at which the environment
    fails.
    """

    def __init__(self, data: DataManager, episodes: Episodes) -> None:
        super().__init__(data.config, data.context)
        self.inner = data
        self._episodes = episodes
        self._first: OrderedDict[str, Play] = OrderedDict()
        self.knows_next_round = data.knows_next_round

    def stage_inputs(self, state: GameState, stage: int) -> Sequence[Prompt]:
        """Return the prompts with their first observations.

        Raises:
            BadGame: the environment failed before any turn; with the author's lines.
        """
        self._episodes.begin(state.questions.values())
        prompts = self.inner.stage_inputs(state, stage)
        asked = [state.questions[prompt.question_id] for prompt in prompts]
        made = []
        for prompt, question, play in zip(prompts, asked, self._begun(asked), strict=True):
            if play.failure is not None:
                raise BadGame(
                    f"the environment failed before the first turn, at question {question.text[:60]!r}: "
                    f"{play.failure}{play.failure.below}"
                )
            observation = (Message(self._episodes.role, play.first),) if play.first else ()
            made.append(replace(prompt, messages=(*prompt.messages, *observation)))
        return made

    def unbegun(self, questions: Sequence[Question], author: PeerId, waiting: int) -> Mapping[str, str]:
        """Begin the episodes of another peer's questions, in the time that its author has.

        Args:
            waiting: see `Episodes.play`.

        Returns:
            Of the questions without a first observation: by id, why a group with it is dropped.
        """
        plays = self._begun(questions, author=author, waiting=waiting)
        return {
            question.id: "unresolvable" if play.is_known else NOT_PLAYED
            for question, play in zip(questions, plays, strict=True)
            if play.failure is not None
        }

    def _begun(self, questions: Sequence[Question], *, author: PeerId = "", waiting: int = 1) -> list[Play]:
        """Return the plays of these questions without a turn."""
        asked = {each.id: each for each in questions}
        for question_id in asked:  # in an order that is the same on all ranks, which play together
            if question_id in self._first:
                self._first.move_to_end(question_id)
        # Before new ones are added, so that those which were just begun are there when their prompts are made.
        while len(self._first) > max(_CACHED, len(asked)):
            self._first.popitem(last=False)
        unknown = [each for each in asked.values() if each.id not in self._first]
        plays = self._episodes.play([(each, ()) for each in unknown], author=author, waiting=waiting) if unknown else ()
        found = dict(zip((each.id for each in unknown), plays, strict=True))
        self._first.update((question_id, play) for question_id, play in found.items() if play.is_known)
        return [found[each.id] if each.id in found else self._first[each.id] for each in questions]

    def round_data(self, round: Round) -> Sequence[Question]:
        return self.inner.round_data(round)

    def resolve(self, reference: QuestionRef) -> Question | None:
        return self.inner.resolve(reference)

    def resolve_all(self, references: Sequence[QuestionRef]) -> Sequence[Question | None]:
        return self.inner.resolve_all(references)

    def check_move(self, state: GameState, question_id: str, rollout: Rollout) -> None:
        self.inner.check_move(state, question_id, rollout)

    def content_digest(self) -> str:
        return self.inner.content_digest()

    def evaluation_data(self, count: int) -> Sequence[Question]:
        return self.inner.evaluation_data(count)

    def round_finished(self, state: GameState, rewards: Rewards) -> None:
        self.inner.round_finished(state, rewards)

    def state_dict(self) -> Mapping[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.inner.load_state_dict(state)

    def close(self) -> None:
        self.inner.close()
