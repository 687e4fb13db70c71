"""Environments of gymnasium in the sandbox: played twice they give the same, with chance and with drawings."""

from __future__ import annotations

from typing import Any

import pytest

from swarmgame import Question, QuestionRef
from swarmgame.environments.sandboxed import SandboxedEpisodes
from swarmgame.runtime.environment_trial import first_difference

pytest.importorskip("gymnasium")
USE = "swarmgame.environments.gymnasium_games:Gymnasium"
ACTIONS = ["left", "down", "right", "up"]


@pytest.mark.parametrize(
    "options",
    [
        {"id": "FrozenLake-v1", "actions": ACTIONS},
        {"id": "FrozenLake-v1", "actions": ACTIONS, "shows": "drawing"},
        {"id": "Blackjack-v1"},
        {"id": "CartPole-v1"},
    ],
    ids=lambda options: "-".join([options["id"], options.get("shows", "observation")]),
)
def test_episodes_are_the_same_in_two_plays_and_need_nothing_that_the_sandbox_forbids(options: dict[str, Any]) -> None:
    questions = [Question(QuestionRef("round", "v1", seed, 0), "go:", "") for seed in range(3)]
    episodes = SandboxedEpisodes(USE, options, max_turns=3, max_observation_tokens=64, deadline=20.0)
    try:
        assert first_difference(episodes, questions) == ""
        plays = episodes.play([(question, ["1 right", "0 left"]) for question in questions])
        assert episodes.counters() == {}
    finally:
        episodes.close()
    assert all(play.failure is None and play.first and play.steps for play in plays)
    assert all(step.reward is not None for play in plays for step in play.steps)
