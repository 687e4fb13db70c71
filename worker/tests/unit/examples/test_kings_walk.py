"""examples/06-own-trainer: turns between peers, rewards, and what a peer that misbehaves can do."""

from __future__ import annotations

import math
from typing import Any

import pytest
from running import EXAMPLES

from swarmgame import ComponentContext, Config, Contribution, GameState, Group, Prompt, Question, Rollout, Round

A, B = "peer-a", "peer-b"
LEFT, STAY = 1, 4


def round_of(peer: str, **changes: Any) -> Round:
    return Round(number=0, seed=1, peer_seed=3, stages=4, peer=peer, members=(A, B), **changes)


@pytest.fixture
def walk(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(EXAMPLES / "06-own-trainer")
    import kings_walk

    return kings_walk


def boards_of(walk: Any, count: int = 4) -> Any:
    return walk.Boards(walk.BoardsConfig(boards_per_round=count), ComponentContext(seed=1))


def with_moves(
    state: GameState, stage: int, author: str, questions: list[Question], move: tuple[int, ...]
) -> GameState:
    """Return the state with the same move of a peer on some boards."""
    groups = tuple(Group(Prompt(question.id), (Rollout("", move, (-1.0,) * len(move)),)) for question in questions)
    references = {question.id: question.reference for question in questions}
    return state.with_contribution(Contribution(author, 0, stage, groups, references))


def after(walk: Any, stages: int, peer: str, move: int = STAY) -> tuple[GameState, Question]:
    """Return the state after some turns on one board of peer A, with the same move in each."""
    (question,) = boards_of(walk, 1).round_data(round_of(A))
    state = GameState.begin(round_of(peer), [question] if peer == A else []).with_questions([question])
    for stage in range(stages):
        state = with_moves(state, stage, (A, B)[stage % 2], [question], (move,))
        if stage == 0:
            state = with_moves(state, 0, B, [], (move,))
    return state, question


def test_the_peers_move_in_turn_and_see_the_same_board(walk: Any) -> None:
    data = boards_of(walk)
    for stage in range(walk.TURNS):
        for peer in (A, B):
            state, question = after(walk, stage, peer, LEFT)
            right, up = question.payload
            prompts = [(prompt.question_id, prompt.text) for prompt in data.stage_inputs(state, stage)]
            expected = [(question.id, f"{right + stage} {up} {4 - stage}")] if peer == (A, B)[stage % 2] else []
            assert prompts == expected


@pytest.mark.parametrize("move", range(9))
def test_every_move_of_both_players_gets_the_nearness_of_the_end(walk: Any, move: int) -> None:
    state, question = after(walk, 4, A, move)
    rewards = walk.Nearness(Config(), ComponentContext()).rewards(state)
    step = walk.STEPS[move]
    distance = max(abs(at - 4 * by) for at, by in zip(question.payload, step, strict=True))
    assert {(key.peer, key.stage): values for key, values in rewards.items()} == {
        ((A, B)[stage % 2], stage): [1 / (1 + distance)] for stage in range(4)
    }


@pytest.mark.parametrize("bad", [(9,), ()], ids=["no such move", "no move"])
def test_a_move_that_is_none_leaves_the_walk_without_a_reward(walk: Any, bad: tuple[int, ...]) -> None:
    state, question = after(walk, 1, A)
    state = with_moves(state, 1, B, [question], bad)
    assert walk.places(state, 2) == {}
    rewards = walk.Nearness(Config(), ComponentContext()).rewards(state)
    assert all(math.isnan(value) for values in rewards.values() for value in values)


def test_a_move_out_of_turn_does_not_count(walk: Any) -> None:
    state, question = after(walk, 1, A)
    state = with_moves(state, 1, A, [question], (STAY,))
    assert set(walk.places(state, 1)) == {question.id}
    assert walk.places(state, 2) == {}


def test_another_peer_regenerates_our_boards_and_their_first_prompts(walk: Any) -> None:
    ours, theirs = boards_of(walk), boards_of(walk)
    questions = ours.round_data(round_of(A))
    for question in questions:
        assert theirs.resolve(question.reference) == question
    mine, checked = (
        data.stage_inputs(GameState.begin(round_of(peer), questions), 0) for data, peer in ((ours, A), (theirs, B))
    )
    assert [prompt.text for prompt in mine] == [question.text for question in questions]
    assert checked == mine


def test_held_out_boards_are_all_different_and_in_no_round(walk: Any) -> None:
    data = boards_of(walk, 1000)
    held_out = [question.text for question in data.evaluation_data(1000)]
    assert len(held_out) == len(set(held_out)) > 12
    assert not set(held_out) & {question.text for question in data.round_data(round_of(A))}
    assert not any(data.resolve(question.reference) for question in data.evaluation_data(1000))


def test_in_an_evaluation_a_peer_makes_every_move(walk: Any) -> None:
    data = boards_of(walk)
    questions = list(data.evaluation_data(3))
    state = GameState.begin(round_of(A, evaluation=True), questions)
    for stage in range(walk.TURNS):
        assert [prompt.question_id for prompt in data.stage_inputs(state, stage)] == [q.id for q in questions]
        state = with_moves(state, stage, A, questions, (STAY,))
    assert walk.places(state, walk.TURNS) == {question.id: question.payload for question in questions}
