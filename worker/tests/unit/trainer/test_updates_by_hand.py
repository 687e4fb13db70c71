"""A game of two stages whose updates are computed by hand: one step a round, and one a stage."""

from __future__ import annotations

import pytest
import torch

from swarmgame.game.components import ComponentContext
from swarmgame.game.state import (
    Contribution,
    FinishReason,
    GameState,
    Group,
    GroupKey,
    Prompt,
    Question,
    QuestionRef,
    Rollout,
    Round,
)
from swarmgame.trainer.policy_gradient import PolicyGradientTrainer
from swarmgame.trainer.policy_gradient_config import PolicyGradientConfig

QUESTION = Question(QuestionRef("coin", "v1", 0, 0))


def trained(update: str) -> PolicyGradientTrainer:
    """Train a policy of two equally likely actions: the first is right in stage 0, the second in stage 1."""
    config = PolicyGradientConfig(actions=2, options={"layers": 0}, learning_rate=0.1, update=update)
    learner = PolicyGradientTrainer(config, ComponentContext(peer="me"))
    with torch.no_grad():
        for parameter in learner.module.parameters():
            parameter.zero_()
    round = Round(0, 1, 2, 2, "me", ("me",))
    state = GameState.begin(round, [QUESTION])
    half = -0.6931471805599453
    both = tuple(Rollout(str(action), (action,), (half,), FinishReason.STOP) for action in (0, 1))
    references = {QUESTION.id: QUESTION.reference}
    for stage in (0, 1):
        group = Group(Prompt(QUESTION.id), both)
        made = Contribution("me", 0, stage, (group,), references, learner.tokenizer, 0)
        state = state.with_contribution(made)
    rewards = {GroupKey(0, stage, "me", QUESTION.id): [1.0 - stage, float(stage)] for stage in (0, 1)}
    learner.train(state, rewards)
    return learner


def bias(learner: PolicyGradientTrainer) -> list[float]:
    found: list[float] = dict(learner.module.named_parameters())["1.bias"].tolist()
    return found


def test_one_step_a_round_adds_the_stages_up() -> None:
    """Advantages are 1/2 and -1/2 in stage 0 and the reverse in stage 1: the sum of the gradients is 0."""
    learner = trained("per-round")
    assert learner.policy_version == 1
    assert bias(learner) == pytest.approx([0.0, 0.0], abs=1e-6)


def test_one_step_a_stage_follows_each_in_turn() -> None:
    """Each stage's loss is -(l0 - l1) / 4 or its negative, so the gradient of a logit is 1/4 long, whatever the policy.

    AdamW's first step is the learning rate. In the second, the mean of both gradients is
    (0.9 * 0.1 * -1/4 + 0.1 * 1/4) / (1 - 0.81) = 0.0131579, over a root mean square of 1/4: 0.1 * 0.0526316 back.
    """
    learner = trained("per-stage")
    assert learner.policy_version == 2
    assert bias(learner) == pytest.approx([0.0947368, -0.0947368], abs=1e-5)


def test_none_leaves_the_policy_as_it_was() -> None:
    learner = trained("none")
    assert learner.policy_version == 0
    assert bias(learner) == [0.0, 0.0]
