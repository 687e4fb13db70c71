"""examples/06-own-trainer: the actor-critic is repeatable and resumable, and safe with what other peers send."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from running import EXAMPLES

from swarmgame import (
    ComponentContext,
    Contribution,
    GameState,
    Group,
    GroupKey,
    Prompt,
    Question,
    QuestionRef,
    Rollout,
    Sampling,
)
from swarmgame import Round as GameRound

ROUND = GameRound(number=3, seed=1, peer_seed=2, stages=1, peer="me", members=("me", "other"))
BOARDS = ("4 -2 4", "0 0 1", "1 3 2")
QUESTIONS = [Question(QuestionRef("board", "", 0, index)) for index in range(len(BOARDS))]
PROMPTS = [Prompt.from_question(*pair) for pair in zip(QUESTIONS, BOARDS, strict=True)]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(EXAMPLES / "06-own-trainer")
    import actor_critic

    return actor_critic


def trainer_of(module: Any, **options: float) -> Any:
    return module.ActorCritic(module.ActorCriticConfig(**options), ComponentContext(seed=1))


def probabilities(trainer: Any) -> list[float]:
    """Return the probability of each move on the first board."""
    with torch.no_grad():
        return list(trainer._forward(BOARDS[:1])[0].exp()[0].tolist())


def state_of(groups: tuple[Group, ...], author: str = "me") -> tuple[GameState, list[GroupKey]]:
    references = {question.id: question.reference for question in QUESTIONS}
    state = GameState.begin(ROUND, QUESTIONS).with_contribution(Contribution(author, 3, 0, groups, references))
    keys = [key for key, _ in state.groups()]
    return (state if author == "me" else state.with_external(keys)), keys


def test_moves_are_sampled_with_the_rounds_seed_and_an_evaluation_takes_the_likeliest(module: Any) -> None:
    trainer = trainer_of(module)
    groups = trainer.generate(PROMPTS, ROUND)
    assert groups == trainer.generate(PROMPTS, ROUND)
    assert groups != trainer.generate(PROMPTS, replace(ROUND, number=4))
    assert all(trainer.decode(rollout.token_ids) == rollout.text for group in groups for rollout in group.rollouts)
    (group,) = trainer.generate(PROMPTS[:1], replace(ROUND, evaluation=True))
    likeliest = max(range(9), key=probabilities(trainer).__getitem__)
    assert group.rollouts[0].token_ids == (likeliest,)
    assert math.exp(group.rollouts[0].logprobs[0]) == pytest.approx(probabilities(trainer)[likeliest])
    sampled = trainer.generate(PROMPTS[:1], replace(ROUND, evaluation=True, sampling=Sampling(5)))
    assert len(sampled[0].rollouts) == 5


def test_a_rewarded_move_becomes_likelier_and_a_punished_one_less_likely(module: Any) -> None:
    for reward, sign in ((1.0, 1), (-1.0, -1)):
        trainer = trainer_of(module, entropy_bonus=0)
        before = probabilities(trainer)
        groups = tuple(trainer.generate(PROMPTS[:1], ROUND))
        state, (key,) = state_of(groups)
        metrics = trainer.train(state, {key: [reward]})
        move = groups[0].rollouts[0].token_ids[0]
        assert sign * (probabilities(trainer)[move] - before[move]) > 0
        assert metrics["moves"] == 1
        assert trainer.policy_version == 1


@pytest.mark.parametrize("ids", [(9,), (4, 4), ()], ids=["no such move", "two moves", "no move"])
def test_remote_moves_that_cannot_be_are_not_trained_on(module: Any, ids: tuple[int, ...]) -> None:
    trainer = trainer_of(module)
    groups = (Group(PROMPTS[1], (Rollout("", ids, (-1.0,) * len(ids)),)),)
    state, (key,) = state_of(groups, author="other")
    before = {name: tensor.clone() for name, tensor in trainer.weights().items()}
    assert trainer.train(state, {key: [1.0]}) == {"moves": 0.0}
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.weights().items())


def test_games_without_a_result_are_not_trained_on(module: Any) -> None:
    trainer = trainer_of(module)
    state, (key,) = state_of(tuple(trainer.generate(PROMPTS[:1], ROUND)))
    assert trainer.train(state, {key: [math.nan]}) == {"moves": 0.0}
    assert trainer.policy_version == 0


def test_a_resumed_trainer_goes_on_exactly(module: Any) -> None:
    trainer, resumed = trainer_of(module), trainer_of(module)
    state, keys = state_of(tuple(trainer.generate(PROMPTS[:2], ROUND)))
    rewards = {key: [float(index)] for index, key in enumerate(keys)}
    trainer.train(state, rewards)
    resumed.load_state_dict(copy.deepcopy(trainer.state_dict()))
    for each in (trainer, resumed):
        each.train(state, rewards)
    assert resumed.policy_version == trainer.policy_version == 2
    assert all(torch.equal(tensor, resumed.weights()[name]) for name, tensor in trainer.weights().items())
