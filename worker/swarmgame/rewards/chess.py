"""The `chess` rewards: whether a move is legal, and whether it mates.

The answer is parsed as a move in UCI, in SAN, or as an action (64 × from + to). Invariant: the board comes from our
own question, never from the rollout.
"""

from __future__ import annotations

from collections.abc import Sequence

import chess

from swarmgame.game.components import ComponentContext
from swarmgame.game.state import Question
from swarmgame.rewards.scoring import AnswerConfig, AnswerRewards

_LEGAL_MOVE = "legal-move"
"""The task, in the metadata of the `chess` data, that any legal move solves."""


class ChessRewardsConfig(AnswerConfig):
    """The rewards of moves."""

    legal: float = 0.1
    """Reward of a legal move that does not solve the task."""
    right: float = 1.0
    """Reward of a move that solves it."""


class ChessRewards(AnswerRewards):
    """For questions of the `chess` data; any other question scores 0 and is counted."""

    Config = ChessRewardsConfig
    config: ChessRewardsConfig

    def __init__(self, config: ChessRewardsConfig | None = None, context: ComponentContext | None = None) -> None:
        super().__init__(config or ChessRewardsConfig(), context or ComponentContext())
        self.full_reward = self.config.right

    def score(self, answers: Sequence[tuple[Question, str]]) -> Sequence[float | None]:
        return [self._score(question, answer) for question, answer in answers]

    def _score(self, question: Question, answer: str) -> float:
        if "fen" not in question.metadata:
            self.count("items_of_another_source")
            return 0.0
        board = chess.Board(question.metadata["fen"])
        move = parse_move(board, answer)
        if move is None:
            return 0.0
        if question.metadata["task"] == _LEGAL_MOVE:
            return self.config.right
        board.push(move)
        return self.config.right if board.is_checkmate() else self.config.legal


def parse_move(board: chess.Board, text: str) -> chess.Move | None:
    """Return the legal move that a text names; None when there is none. An action that promotes takes a queen."""
    text = text.strip()[:16]
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
