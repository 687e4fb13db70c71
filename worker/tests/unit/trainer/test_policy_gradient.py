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
from action_rounds import IMAGES, contribution_of, from_others, questions, round_of, state_of, trainer
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn

from swarmgame.errors import BadData, InvalidManifest
from swarmgame.game.author_records import AuthorRecords
from swarmgame.game.components import ComponentContext
from swarmgame.game.state import Contribution, GameState, Prompt, Question, QuestionRef, Rollout, Sampling
from swarmgame.trainer.policy_gradient import PolicyGradientConfig, PolicyGradientTrainer


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
    learner, other = trainer(importance_cap=0.5), trainer()
    sent = from_others(
        contribution_of(other, round_of(peer="other")), lambda rollout: replace(rollout, logprobs=(-5.0,))
    )
    state = state_of(sent)
    before = weights(learner)
    metrics = learner.train(state, scored(state))
    assert metrics["groups_external"] == 6
    assert metrics["importance"] == pytest.approx(0.5)
    assert not same(before, weights(learner))


def test_one_other_peer_has_a_sixth_of_an_update_at_most() -> None:
    learner = trainer(max_influence=0.5)
    state = state_of(
        contribution_of(learner, round_of()), replace(from_others(contribution_of(learner, round_of(7))), round=0)
    )
    learner.train(state, scored(state))
    parts = {"me": 0.0, "other": 0.0}
    for key, uses in learner.last_update().items():
        parts[key.peer] += sum(abs(use.advantage) * use.weight for use in uses)
    share = parts["other"] / sum(parts.values())
    assert 0 < share <= 1 / 6 + 1e-6
    [(peer, use)] = learner.remote_uses().items()
    assert (peer, use.influence) == ("other", pytest.approx(share))


@pytest.mark.parametrize("baseline", ["update", "group", "none"])
def test_rewards_of_other_peers_do_not_move_the_advantages_of_own_actions(baseline: str) -> None:
    def advantages(*contributions: Contribution, others: float = 0.0) -> dict[str, list[float]]:
        learner = trainer(baseline=baseline, scale=True)
        state = state_of(*contributions)
        rewards = {
            key: [others, 5 * others] * 4 if key.peer == "other" else mine for key, mine in scored(state).items()
        }
        learner.train(state, rewards)
        return {key.question_id: [use.advantage for use in uses] for key, uses in learner.last_update().items()
                if key.peer == "me"}  # fmt: skip

    own = contribution_of(trainer(), round_of())
    alone = advantages(own)
    assert len({value for values in alone.values() for value in values}) > 1
    assert advantages(own, from_others(own), others=40.0) == alone


def certain(action: int = 0) -> PolicyGradientTrainer:
    """A policy of 16 actions that takes one of them nearly always."""
    learner = trainer(actions=16, module="mlp", options={"inputs": 16}, generations=8)
    with torch.no_grad():
        last = [layer for layer in learner.module.modules() if isinstance(layer, nn.Linear)][-1]
        last.weight.zero_()
        last.bias.copy_(torch.full((16,), -20.0))
        last.bias[action] = 0.0
    return learner


@pytest.mark.parametrize(
    ("claimed", "reason"), [(-20.0, "implausible"), (-0.01, "implausible")], ids=["as we see it", "as if certain"]
)
def test_actions_that_our_own_policy_would_hardly_ever_take_get_no_weight(claimed: float, reason: str) -> None:
    learner = certain()
    own = contribution_of(learner, round_of())
    other = from_others(own, lambda rollout: replace(rollout, text="1", token_ids=(1,), logprobs=(claimed,)))
    learner.train(state_of(own, other), {key: [1.0, 0.0] * 4 for key, _ in state_of(own, other).groups()})
    uses = learner.last_update()
    assert {use.weight for key, each in uses.items() for use in each if key.peer == "other"} == {0.0}
    assert {use.weight for key, each in uses.items() for use in each if key.peer == "me"} == {1.0}
    assert learner.remote_uses()["other"].refused == {reason: 48}


def test_claims_that_are_too_low_to_be_true_get_no_weight_and_are_counted() -> None:
    learner = certain()
    own = contribution_of(learner, round_of())
    other = from_others(own, lambda rollout: replace(rollout, logprobs=(-17.0,)))
    learner.train(state_of(own, other), {key: [1.0, 0.0] * 4 for key, _ in state_of(own, other).groups()})
    [use] = learner.remote_uses().values()
    assert use.refused == {"improbable": 48}
    assert use.influence == 0.0


@pytest.mark.parametrize(("by", "doubtful"), [(0.0, False), (-0.7, True)], ids=["honest", "low"])
def test_the_claims_of_an_author_are_compared_with_our_own_policy(by: float, doubtful: bool) -> None:
    learner, records, found = trainer(generations=64), AuthorRecords(), []
    for number in range(12):
        own = contribution_of(learner, round_of(number))
        sent = from_others(
            contribution_of(learner, round_of(number, peer="other")),
            lambda rollout: replace(rollout, logprobs=(min(0.0, rollout.logprobs[0] + by),)),
        )
        state = state_of(own, sent, number=number)
        learner.train(state, scored(state))
        found.append(records.record(number, learner.remote_uses()))
    assert any(found) is doubtful


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        (lambda rollout: replace(rollout, token_ids=(3,)), {}),
        (lambda rollout: replace(rollout, token_ids=(-1,)), {}),
        (lambda rollout: replace(rollout, token_ids=(0, 1), logprobs=(-1.0, -1.0)), {}),
        (lambda rollout: replace(rollout, logprobs=(math.nan,)), {}),
        (lambda rollout: replace(rollout, logprobs=(5.0,)), {}),
        (lambda rollout: replace(rollout, logprobs=(-50.0,)), {}),
        (lambda rollout: rollout, {"tokenizer": "another"}),
    ],
    ids=[
        "no such action",
        "negative",
        "two actions",
        "nan",
        "probability above one",
        "less likely than possible",
        "another action space",
    ],
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


@pytest.mark.parametrize(
    ("options", "payload", "cure"),
    [
        ({}, np.zeros((1, 8, 8)), r"shape is \(1, 8, 8\), such as \{inputs: 64\}"),
        ({"module": "cnn"}, np.zeros((1, 28, 28)), r"shape is \(1, 28, 28\), such as \{shape: \[1, 28, 28\]\}"),
        # Four times the numbers of one observation: the network makes four rows of each.
        ({"module": "cnn", "options": {"shape": [4, 4]}}, np.zeros((8, 8)), r"such as \{shape: \[8, 8\]\}"),
        ({"module": "cnn"}, np.zeros(5), r"take module: mlp"),
    ],
)
def test_a_network_that_does_not_fit_the_observations_is_named_before_anything_starts(
    options: dict[str, Any], payload: Any, cure: str
) -> None:
    config, prompt = PolicyGradientConfig(**({"actions": 3} | options)), Prompt("q", payload=payload)
    with pytest.raises(InvalidManifest, match=rf"with\.options is .*{cure}"):
        PolicyGradientTrainer.check_with(config, ComponentContext(), prompt)
    with pytest.raises(InvalidManifest, match=cure):
        PolicyGradientTrainer(config, ComponentContext(peer="me")).generate([prompt], round_of())


def test_a_network_that_fits_is_tried_without_making_its_weights() -> None:
    huge = {"inputs": 64, "hidden": 1_000_000, "layers": 2}
    config = PolicyGradientConfig(actions=3, options=huge)
    prompt = Prompt("q", payload=np.zeros((1, 8, 8)))
    assert PolicyGradientTrainer.check_with(config, ComponentContext(), prompt) == []
    assert PolicyGradientTrainer.check_with(PolicyGradientConfig(actions=3), ComponentContext(), Prompt("q")) == []


def test_a_module_of_ones_own_that_fails_is_named_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing_policy.py").write_text(
        "from torch import nn\n"
        "class Failing(nn.Linear):\n"
        "    def __init__(self, actions): super().__init__(16, actions)\n"
        "    def forward(self, observations):\n"
        "        return {}[0]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    config = PolicyGradientConfig(actions=3, module="failing_policy:Failing")
    prompt = Prompt("q", payload=IMAGES[0])
    named = r"of shape \(4, 4\); it failed: KeyError: 0 at .*failing_policy\.py:5"
    with pytest.raises(InvalidManifest, match=named):
        PolicyGradientTrainer.check_with(config, ComponentContext(), prompt, load_model=True)
    with pytest.raises(InvalidManifest, match=named):
        PolicyGradientTrainer(config, ComponentContext(peer="me")).generate([prompt], round_of())


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("out of memory"), RuntimeError("CUDA error: launch")])
def test_an_error_of_the_device_is_none_of_the_manifest(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = trainer()

    def fail(_: torch.Tensor) -> torch.Tensor:
        raise error

    monkeypatch.setattr(learner.module, "forward", fail)
    with pytest.raises(type(error)):
        learner.generate([Prompt("q", payload=IMAGES[0])], round_of())


def test_payloads_that_make_no_batch_are_named() -> None:
    learner = trainer()
    with pytest.raises(BadData, match=r"shapes \(4, 4\) and \(5, 5\).*to one shape"):
        learner.generate([Prompt("a", payload=IMAGES[0]), Prompt("b", payload=np.zeros((5, 5)))], round_of())
    for payload in ("text", [[1.0, 2.0], [3.0]]):
        with pytest.raises(BadData, match="expected numbers in a list or an array"):
            learner.generate([Prompt("a", payload=payload)], round_of())


NOISY = """
import torch
from torch import nn

class Noisy(nn.Module):
    def __init__(self, actions, always=False):
        super().__init__()
        self.always = always
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, actions)
        )

    def forward(self, observations):
        logits = self.layers(observations)
        return nn.functional.dropout(logits, 0.5, True) if self.always else logits

class Recurrent(nn.Module):
    def __init__(self, actions):
        super().__init__()
        self.cells = nn.LSTM(4, 8, num_layers=2, dropout=0.5, batch_first=True)
        self.head = nn.Linear(8, actions)

    def forward(self, observations):
        return self.head(self.cells(observations)[0][:, -1])
"""


@pytest.fixture
def noisy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "noisy_policies.py").write_text(NOISY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "noisy_policies", raising=False)


@pytest.mark.usefixtures("noisy")
@pytest.mark.parametrize(("module", "named"), [("Noisy", "BatchNorm1d, Dropout"), ("Recurrent", "LSTM")])
def test_a_policy_is_sampled_and_trained_without_noise_and_statistics_of_batches(module: str, named: str) -> None:
    learner, other = (trainer(module=f"noisy_policies:{module}", options={}) for _ in range(2))
    assert [notice.code for notice in learner.notices()] == ["evaluation-mode"]
    assert f"the policy has {named}, and is" in learner.notices()[0].text
    before = weights(learner)
    own, sent = contribution_of(learner, round_of()), from_others(contribution_of(other, round_of(peer="other")))
    assert same(before, weights(learner))  # sampling changes no statistics
    for group, question in zip(own.groups, questions(), strict=True):
        alone = torch.log_softmax(learner.module(torch.from_numpy(question.payload)[None]), dim=-1)[0]
        for rollout in group.rollouts:
            assert rollout.logprobs[0] == pytest.approx(float(alone[rollout.token_ids[0]]), abs=1e-5)
    state = state_of(own, sent)
    metrics = learner.train(state, scored(state))
    # The other peer has the same weights, so each of its actions counts fully.
    assert metrics["importance"] == pytest.approx(1.0, abs=1e-5)
    assert not same(before, weights(learner))
    assert [notice.code for notice in learner.notices()] == ["evaluation-mode"]


@pytest.mark.usefixtures("noisy")
def test_noise_that_cannot_be_switched_off_is_said_after_the_first_step() -> None:
    learner = trainer(module="noisy_policies:Noisy", options={"always": True})
    play(learner, 0)
    play(learner, 1)
    assert [notice.code for notice in learner.notices()] == ["evaluation-mode", "sampler-mismatch"]
    assert "sampling and training differ on actions of the same weights" in learner.notices()[1].text
    assert trainer().notices() == []


@pytest.mark.usefixtures("noisy")
def test_validate_says_what_evaluation_mode_switches_off() -> None:
    config = PolicyGradientConfig(actions=3, module="noisy_policies:Noisy")
    context = ComponentContext()
    assert "BatchNorm1d, Dropout" in PolicyGradientTrainer.check_with(config, context, None, load_model=True)[0]
    assert PolicyGradientTrainer.check_with(PolicyGradientConfig(actions=3), context, None, load_model=True) == []


@pytest.mark.parametrize("module", ["nothing", "no_such_package:make", "json:no_such_factory", ":x"])
def test_a_policy_that_does_not_exist_is_refused(module: str) -> None:
    with pytest.raises(InvalidManifest, match=r"with\.module"):
        trainer(module=module)


@pytest.mark.parametrize(
    ("code", "kind"),
    [("def make(:\n", "SyntaxError"), ("unknown\n", "NameError"), ("open('no such file')\n", "FileNotFound")],
)
def test_a_policys_module_that_fails_is_named_with_its_line(
    code: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"policy_with_{kind}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InvalidManifest, match=rf"with\.module .*{kind}.* at .*policy_with_{kind}\.py:\d"):
        trainer(module=f"policy_with_{kind}:make")


def test_a_factory_that_fails_is_named_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "failing_factory.py").write_text("def make(actions, **options):\n    return options['width']\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InvalidManifest, match=r"with\.options .*KeyError: 'width' at .*failing_factory\.py:2"):
        trainer(module="failing_factory:make", options={})


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
