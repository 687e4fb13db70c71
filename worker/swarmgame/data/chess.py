"""The `chess` data: positions from random games, with the task to mate in one or to find any legal move.

A position follows from a seed, so any peer can regenerate it; nothing is downloaded. Use it with the `chess` rewards.
A policy over text reads the position in FEN and answers in UCI or SAN; any other policy reads the payload, float32
planes of 18 × 8 × 8, and answers with the action 64 × from + to. Invariant: a mate-in-one position has at least one
mating move, found by search, and `answer` is the first of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from random import Random
from typing import Annotated, Any

import chess
import numpy
from numpy.typing import NDArray
from pydantic import Field

from swarmgame.config import Config
from swarmgame.errors import InvalidManifest
from swarmgame.game.components import ComponentContext, DataManager
from swarmgame.game.demonstrations import Demonstration, Demonstrations
from swarmgame.game.state import GameState, Message, Prompt, Question, QuestionRef, Round
from swarmgame.seeds import SEED_BITS, derive_seed

ENVIRONMENT = "chess"
_VERSION = "1"
_GAMES = 64
"""Most random games for one seed; two in five reach a mate in one."""
_PURPOSES = {"round": 0, "evaluation": 1, "demonstration": 2}


class Task(StrEnum):
    """The task in a position."""

    MATE_IN_ONE = "mate-in-one"
    LEGAL_MOVE = "legal-move"


class ChessConfig(Config):
    """Which positions."""

    task: Task = Task.MATE_IN_ONE
    """`mate-in-one`, or `legal-move`: any move that the rules allow."""
    questions_per_round: Annotated[int, Field(ge=1, le=4096)] = 8
    """Positions of this peer in a round."""
    shared: bool = False
    """Whether all peers get the same positions in a round."""
    min_plies: Annotated[int, Field(ge=0, le=200)] = 8
    """Half-moves before the earliest position of a game that is used."""
    max_plies: Annotated[int, Field(ge=1, le=400)] = 120
    """Half-moves after which a random game ends."""
    system_prompt: str = ""
    """Put before every question as a system message."""


class ChessData(DataManager, Demonstrations):
    """See the module."""

    Config = ChessConfig
    config: ChessConfig

    def __init__(self, config: ChessConfig | None = None, context: ComponentContext | None = None) -> None:
        super().__init__(config or ChessConfig(), context or ComponentContext())
        if self.config.min_plies >= self.config.max_plies:
            raise InvalidManifest(
                "spec.game.data.with.maxPlies", self.config.max_plies, f"more than minPlies, {self.config.min_plies}"
            )
        self._digest = f"{derive_seed(_VERSION, self.config.task, self.config.min_plies, self.config.max_plies):016x}"

    def round_data(self, round: Round) -> Sequence[Question]:
        base = round.seed if self.config.shared else round.peer_seed
        return self._questions("round", self.config.questions_per_round, base, round.number)

    def evaluation_data(self, count: int) -> Sequence[Question]:
        return self._questions("evaluation", count, self.context.seed)

    def stage_inputs(self, state: GameState, stage: int) -> Sequence[Prompt]:
        return [self.prompt(state.questions[question]) for question in state.question_ids]

    def prompt(self, question: Question) -> Prompt:
        """Return the prompt of a question: the system prompt if there is one, the question, and the planes."""
        user = Message("user", question.text)
        messages = (Message("system", self.config.system_prompt), user) if self.config.system_prompt else (user,)
        return Prompt(question_id=question.id, messages=messages, payload=question.payload)

    def resolve(self, reference: QuestionRef) -> Question | None:
        ours = (reference.environment, reference.config, reference.index) == (ENVIRONMENT, self._digest, 0)
        return self._question(reference.seed) if ours and 0 <= reference.seed < 1 << (SEED_BITS - 2) else None

    def demonstrate(self, seed: int, count: int) -> Sequence[Demonstration]:
        return [
            Demonstration(self.prompt(question), question.answer)
            for question in self._questions("demonstration", count, seed)
        ]

    @property
    def fingerprint(self) -> str:
        return f"{derive_seed(self._digest, self.config.system_prompt):016x}"

    def _questions(self, purpose: str, count: int, *stream: int) -> list[Question]:
        """Make questions whose seeds begin with the purpose, so that rounds and evaluation have none in common."""
        questions: list[Question] = []
        for attempt in range(16 * count + _GAMES):
            if len(questions) == count:
                return questions
            seed = _PURPOSES[purpose] << (SEED_BITS - 2) | derive_seed("position", *stream, attempt) >> 2
            question = self._question(seed)
            if question is not None:
                questions.append(question)
        raise InvalidManifest(
            "spec.game.data.with.maxPlies", self.config.max_plies, "long enough games for positions to come up"
        )

    def _question(self, seed: int) -> Question | None:
        found = position(seed, self.config.task, self.config.min_plies, self.config.max_plies)
        if found is None:
            return None
        board, move = found
        side = "White" if board.turn else "Black"
        task = "gives mate in one" if self.config.task == Task.MATE_IN_ONE else "makes any legal move"
        text = f"{side} {task}. Position: {board.fen()}\nAnswer with one move in UCI notation, such as e2e4."
        metadata = {"fen": board.fen(), "task": self.config.task.value}
        return Question(QuestionRef(ENVIRONMENT, self._digest, seed, 0), text, move.uci(), metadata, planes(board))


def position(seed: int, task: Task, min_plies: int, max_plies: int) -> tuple[chess.Board, chess.Move] | None:
    """Return the position of a seed and a correct move; None when none of its games reached one."""
    random = Random(seed)
    for _ in range(_GAMES):
        board = chess.Board()
        stop = random.randint(min_plies, max(min_plies, max_plies - 1))
        for ply in range(max_plies):
            moves = list(board.legal_moves)
            if not moves:
                break
            if ply >= min_plies and task == Task.MATE_IN_ONE:
                mates = mating_moves(board)
                if mates:
                    return board, mates[0]
            if ply >= stop and task == Task.LEGAL_MOVE:
                return board, min(moves, key=chess.Move.uci)
            board.push(random.choice(moves))
    return None


def mating_moves(board: chess.Board) -> list[chess.Move]:
    """Return all moves that give mate, in the order of their UCI names."""
    mates = []
    for move in sorted(board.legal_moves, key=chess.Move.uci):
        if board.gives_check(move):
            board.push(move)
            if board.is_checkmate():
                mates.append(move)
            board.pop()
    return mates


def planes(board: chess.Board) -> NDArray[numpy.float32]:
    """Return 18 × 8 × 8 planes: White's pawns to king, Black's likewise, side to move, four castling rights, en
    passant.
    """
    array: Any = numpy.zeros((18, 8, 8), dtype=numpy.float32)
    for square, piece in board.piece_map().items():
        array[piece.piece_type - 1 + (0 if piece.color else 6), square // 8, square % 8] = 1
    array[12] = float(board.turn)
    rights = (
        board.has_kingside_castling_rights(chess.WHITE),
        board.has_queenside_castling_rights(chess.WHITE),
        board.has_kingside_castling_rights(chess.BLACK),
        board.has_queenside_castling_rights(chess.BLACK),
    )
    for plane, right in enumerate(rights, 13):
        array[plane] = float(right)
    if board.ep_square is not None:
        array[17, board.ep_square // 8, board.ep_square % 8] = 1
    array.setflags(write=False)
    result: NDArray[numpy.float32] = array
    return result
