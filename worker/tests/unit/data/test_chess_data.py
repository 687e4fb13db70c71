"""The `chess` data and rewards: positions from seeds, moves judged by the rules."""

from __future__ import annotations

from dataclasses import replace

import chess
import pytest

from swarmgame import Contribution, GameState, Group, Rollout, Round
from swarmgame.data.chess import ChessConfig, ChessData, Task, mating_moves, planes
from swarmgame.errors import InvalidManifest
from swarmgame.rewards.chess import ChessRewards, parse_move

ROUND = Round(number=0, seed=1, peer_seed=2, stages=1, peer="a", members=("a", "b"))


def test_a_mate_in_one_is_one_and_any_peer_makes_it_again() -> None:
    author, reader = ChessData(ChessConfig(questions_per_round=3)), ChessData()
    for question in author.round_data(ROUND):
        board = chess.Board(question.metadata["fen"])
        assert question.answer in [move.uci() for move in mating_moves(board)]
        board.push_uci(question.answer)
        assert board.is_checkmate()
        assert reader.resolve(question.reference) == question


def test_evaluation_and_other_configurations_are_not_resolved() -> None:
    data = ChessData(ChessConfig(task=Task.LEGAL_MOVE, questions_per_round=2))
    good = data.round_data(ROUND)[0].reference
    for bad in (
        data.evaluation_data(1)[0].reference,
        replace(good, config="x"),
        replace(good, index=1),
        replace(good, seed=-1),
    ):
        assert data.resolve(bad) is None
    assert ChessData().resolve(good) is None


def test_rewards_distinguish_mate_a_legal_move_and_an_invalid_text() -> None:
    data, rewards = ChessData(ChessConfig(questions_per_round=1)), ChessRewards()
    question = data.round_data(ROUND)[0]
    board = chess.Board(question.metadata["fen"])
    mates = mating_moves(board)
    quiet = next(move for move in board.legal_moves if move not in mates)
    action = 64 * mates[0].from_square + mates[0].to_square
    texts = [
        question.answer,
        board.san(mates[0]),
        f" {question.answer}\n",
        quiet.uci(),
        "a1a1",
        "0000",
        "e2e9",
        "",
        "__import__('os')",
        str(action),
        f"{action:016}9",
    ]
    state = GameState.begin(ROUND, [question])
    # An empty text is no move, although its only id (that of EOS, say) is the number of one.
    rollouts = (*(Rollout(text) for text in texts), Rollout(token_ids=(action,), logprobs=(0.0,)))
    state = state.with_contribution(
        Contribution("a", 0, 0, (Group(data.prompt(question), rollouts),), {question.id: question.reference})
    )
    scores = next(iter(rewards.rewards(state).values()))
    assert scores == [1.0, 1.0, 1.0, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]


def test_an_action_that_promotes_takes_a_queen() -> None:
    board = chess.Board("8/P7/8/8/8/8/8/K1k5 w - - 0 1")
    assert parse_move(board, str(64 * chess.A7 + chess.A8)) == chess.Move.from_uci("a7a8q")


def test_planes_encode_the_complete_position() -> None:
    start = planes(chess.Board())
    assert start.shape == (18, 8, 8)
    assert start[:12].sum() == 32
    assert start[0, 1].sum() == 8
    assert start[12:17].min() == 1
    board = chess.Board()
    board.push_uci("e2e4")
    assert planes(board)[12].max() == 0
    assert planes(board)[17, 2, 4] == 1


def test_games_too_short_for_any_position_are_refused() -> None:
    with pytest.raises(InvalidManifest, match="maxPlies"):
        ChessData(ChessConfig(min_plies=20, max_plies=20))
