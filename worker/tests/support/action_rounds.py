"""Rounds for tests of the policy-gradient trainer: six images, each with its own right action."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from swarmgame.game.components import ComponentContext
from swarmgame.game.state import Contribution, GameState, Prompt, Question, QuestionRef, Rollout, Round
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


def trainer(*, max_influence: float = 1.0, **options: Any) -> PolicyGradientTrainer:
    config = PolicyGradientConfig(**({"actions": 3, "learning_rate": 1e-2} | CNN | options))
    return PolicyGradientTrainer(config, ComponentContext(peer="me", max_influence=max_influence))


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


class OnlySeveral(nn.Module):
    """A module whose author did not think of one output."""

    def __init__(self, actions: int) -> None:
        super().__init__()
        if actions < 2:
            raise ValueError("fewer than two actions make no game")
        self.layer = nn.Linear(16, actions)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layer(observations.flatten(1))
        return logits
