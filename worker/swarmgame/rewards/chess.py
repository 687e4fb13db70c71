"""The `chess` rewards: whether a move is legal, and whether it mates.

The answer is parsed as a move in UCI, in SAN, or as an action (64 × from + to). Invariant: the board comes from our
own question, never from the rollout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import chess
from pydantic import FiniteFloat

from swarmgame.errors import BadGame, InvalidManifest
from swarmgame.game.components import ComponentContext
from swarmgame.game.state import GameState, Question
from swarmgame.rewards.scoring import AnswerConfig, AnswerRewards

_LEGAL_MOVE = "legal-move"
_TASKS = ("mate-in-one", _LEGAL_MOVE)
"""The tasks in the metadata of the `chess` data; any legal move solves the second."""
_LONGEST = 16


class ChessRewardsConfig(AnswerConfig):
    """The rewards of moves."""

    legal: FiniteFloat = 0.1
    """Reward of a legal move that does not solve the task."""
    right: FiniteFloat = 1.0
    """Reward of a move that solves it."""


class ChessRewards(AnswerRewards):
    """For questions of the `chess` data; any other question scores 0 and is counted."""

    Config = ChessRewardsConfig
    config: ChessRewardsConfig

    def __init__(self, config: ChessRewardsConfig | None = None, context: ComponentContext | None = None) -> None:
        super().__init__(config or ChessRewardsConfig(), context or ComponentContext())
        self.full_reward = self.config.right
        self._other_source = 0

    @classmethod
    def check_with(cls, config: Any, context: ComponentContext, question: Question) -> None:
        if not _is_of_chess(question):
            expected = "rewards for this data, such as exact or function: its questions are not of chess"
            raise InvalidManifest("spec.game.rewards.use", "chess", expected)

    def score(self, answers: Sequence[tuple[Question, str]]) -> Sequence[float]:
        return [self._score(question, answer) for question, answer in answers]

    def round_scored(self, state: GameState) -> None:
        other, self._other_source = self._other_source, 0
        if other and not any(map(_is_of_chess, state.questions.values())):
            raise BadGame(
                f"the rewards chess scored none of {other} answers in round {state.round.number}: the questions are of "
                "other data. Use rewards that fit the data, such as exact or function"
            )

    def _score(self, question: Question, answer: str) -> float:
        if not _is_of_chess(question):
            self.count("items_of_another_source")
            self._other_source += 1
            return 0.0
        board = chess.Board(question.metadata["fen"])
        move = parse_move(board, answer)
        if move is None:
            return 0.0
        if question.metadata["task"] == _LEGAL_MOVE:
            return self.config.right
        board.push(move)
        return self.config.right if board.is_checkmate() else self.config.legal


def _is_of_chess(question: Question) -> bool:
    """Return whether a question has the metadata of the `chess` data; columns of other data may have the same names."""
    fen, task = question.metadata.get("fen"), question.metadata.get("task")
    if not isinstance(fen, str) or task not in _TASKS:
        return False
    try:
        return bool(chess.Board(fen).is_valid())
    except ValueError:
        return False


def parse_move(board: chess.Board, text: str) -> chess.Move | None:
    """Return the legal move that a text names; None when there is none. An action that promotes takes a queen."""
    text = text.strip()
    if len(text) > _LONGEST:
        return None
    if text.isascii() and text.isdigit() and int(text) < 4096:
        move = chess.Move(int(text) // 64, int(text) % 64)
        candidates = (move, chess.Move(move.from_square, move.to_square, promotion=chess.QUEEN))
        return next((candidate for candidate in candidates if candidate in board.legal_moves), None)
    for parse in (board.parse_uci, board.parse_san):
        try:
            move = parse(text)
        except ValueError:
            continue
        return move if move in board.legal_moves else None
    return None
