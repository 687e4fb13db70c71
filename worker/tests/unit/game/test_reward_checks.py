"""What a RewardManager returns is checked before anything is trained on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scripted_game import Scripted, manager, remote
from toys import ToyRewards

from swarmgame import Contribution, GameState, Group, GroupKey, Prompt, Question, QuestionRef, Rollout, Round
from swarmgame.errors import BadGame, ExitCode, exit_code_of
from swarmgame.game.manager import Progression
from swarmgame.game.reward_checks import require_scores

ONE_ROUND = Progression(max_rounds=1, single_peer=True)
Scores = Callable[[list[float]], object]


class Returning(ToyRewards):
    """Returns for each group what a function makes of the right rewards."""

    def __init__(self, change: Scores) -> None:
        super().__init__()
        self.change = change

    def rewards(self, state: GameState) -> Mapping[GroupKey, Sequence[float]]:
        return {key: self.change(list(values)) for key, values in super().rewards(state).items()}  # type: ignore[misc]


@pytest.mark.parametrize(
    "change",
    [
        tuple,
        np.array,
        torch.tensor,
        lambda values: [np.float32(value) for value in values],
        lambda values: [torch.tensor(value) for value in values],
        lambda values: [bool(value) for value in values],
        lambda values: list(torch.tensor(values)),
    ],
)
def test_numbers_of_every_kind_are_trained_on_alike(change: Scores) -> None:
    plain, expected, trained = manager(Scripted(), ONE_ROUND)
    plain.run()
    game, seen, trainer = manager(Scripted(), ONE_ROUND, rewards=Returning(change))
    game.run()
    assert trainer.state_dict() == trained.state_dict()
    assert seen.reports[0].reward == expected.reports[0].reward
    assert all(type(value) is float for values in seen.rewards[0].values() for value in values)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda values: values[:-1], "returned 3 rewards for 4 rollouts; expected one per rollout, in order"),
        (lambda values: [*values, 0.0], "returned 5 rewards for 4 rollouts"),
        (lambda values: [], "returned 0 rewards for 4 rollouts"),
        (lambda values: 1.0, "returned 1.0; expected a list of 4 numbers"),
        (lambda values: None, "returned None; expected a list of 4 numbers"),
        (lambda values: "1111", "returned '1111' (str); expected a list of 4 numbers"),
        (lambda values: [*values[:3], "1.0"], "rollout 3: returned '1.0' (str); expected a number"),
        (lambda values: [*values[:3], None], "rollout 3: returned None; expected a number"),
        (lambda values: [*values[:3], math.inf], "rollout 3: returned inf; expected a finite number"),
        (lambda values: [torch.ones(2)] * 4, "rollout 0: returned Tensor of shape (2,); expected a number"),
        (lambda values: np.ones((4, 2)), "rollout 0: returned [1.0, 1.0] (list); expected a number"),
    ],
)
def test_anything_else_ends_the_run_and_names_class_group_and_what_came(change: Scores, found: str) -> None:
    game, _, trainer = manager(Scripted(), ONE_ROUND, rewards=Returning(change))
    with pytest.raises(BadGame) as caught:
        game.run()
    assert str(caught.value).startswith("Returning.rewards, round 0, stage 0, question ")
    assert found in str(caught.value)
    assert exit_code_of(caught.value) is ExitCode.BAD_CONFIG
    assert trainer.policy_version == 0


class Whatever(ToyRewards):
    def __init__(self, returned: Any) -> None:
        super().__init__()
        self.returned = returned

    def rewards(self, state: GameState) -> Any:
        return self.returned


@pytest.mark.parametrize(
    ("returned", "found"),
    [
        (None, "Whatever.rewards returned None; expected a mapping from each key of state.groups()"),
        ([1.0, 0.0], "Whatever.rewards returned [1.0, 0.0] (list); expected a mapping"),
        ({"q1": [1.0]}, "returned rewards for 'q1' (str), which is no group of this round"),
        ({}, "Whatever.rewards scored none of the 12 rollouts of round 0: no group had rewards"),
    ],
)
def test_rewards_that_are_no_mapping_of_groups_are_refused(returned: Any, found: str) -> None:
    with pytest.raises(BadGame) as caught:
        manager(Scripted(), ONE_ROUND, rewards=Whatever(returned))[0].run()
    assert found in str(caught.value)


def test_a_round_without_a_single_score_ends_the_run_before_it_is_trained_on() -> None:
    game, seen, trainer = manager(Scripted(), ONE_ROUND, rewards=Returning(lambda values: [math.nan for _ in values]))
    with pytest.raises(BadGame, match="scored none of the 12 rollouts of round 0: every reward was NaN"):
        game.run()
    assert (trainer.policy_version, seen.reports) == (0, [])


def test_some_rollouts_may_be_left_without_a_score() -> None:
    game, seen, _ = manager(Scripted(), ONE_ROUND, rewards=Returning(lambda values: [math.nan, *values[1:]]))
    game.run()
    assert sum(math.isnan(value) for values in seen.rewards[0].values() for value in values) == 3


def test_the_check_counts_rollouts_of_other_peers_too() -> None:
    class Short(ToyRewards):
        def rewards(self, state: GameState) -> Mapping[GroupKey, Sequence[float]]:
            return {
                key: values[:-1] if key.peer == "other" else values for key, values in super().rewards(state).items()
            }

    communication = Scripted(lambda own: [remote("other", own.round)])
    with pytest.raises(BadGame, match="of peer …other: returned 3 rewards for 4 rollouts"):
        manager(communication, ONE_ROUND, rewards=Short())[0].run()


def test_rollouts_of_other_peers_that_nobody_can_score_end_no_run() -> None:
    question = Question(QuestionRef("toy", "v1", 1, 0), "?", "1")
    group = Group(Prompt.from_question(question), (Rollout("1"), Rollout("2")))
    begun = GameState.begin(Round(0, 1, 2, 1, "me", ("me", "other")), [question])

    def with_groups_of(peer: str) -> tuple[GameState, dict[GroupKey, list[float]]]:
        state = begun.with_contribution(Contribution(peer, 0, 0, (group,), {question.id: question.reference}))
        return state, {key: [math.nan, math.nan] for key, _ in state.groups()}

    theirs, unscored = with_groups_of("other")
    require_scores(unscored, theirs, "Rewards")
    ours, unscored = with_groups_of("me")
    with pytest.raises(BadGame, match="scored none of the 2 rollouts"):
        require_scores(unscored, ours, "Rewards")
