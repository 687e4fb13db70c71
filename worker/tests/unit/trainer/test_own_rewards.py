"""What a group of another peer holds up as good, ranked among our own good rollouts."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import pytest

from swarmgame.game.state import Contribution, GameState, Group, GroupKey, Prompt, Question, QuestionRef, Rollout, Round
from swarmgame.trainer.own_rewards import ROUNDS, OwnRewards

Scores = Sequence[float]


def round_with(
    own: Sequence[Scores], other: Scores, number: int = 0, environment: str = "sums"
) -> tuple[GameState, dict[GroupKey, Scores]]:
    """A state with own groups and one of another peer, which is trained on, and their rewards."""
    rewards: dict[GroupKey, Scores] = {}
    state = GameState.begin(Round(number, 0, 0, 1, "me"), [])
    for peer, groups, name in (("me", own, "sums"), ("other", [other], environment)):
        questions = [Question(QuestionRef(name, peer, number, index)) for index in range(len(groups))]
        made = tuple(
            Group(Prompt(question.id), tuple(Rollout(str(at)) for at in range(len(scores))))
            for question, scores in zip(questions, groups, strict=True)
        )
        state = state.with_questions(questions).with_contribution(
            Contribution(peer, number, 0, made, {question.id: question.reference for question in questions})
        )
        rewards |= {GroupKey(number, 0, peer, q.id): scores for q, scores in zip(questions, groups, strict=True)}
    return state.with_external(key for key in rewards if key.peer == "other"), rewards


def factors(own: Sequence[Scores], other: Scores, **fields: str) -> list[float]:
    state, rewards = round_with(own, other, **fields)
    ranks = OwnRewards()
    ranks.begin(state, rewards)
    [key] = state.external
    return [ranks.factor(key, at) for at in range(len(other))]


RIGHT = [[1.0, 0.0, 0.0, 0.0]] * 8 + [[0.5, 0.0, 0.0, 0.0]] * 2


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ([1.0, 0.0], [1.0, 1.0]),
        ([0.5, 0.0], [0.2, 0.2]),
        ([0.4, 0.0], [0.0, 0.0]),
        ([1.0, 0.5, 0.0, 0.0], [1.0, 0.2, 0.8667, 0.8667]),
        ([2.0, 0.0], [1.0, 1.0]),
        ([0.3, 0.3], [1.0, 1.0]),
        ([math.nan, 0.5, 0.0], [0.2, 0.2, 0.2]),
    ],
    ids=["right", "partly", "less than ours", "right and partly", "better", "equal", "not scored"],
)
def test_rollouts_above_the_mean_are_ranked_among_ours_and_the_others_balance_them(
    other: Scores, expected: list[float]
) -> None:
    found = factors(RIGHT, other)
    assert found == pytest.approx(expected, abs=1e-4)
    scored = [(value, factor) for value, factor in zip(other, found, strict=True) if not math.isnan(value)]
    mean = sum(value for value, _ in scored) / len(scored)
    assert sum((value - mean) * factor for value, factor in scored) == pytest.approx(0.0)


def test_with_few_own_rollouts_or_of_other_environments_nothing_is_ranked() -> None:
    assert factors([[1.0, 0.0]] * 7, [0.5, 0.0]) == [1.0, 1.0]
    assert factors(RIGHT, [0.5, 0.0], environment="words") == [1.0, 1.0]


def test_earlier_rounds_count_for_a_while_and_come_back_exactly() -> None:
    ranks = OwnRewards()
    for number in range(ROUNDS + 3):
        state, rewards = round_with(RIGHT if number == 0 else [[0.25, 0.0]], [0.5, 0.0], number)
        ranks.begin(state, rewards)
        [key] = state.external
        again = OwnRewards()
        again.load_state_dict(json.loads(json.dumps(ranks.state_dict())))
        assert again.state_dict() == ranks.state_dict()
        expected = {0: 0.2, 1: 3 / 11, 2: 4 / 12, 3: 5 / 13}.get(number, 1.0)
        assert ranks.factor(key, 0) == pytest.approx(expected), number
