"""Answers that take long, or score a number that cannot be used: what they cost, and what they change."""

from __future__ import annotations

import logging
import math

import pytest

from swarmgame import Contribution, GameState, Group, Prompt, Question, QuestionRef, Rollout, Round
from swarmgame.rewards.function import FunctionRewards, FunctionRewardsConfig
from swarmgame.sandbox.client import Budget, Sandbox

REFERENCE = QuestionRef("text", "x", 0, 0)
QUESTION = Question(REFERENCE, "?", "1", {})
EACH = 0.15
"""Processor seconds of a slow answer."""


def state_of(**texts: list[str]) -> GameState:
    state = GameState.begin(Round(0, 1, 2, 1, "me", tuple(texts)), [QUESTION])
    for peer, answers in texts.items():
        group = Group(Prompt.from_question(QUESTION), tuple(Rollout(text) for text in answers))
        state = state.with_contribution(Contribution(peer, 0, 0, (group,), {QUESTION.id: REFERENCE}))
    return state


def rewards_by_peer(manager: FunctionRewards, state: GameState) -> dict[str, list[float]]:
    return {key.peer: list(values) for key, values in manager.rewards(state).items()}


@pytest.mark.parametrize("bounded", [True, False])
def test_slow_answers_of_one_peer_take_no_more_than_its_budget(bounded: bool, caplog: pytest.LogCaptureFixture) -> None:
    config = FunctionRewardsConfig(function="hostile_code:spend", author_seconds=2 * EACH)
    manager = FunctionRewards(config)
    slow = [f"{EACH} {'x' * (index + 1)}" for index in range(8)]
    fast = ["0 ab", "0 abc"]
    try:
        if not bounded:
            manager.budgets = None
        with caplog.at_level(logging.WARNING, "swarmgame.rewards"):
            found = rewards_by_peer(manager, state_of(me=["0 a"], liar=slow, zoe=fast))
        counters = manager.counters()
    finally:
        manager.close()
    assert (found["me"], found["zoe"]) == ([1.0], [2.0, 3.0])
    run = sum(score > 0 for score in found["liar"])
    if not bounded:
        assert run == len(slow)
        return
    assert 1 <= run <= 4
    assert sum(map(math.isnan, found["liar"])) == len(slow) - run
    assert counters["answers_beyond_budget"] == counters["sandbox_beyond_budget"] == len(slow) - run
    (record,) = caplog.records
    assert f"{len(slow) - run} of {len(slow)} were not run and have no score" in record.getMessage()
    assert "authorSeconds" in record.getMessage()


def test_a_call_that_is_running_when_the_budget_ends_is_cut() -> None:
    box = Sandbox(deadline=60.0)
    budget = Budget(0.3)
    try:
        results = box.call_untrusted("hostile_code:spend", [[{}, "30 x"], [{}, "0 y"]], budget=budget)
    finally:
        box.close()
    assert results[0].breach == "beyond budget"
    assert -1.0 < budget.seconds <= 0.0


@pytest.mark.parametrize("text", ["9" * 400, "-" + "9" * 4_000, "9" * 100_000, str(10**16)])
def test_a_number_that_cannot_be_used_scores_0_and_is_counted(text: str) -> None:
    config = FunctionRewardsConfig(function="hostile_code:as_integer", max_answer_characters=200_000)
    manager = FunctionRewards(config)
    try:
        found = rewards_by_peer(manager, state_of(me=["5"], liar=[text, "7"]))
        counters = manager.counters()
    finally:
        manager.close()
    assert found == {"me": [5.0], "liar": [0.0, 7.0]}
    assert counters.get("rewards_not_finite", 0) + counters.get("sandbox_exception", 0) == 1
    assert all(math.isfinite(score) for scores in found.values() for score in scores)
