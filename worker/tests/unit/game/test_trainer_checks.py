"""What a Trainer returns is checked: a group for each prompt, and metrics that are numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scripted_game import Scripted, manager
from toys import ToyTrainer

from swarmgame import GameState, Group, Prompt, Rewards, Round
from swarmgame.errors import BadGame
from swarmgame.game.manager import Progression

ONE_ROUND = Progression(max_rounds=1, single_peer=True)


class Reporting(ToyTrainer):
    def __init__(self, metrics: Any) -> None:
        super().__init__()
        self.metrics = metrics

    def train(self, state: GameState, rewards: Rewards) -> Any:
        super().train(state, rewards)
        return self.metrics


def test_metrics_of_numpy_and_torch_become_floats_and_what_is_not_finite_is_missing() -> None:
    reported = {"loss": torch.tensor(0.5, requires_grad=True), "norm": np.float32(2), "steps": 1, "kl": math.inf}
    game, seen, _ = manager(Scripted(), ONE_ROUND, trainer=Reporting(reported))
    game.run()
    written = json.loads(json.dumps(seen.reports[0].as_json(), allow_nan=False))
    assert written["metrics"] == {"loss": 0.5, "norm": 2.0, "steps": 1.0, "kl": None}


@pytest.mark.parametrize(
    ("metrics", "found"),
    [
        (None, "Reporting.train returned None; expected a mapping from names to numbers"),
        ({"loss": "low"}, "Reporting.train returned the metric 'loss' as 'low' (str); expected a number"),
        ({"loss": torch.ones(2)}, "the metric 'loss' as Tensor of shape (2,); expected a number"),
    ],
)
def test_metrics_that_are_no_numbers_are_refused_by_name(metrics: Any, found: str) -> None:
    with pytest.raises(BadGame) as caught:
        manager(Scripted(), ONE_ROUND, trainer=Reporting(metrics))[0].run()
    assert found in str(caught.value)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda groups: groups[:-1], "returned 2 groups for 3 prompts; expected one a prompt"),
        (lambda groups: groups[::-1], "for the prompt of question"),
        (lambda groups: None, "returned None; expected a list of 3 groups"),
        (lambda groups: [*groups[:2], "x"], "returned a list with 'x' (str); expected a list of Group"),
    ],
)
def test_groups_that_do_not_belong_to_the_prompts_are_refused(change: Any, found: str) -> None:
    class Odd(ToyTrainer):
        def generate(self, prompts: Sequence[Prompt], round: Round) -> Sequence[Group]:
            return change(list(super().generate(prompts, round)))  # type: ignore[no-any-return]

    with pytest.raises(BadGame) as caught:
        manager(Scripted(), ONE_ROUND, trainer=Odd())[0].run()
    assert str(caught.value).startswith("Odd.generate returned ")
    assert found in str(caught.value)
