"""The value network of the policy-gradient trainer: what it learns, an update by hand, resume, and what is refused."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from action_rounds import contribution_of, from_others, round_of, state_of, trainer

from swarmgame.errors import BadData, InvalidManifest
from swarmgame.game.components import ComponentContext
from swarmgame.game.state import GameState, Prompt, Rewards
from swarmgame.trainer.policy_gradient import PolicyGradientTrainer
from swarmgame.trainer.policy_gradient_config import PolicyGradientConfig

PPO: dict[str, Any] = {"baseline": "value"}


def of_question(state: GameState) -> Rewards:
    """Rewards that depend on the question alone: no action is better than another."""
    return {key: [float(int(key.question_id, 16) % 3)] * len(group.rollouts) for key, group in state.groups()}


def right_actions(state: GameState) -> Rewards:
    return {
        key: [float(rollout.text == state.questions[key.question_id].answer) for rollout in group.rollouts]
        for key, group in state.groups()
    }


def play(learner: PolicyGradientTrainer, number: int, rewards: Any = right_actions) -> dict[str, float]:
    state = state_of(contribution_of(learner, round_of(number)), number=number)
    return dict(learner.train(state, rewards(state)))


def network(learner: PolicyGradientTrainer) -> dict[str, torch.Tensor]:
    assert learner._values is not None
    return {name: each.detach().clone() for name, each in learner._values.network.named_parameters()}


def test_the_network_learns_what_each_observation_is_worth() -> None:
    learner = trainer(**PPO, learning_rate=1e-2)
    found = [play(learner, number, of_question) for number in range(150)]
    assert found[-1]["explained_variance"] > 0.9 > found[0]["explained_variance"]
    assert found[-1]["value_loss"] < 0.1 * found[0]["value_loss"]
    assert not {"value", "value_loss"} & play(trainer(), 0).keys()


def test_an_actor_critic_learns_the_right_actions() -> None:
    learner = trainer(**PPO, learning_rate=2e-2, generations=4)
    for number in range(120):
        play(learner, number)
    groups = contribution_of(learner, round_of(200)).groups
    answers = {question_id: str(index % 3) for index, question_id in enumerate(group.question_id for group in groups)}
    right = [rollout.text == answers[group.question_id] for group in groups for rollout in group.rollouts]
    assert sum(right) / len(right) > 0.8


@pytest.mark.parametrize("scale", [False, True])
def test_an_update_is_that_of_a_plain_loop(scale: bool) -> None:
    learner = trainer(**PPO, scale=scale, value_learning_rate=3e-3)
    assert learner._values is not None
    policy, values = copy.deepcopy(learner.module), copy.deepcopy(learner._values.network)
    adams = [torch.optim.AdamW(policy.parameters(), lr=1e-2, weight_decay=0.0)]
    adams.append(torch.optim.AdamW(values.parameters(), lr=3e-3, weight_decay=0.0))
    for number in range(3):
        state = state_of(contribution_of(learner, round_of(number)), number=number)
        rewards = right_actions(state)
        learner.train(state, rewards)
        rows = [
            (torch.tensor(group.prompt.payload), rollout.token_ids[0], reward)
            for key, group in state.groups()
            for rollout, reward in zip(group.rollouts, rewards[key], strict=True)
        ]
        expected = torch.cat([values(observation.unsqueeze(0))[0] for observation, _, _ in rows])
        paid = torch.tensor([reward for *_, reward in rows])
        advantages = (paid - expected).detach()
        if scale:
            advantages = advantages / advantages.std(correction=0)
        chosen = torch.stack(
            [policy(observation.unsqueeze(0)).log_softmax(-1)[0, action] for observation, action, _ in rows]
        )
        for module, adam, loss in (
            (policy, adams[0], -(advantages * chosen).mean()),
            (values, adams[1], 0.5 * ((expected - paid) ** 2).mean()),
        ):
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            adam.step()
    for ours, theirs in ((learner.module, policy), (learner._values.network, values)):
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=0)


def test_the_network_learns_from_our_own_actions_alone() -> None:
    alone, joined, other = trainer(**PPO), trainer(**PPO), trainer()
    own = contribution_of(alone, round_of())
    sent = from_others(contribution_of(other, round_of(peer="other")))
    for learner, contributions in ((alone, [own]), (joined, [own, sent])):
        state = state_of(*contributions)
        rewards = right_actions(state)
        rewards = {key: [9.0] * len(each) if key.peer == "other" else each for key, each in rewards.items()}
        metrics = learner.train(state, rewards)
    assert metrics["groups_external"] == 6
    assert all(torch.equal(one, network(joined)[name]) for name, one in network(alone).items())


def test_a_resume_is_exact_with_the_network(caplog: pytest.LogCaptureFixture) -> None:
    first, again = trainer(**PPO), trainer(**PPO)
    play(first, 0), play(first, 1)
    again.load_state_dict(copy.deepcopy(first.state_dict()))
    assert repr(play(first, 2)) == repr(play(again, 2))
    assert all(torch.equal(one, network(again)[name]) for name, one in network(first).items())
    assert any(name.startswith("values.") for name in first.weights())
    with caplog.at_level(logging.WARNING):
        trainer(**PPO).load_state_dict(trainer().state_dict())
        assert "the checkpoint has no value network" in caplog.text
        trainer().load_state_dict(first.state_dict())
        assert "the checkpoint has a value network, which is left out" in caplog.text


def test_a_module_without_a_network_of_one_output_is_refused() -> None:
    options: dict[str, Any] = {"module": "action_rounds:OnlySeveral", "options": {}, "baseline": "value"}
    expected = r"baseline is \"value\"; expected group, update or none.*actions: 1.*fewer than two actions"
    with pytest.raises(InvalidManifest, match=expected):
        trainer(**options)
    config = PolicyGradientConfig(actions=3, **options)
    prompt = Prompt("question", payload=[[0.0] * 4] * 4)
    with pytest.raises(InvalidManifest, match=expected):
        PolicyGradientTrainer.check_with(config, ComponentContext(peer="me"), prompt, load_model=True)
    with pytest.raises(ValueError, match="valueLearningRate has no effect with baseline group"):
        PolicyGradientConfig(actions=3, value_learning_rate=0.1)


def test_values_that_are_not_finite_end_the_round_with_what_to_change() -> None:
    learner = trainer(**PPO)
    assert learner._values is not None
    with torch.no_grad():
        next(learner._values.network.parameters()).fill_(float("inf"))
    with pytest.raises(BadData, match=r"the value network's output .* is not finite, first in .*valueLearningRate"):
        play(learner, 0)
