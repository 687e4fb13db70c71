"""Policy gradients over discrete actions, on games small enough to know the answer."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn

from swarmgame.errors import InvalidManifest
from swarmgame.game.components import ComponentContext
from swarmgame.game.state import Contribution, GameState, Prompt, Question, QuestionRef, Rollout, Round, Sampling
from swarmgame.seeds import derive_seed
from swarmgame.trainer.policy_gradient import PolicyGradientConfig, PolicyGradientTrainer

IMAGES = np.random.default_rng(0).normal(size=(6, 4, 4)).astype(np.float32)
CNN = {"module": "cnn", "options": {"shape": [4, 4], "channels": 4, "hidden": 16}}


def questions() -> list[Question]:
    """Each image has its own right action."""
    return [
        Question(QuestionRef("images", "v1", 0, index), answer=str(index % 3), payload=image)
        for index, image in enumerate(IMAGES)
    ]


def round_of(number: int = 0, peer: str = "me") -> Round:
    return Round(number, derive_seed(number), derive_seed(peer, number), 1, peer, (peer,))


def trainer(**options: Any) -> PolicyGradientTrainer:
    config = PolicyGradientConfig(**({"actions": 3, "learning_rate": 1e-2} | CNN | options))
    return PolicyGradientTrainer(config, ComponentContext(peer="me"))


def contribution_of(learner: PolicyGradientTrainer, round: Round) -> Contribution:
    own = questions()
    groups = tuple(learner.generate([Prompt(question.id, payload=question.payload) for question in own], round))
    return Contribution(
        round.peer,
        round.number,
        0,
        groups,
        {i.id: i.reference for i in own},
        learner.tokenizer,
        learner.policy_version,
    )


def from_others(
    contribution: Contribution, change: Callable[[Rollout], Rollout] = lambda rollout: rollout, **fields: Any
) -> Contribution:
    """As it comes over the wire: without observations."""
    groups = tuple(
        replace(group, prompt=replace(group.prompt, payload=None), rollouts=tuple(map(change, group.rollouts)))
        for group in contribution.groups
    )
    return replace(contribution, peer="other", groups=groups, **fields)


def state_of(*contributions: Contribution, number: int = 0) -> GameState:
    state = GameState.begin(round_of(number), questions())
    for contribution in contributions:
        state = state.with_contribution(contribution)
    return state.with_external(key for key, _ in state.remote_groups())


def scored(state: GameState) -> dict[Any, list[float]]:
    return {
        key: [float(r.text == state.questions[key.question_id].answer) for r in group.rollouts]
        for key, group in state.groups()
    }


def play(learner: PolicyGradientTrainer, number: int) -> tuple[float, Any]:
    state = state_of(contribution_of(learner, round_of(number)), number=number)
    rewards = scored(state)
    return sum(map(sum, rewards.values())) / sum(map(len, rewards.values())), learner.train(state, rewards)


def weights(learner: PolicyGradientTrainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in learner.module.state_dict().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(
    "options",
    [{}, {"baseline": "update", "scale": True}, {"module": "mlp", "options": {"inputs": 16}, "entropy_bonus": 0.01}],
)
def test_the_policy_learns_the_right_action_for_each_image(options: dict[str, Any]) -> None:
    learner = trainer(**options)
    rewards = [play(learner, number)[0] for number in range(60)]
    assert sum(rewards[:3]) / 3 < 0.5
    assert sum(rewards[-3:]) / 3 > 0.8


def test_a_bandit_needs_no_observation() -> None:
    learner = PolicyGradientTrainer(
        PolicyGradientConfig(actions=4, generations=32, learning_rate=0.1), ComponentContext(peer="me")
    )
    question = Question(QuestionRef("arms", "v1", 0, 0))
    for number in range(20):
        round = round_of(number)
        groups = tuple(learner.generate([Prompt(question.id)], round))
        state = GameState.begin(round, [question]).with_contribution(
            Contribution("me", number, 0, groups, {question.id: question.reference}, learner.tokenizer)
        )
        learner.train(state, {key: [float(r.text == "2") for r in group.rollouts] for key, group in state.groups()})
    rollouts = learner.generate([Prompt(question.id)], round_of(99))[0].rollouts
    assert sum(rollout.text == "2" for rollout in rollouts) > 24


def test_an_action_is_a_rollout_of_one_id_with_its_logprob() -> None:
    learner = trainer()
    for index, group in enumerate(contribution_of(learner, round_of()).groups):
        logprobs = torch.log_softmax(learner.module(torch.from_numpy(IMAGES[index : index + 1])), dim=1)[0].tolist()
        for rollout in group.rollouts:
            [action] = rollout.token_ids
            assert rollout.text == str(action) == learner.decode([action])
            assert rollout.logprobs[0] == pytest.approx(logprobs[action], abs=1e-5)
    assert learner.decode([3]) is learner.decode([-1]) is learner.decode([0, 1]) is None


def test_a_sampled_evaluation_has_as_many_actions_as_the_game_asks_for_at_its_temperature() -> None:
    learner = trainer(evaluation_greedy=True)
    asked = replace(round_of(), evaluation=True, sampling=Sampling(64))
    sampled = contribution_of(learner, asked).groups
    assert {len(group.rollouts) for group in sampled} == {64}
    assert all(len({rollout.token_ids for rollout in group.rollouts}) > 1 for group in sampled)
    cold = contribution_of(learner, replace(asked, sampling=Sampling(64, 0.001))).groups
    greedy = contribution_of(learner, replace(asked, sampling=None)).groups
    for group, likeliest in zip(cold, greedy, strict=True):
        assert {rollout.token_ids for rollout in group.rollouts} == {likeliest.rollouts[0].token_ids}


def test_random_numbers_come_from_the_rounds_seeds_only() -> None:
    learner = trainer()
    first = contribution_of(learner, round_of(1)).groups
    torch.rand(7)
    assert contribution_of(learner, round_of(1)).groups == first == contribution_of(trainer(), round_of(1)).groups
    assert contribution_of(learner, round_of(2)).groups != first
    greedy = contribution_of(learner, replace(round_of(1), evaluation=True)).groups
    assert all(len(group.rollouts) == 1 for group in greedy)


def test_remote_actions_are_trained_on_with_regenerated_observations() -> None:
    learner, other = trainer(importance_cap=1.5), trainer()
    sent = from_others(
        contribution_of(other, round_of(peer="other")), lambda rollout: replace(rollout, logprobs=(-50.0,))
    )
    state = state_of(sent)
    before = weights(learner)
    metrics = learner.train(state, scored(state))
    assert metrics["groups_external"] == 6
    assert metrics["importance"] == pytest.approx(1.5)
    assert not same(before, weights(learner))


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        (lambda rollout: replace(rollout, token_ids=(3,)), {}),
        (lambda rollout: replace(rollout, token_ids=(-1,)), {}),
        (lambda rollout: replace(rollout, token_ids=(0, 1), logprobs=(-1.0, -1.0)), {}),
        (lambda rollout: replace(rollout, logprobs=(math.nan,)), {}),
        (lambda rollout: replace(rollout, logprobs=(5.0,)), {}),
        (lambda rollout: rollout, {"tokenizer": "another"}),
    ],
    ids=["no such action", "negative", "two actions", "nan", "probability above one", "another action space"],
)
def test_what_cannot_be_an_action_of_ours_is_dropped_and_counted(
    change: Callable[[Rollout], Rollout], fields: dict[str, str]
) -> None:
    learner = trainer()
    state = state_of(from_others(contribution_of(learner, round_of()), change, **fields))
    before = weights(learner)
    assert learner.train(state, scored(state))["remote_dropped"] == 6
    assert same(before, weights(learner))


def test_equal_rewards_move_nothing_unless_there_is_an_entropy_bonus() -> None:
    for bonus, moves in ((0.0, False), (0.1, True)):
        learner = trainer(entropy_bonus=bonus)
        play(learner, 0)
        state = state_of(contribution_of(learner, round_of(1)), number=1)
        before, version = weights(learner), learner.policy_version
        learner.train(state, {key: [1 / 3] * len(group.rollouts) for key, group in state.groups()})
        assert same(before, weights(learner)) != moves
        assert learner.policy_version == version + moves


def test_rounds_after_a_reload_are_those_of_an_uninterrupted_run_bit_for_bit() -> None:
    straight, first, resumed = trainer(), trainer(), trainer()
    outcomes = [play(straight, number) for number in range(4)]
    play(first, 0), play(first, 1)
    play(resumed, 8)
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    assert [play(resumed, number) for number in (2, 3)] == outcomes[2:]
    assert same(weights(straight), weights(resumed))
    assert resumed.policy_version == 4


def test_the_policy_is_exported_with_what_makes_it_again(tmp_path: Path) -> None:
    learner = trainer()
    learner.export(tmp_path / "new")
    description = json.loads((tmp_path / "new" / "policy.json").read_text())
    again = PolicyGradientTrainer(PolicyGradientConfig(**description), ComponentContext(seed=9))
    again.module.load_state_dict(load_file(tmp_path / "new" / "policy.safetensors"))
    assert same(weights(learner), weights(again))


def test_any_module_may_be_named_by_its_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_policy.py").write_text(
        "from torch import nn\n"
        "def linear(actions, inputs):\n    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, actions))\n"
        "def not_a_module(actions): return actions\n"
        "def wrong_shape(actions): return nn.Sequential(nn.Flatten(), nn.Linear(16, 2))\n"
        "def nothing_to_learn(actions): return nn.Flatten()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    learner = trainer(module="my_policy:linear", options={"inputs": 16})
    assert isinstance(learner.module[1], nn.Linear)
    play(learner, 0)
    with pytest.raises(InvalidManifest, match=r"with\.module"):
        trainer(module="my_policy:not_a_module", options={})
    with pytest.raises(InvalidManifest, match="parameters that learn"):
        trainer(module="my_policy:nothing_to_learn", options={})
    with pytest.raises(InvalidManifest, match=r"output has shape \(6, 3\)"):
        play(trainer(module="my_policy:wrong_shape", options={}), 0)


@pytest.mark.parametrize("module", ["nothing", "no_such_package:make", "json:no_such_factory", ":x"])
def test_a_policy_that_does_not_exist_is_refused(module: str) -> None:
    with pytest.raises(InvalidManifest, match=r"with\.module"):
        trainer(module=module)


def test_options_that_the_policy_does_not_take_are_refused() -> None:
    with pytest.raises(InvalidManifest, match="chanels"):
        trainer(options={"chanels": 4})
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        PolicyGradientConfig(actions=1)


def test_no_language_model_is_imported() -> None:
    code = (
        "import sys, swarmgame.trainer.policy_gradient;"
        "sys.exit(any(n in sys.modules for n in ('transformers', 'tokenizers', 'trl')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
