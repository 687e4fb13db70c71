"""A king's walk for two: data and rewards of a game with a turn a stage.

A king must reach a square in four moves. The peer that opens a board makes the first and the third move; the peer after
it, by id, the second and the fourth. Both get the same reward, 1 on the square and less beside it, so each must learn
to leave the other a walk that can be finished. In an evaluation a peer makes all four moves, on boards that no round
uses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Annotated

from pydantic import Field

from swarmgame import (
    Config,
    DataManager,
    GameState,
    Group,
    Prompt,
    Question,
    QuestionRef,
    RewardManager,
    Rewards,
    Round,
    derive_seed,
)

TURNS = 4
STEPS = [(right, up) for right in (-1, 0, 1) for up in (-1, 0, 1)]
"""A move is an index of this list: one square in any direction, or none."""
START = [(right, up) for right in range(-TURNS, TURNS + 1) for up in range(-TURNS, TURNS + 1)]
"""Where the square may be, seen from the king: wherever four moves lead."""
PARTS = {
    part: [at for at in START if (derive_seed(*at) % 4 == 0) == (part == "held-out")] for part in ("round", "held-out")
}
VERSION = "walk-1"
"""Part of each reference: peers with another version of this game do not resolve our boards."""

Place = tuple[int, int]


def board_of(place: Place, turn: int) -> str:
    """Return a prompt: how far the square is to the right and up, and how many moves are left."""
    return f"{place[0]} {place[1]} {TURNS - turn}"


def players(state: GameState, stage: int) -> Mapping[str, str]:
    """Return which peer moves on each board in a stage."""
    if state.round.evaluation:
        return dict.fromkeys(state.questions, state.peer)
    opened = state.contributions(0)
    following = [contribution.peer for contribution in (*opened[1:], *opened[:1])]
    return {
        group.question_id: second if stage % 2 else contribution.peer
        for contribution, second in zip(opened, following, strict=True)
        for group in contribution.groups
    }


def places(state: GameState, turns: int) -> Mapping[str, Place]:
    """Return where the square of each question is after a number of turns, seen from the king. A board on which a move
    is missing (its player was late or left) or is none is left out.
    """
    found: dict[str, Place] = {question.id: question.payload for question in state.questions.values()}
    for stage in range(turns):
        moves = {(c.peer, g.question_id): _first_move(g) for c in state.contributions(stage) for g in c.groups}
        turn = players(state, stage)
        for question_id, (right, up) in list(found.items()):
            move = moves.get((turn.get(question_id, ""), question_id), -1)
            if 0 <= move < len(STEPS):
                found[question_id] = (right - STEPS[move][0], up - STEPS[move][1])
            else:
                del found[question_id]
    return found


def _first_move(group: Group) -> int:
    """Return the first move of a group, -1 where a peer sent none."""
    return next((id for rollout in group.rollouts for id in rollout.token_ids), -1)


class BoardsConfig(Config):
    """The `with:` block of the data."""

    boards_per_round: Annotated[int, Field(ge=1, le=1024)] = 32
    """Boards that a peer opens in a round."""


class Boards(DataManager):
    """Boards, and the prompts of each turn."""

    Config = BoardsConfig
    config: BoardsConfig

    def round_data(self, round: Round) -> Sequence[Question]:
        return [self._board("round", round.peer_seed, index) for index in range(self.config.boards_per_round)]

    def evaluation_data(self, count: int) -> Sequence[Question]:
        """Return every held-out board once, in random order."""
        seeds = Random(self.context.seed).sample(range(len(PARTS["held-out"])), k=len(PARTS["held-out"]))
        return [self._board("held-out", seed, 0) for seed in seeds[:count]]

    def resolve(self, reference: QuestionRef) -> Question | None:
        known = (reference.environment, reference.config) == ("round", VERSION)
        return self._board("round", reference.seed, reference.index) if known else None

    def stage_inputs(self, state: GameState, stage: int) -> Sequence[Prompt]:
        """Return a prompt for each board on which this peer moves now.

        Stage 0 is the same for every peer that calls it, since others check our prompts of it.
        """
        turn = dict.fromkeys(state.question_ids, state.peer) if stage == 0 else players(state, stage)
        return [
            Prompt.from_question(state.questions[question_id], board_of(place, stage))
            for question_id, place in places(state, stage).items()
            if turn.get(question_id) == state.peer
        ]

    def _board(self, part: str, seed: int, index: int) -> Question:
        boards = PARTS[part]
        place = boards[seed if part == "held-out" else derive_seed(seed, index) % len(boards)]
        return Question(QuestionRef(part, VERSION, seed, index), text=board_of(place, 0), payload=place)


class Nearness(RewardManager):
    """The same reward for all moves of a walk: 1 if it ended on the square, 1/2 beside it, 1/3 two squares away. A walk
    that was not finished is not scored (NaN).
    """

    def rewards(self, state: GameState) -> Rewards:
        ends = places(state, TURNS)
        return {
            key: [self._reward(ends.get(key.question_id))] * len(group.rollouts)
            for key, group in state.groups()
            if key.round == state.round.number
        }

    def _reward(self, end: Place | None) -> float:
        return float("nan") if end is None else 1 / (1 + max(map(abs, end)))
