"""Failed calls of a reward function: counted by kind, shown with the author's line, and the end of a hopeless run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

import pytest

from swarmgame import ComponentContext, Contribution, GameState, Group, Prompt, Question, QuestionRef, Rollout, Round
from swarmgame.errors import BadGame, InvalidManifest
from swarmgame.rewards.composite import CompositeRewards, CompositeRewardsConfig
from swarmgame.rewards.failures import DEFAULT_CURE, MAX_KINDS, FailureLog
from swarmgame.rewards.function import FunctionRewards, FunctionRewardsConfig
from swarmgame.rewards.reasoning_gym import ReasoningGymRewards, ReasoningGymRewardsConfig
from swarmgame.user_code import CodeError

QUESTION = Question(QuestionRef("text", "x", 0, 0), "?", "4")
BUG = CodeError("KeyError", "'x'", "/game/rewards.py:3", "the frames")
SLOW = CodeError("timeout", "no answer within 2 seconds", "/game/rewards.py:1")


def state_of(*texts: str, number: int = 0) -> GameState:
    group = Group(Prompt.from_question(QUESTION), tuple(map(Rollout, texts)))
    round = Round(number=number, seed=1, peer_seed=2, stages=1, peer="a", members=("a",))
    return GameState.begin(round, [QUESTION]).with_contribution(
        Contribution("a", number, 0, (group,), {QUESTION.id: QUESTION.reference})
    )


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., object]], FunctionRewards]:
    def make(function: Callable[..., object]) -> FunctionRewards:
        module = ModuleType("author_of_this_test")
        module.score = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "author_of_this_test", module)
        return FunctionRewards(FunctionRewardsConfig(function="author_of_this_test:score", trusted=True))

    return make


def test_a_round_in_which_every_call_failed_ends_the_run_with_the_error_and_what_to_do() -> None:
    log = FailureLog("m:score")
    log.add_failure(BUG)
    log.add_failure(BUG)
    with pytest.raises(BadGame) as caught:
        log.end_round(3)
    assert str(caught.value).splitlines() == [
        "the reward function m:score cannot be used: all 2 calls in round 3 failed, so nothing can be learned",
        "KeyError: 'x' at /game/rewards.py:3",
        "the frames",
        f"{DEFAULT_CURE}; then run the same command again",
    ]


def test_a_single_success_keeps_the_run_alive_and_every_kind_is_counted() -> None:
    log = FailureLog("m:score")
    log.add_success()
    for error in (BUG, BUG, SLOW):
        log.add_failure(error, "timeout" if error is SLOW else "exception")
    log.end_round(0)
    assert [(failure.error, failure.count) for failure in log.failures] == [(BUG, 2), (SLOW, 1)]
    assert "deadlineSeconds" in log.failures[1].cure


def test_a_round_without_calls_ends_nothing() -> None:
    FailureLog("m:score").end_round(0)


def test_a_function_that_has_worked_may_have_one_round_of_answers_that_take_too_long() -> None:
    log = FailureLog("m:score")
    log.add_success()
    log.end_round(0)
    for _ in range(2):
        log.add_failure(SLOW, "timeout")
        log.add_not_run()
        log.end_round(1)
        log.add_success()
        log.end_round(2)
    log.add_failure(SLOW, "timeout")
    log.add_not_run()
    log.end_round(3)
    log.add_failure(SLOW, "timeout")
    log.add_not_run()
    with pytest.raises(BadGame, match=r"the only call in round 4 failed.*\(1 more were not made"):
        log.end_round(4)


def test_a_function_that_never_worked_has_no_second_round() -> None:
    log = FailureLog("m:score")
    log.add_failure(SLOW, "timeout")
    log.add_not_run()
    with pytest.raises(BadGame):
        log.end_round(0)


def test_kinds_that_depend_on_the_answer_do_not_fill_the_memory() -> None:
    log = FailureLog("m:score")
    for line in range(10 * MAX_KINDS):
        log.add_failure(CodeError("ValueError", "", f"<generated>:{line}"))
    assert len(log.failures) == MAX_KINDS + 1
    assert sum(failure.count for failure in log.failures) == 10 * MAX_KINDS


def test_a_trusted_function_that_fails_on_every_answer_ends_the_run(
    trusted: Callable[[Callable[..., object]], FunctionRewards],
) -> None:
    def score(question: object, text: str) -> float:
        raise KeyError("my bug")

    rewards = trusted(score)
    assert list(rewards.rewards(state_of("4", "5")).values()) == [[0.0, 0.0]]
    with pytest.raises(BadGame, match=r"KeyError: 'my bug' at .*test_failed_calls.py:\d+"):
        rewards.round_scored(state_of("4", "5"))
    assert rewards.counters() == {"reward_exceptions": 2}


@pytest.mark.parametrize("value", [None, "1.0", float("nan"), float("inf"), [1.0]])
def test_a_trusted_function_that_returns_no_finite_number_ends_the_run(
    trusted: Callable[[Callable[..., object]], FunctionRewards], value: object
) -> None:
    rewards = trusted(lambda question, text: value)
    assert list(rewards.rewards(state_of("4")).values()) == [[0.0]]
    with pytest.raises(BadGame, match="expected a finite number"):
        rewards.round_scored(state_of("4"))


def test_sys_exit_in_a_trusted_function_is_a_failed_call(
    trusted: Callable[[Callable[..., object]], FunctionRewards],
) -> None:
    rewards = trusted(lambda question, text: sys.exit(3) if text == "5" else 1.0)
    assert list(rewards.rewards(state_of("4", "5")).values()) == [[1.0, 0.0]]
    rewards.round_scored(state_of("4", "5"))
    assert [failure.error.kind for failure in rewards.failures()] == ["SystemExit"]


def test_answers_of_other_peers_alone_do_not_end_a_run(
    trusted: Callable[[Callable[..., object]], FunctionRewards],
) -> None:
    rewards = trusted(lambda question, text: 1.0 / (text != "5"))
    rewards.rewards(state_of("4"))
    rewards.round_scored(state_of("4"))
    again = state_of("4", number=1)
    hostile = Group(Prompt.from_question(QUESTION), (Rollout("5"),))
    both = again.with_contribution(Contribution("b", 1, 0, (hostile,), {QUESTION.id: QUESTION.reference}))
    assert [list(values) for values in rewards.rewards(both).values()] == [[1.0], [0.0]]
    rewards.round_scored(both)
    log = FailureLog("m:score")
    log.add_failure(BUG, own=False)
    log.end_round(0)
    assert [failure.count for failure in rewards.failures()] == [1]


def test_answers_that_were_scored_before_keep_the_run_alive_and_those_that_failed_do_not(
    trusted: Callable[[Callable[..., object]], FunctionRewards],
) -> None:
    rewards = trusted(lambda question, text: 0.0 if text == "4" else {}["x"])
    rewards.rewards(state_of("4", "5"))
    rewards.round_scored(state_of("4", "5"))
    rewards.rewards(state_of("4", "6", number=1))
    rewards.round_scored(state_of("4", "6", number=1))
    rewards.rewards(state_of("5", "7", number=2))
    with pytest.raises(BadGame, match="the only call in round 2 failed"):
        rewards.round_scored(state_of("5", "7", number=2))


def test_a_round_of_cached_answers_makes_no_call_and_ends_nothing(
    trusted: Callable[[Callable[..., object]], FunctionRewards],
) -> None:
    rewards = trusted(lambda question, text: 1.0 / (text != "5"))
    rewards.rewards(state_of("4", "5"))
    rewards.round_scored(state_of("4", "5"))
    rewards.rewards(state_of("5", number=1))
    rewards.round_scored(state_of("5", number=1))


def test_a_sum_of_rewards_ends_the_run_when_one_of_its_functions_always_fails(
    trusted: Callable[[Callable[..., object]], FunctionRewards],
) -> None:
    trusted(lambda question, text: {}["x"])
    rewards = CompositeRewards(
        CompositeRewardsConfig.model_validate(
            {
                "rewards": [
                    {"use": "exact"},
                    {"use": "function", "with": {"function": "author_of_this_test:score", "trusted": True}},
                ]
            }
        )
    )
    rewards.rewards(state_of("4"))
    assert [failure.error.kind for failure in rewards.failures()] == ["KeyError"]
    with pytest.raises(BadGame, match="author_of_this_test:score"):
        rewards.round_scored(state_of("4"))


def test_a_trial_with_the_right_answer_finds_a_function_that_fails_also_inside_a_sum(
    trusted: Callable[[Callable[..., object]], FunctionRewards],
) -> None:
    trusted(lambda question: 1.0)
    config = {"function": "author_of_this_test:score", "trusted": True}
    with pytest.raises(BadGame, match=r"with the right answer of a question \('4'\): TypeError"):
        FunctionRewards.check_with(FunctionRewardsConfig.model_validate(config), ComponentContext(), QUESTION)
    composite = CompositeRewardsConfig.model_validate({"rewards": [{"use": "function", "with": config}]})
    with pytest.raises(BadGame, match="TypeError"):
        CompositeRewards.check_with(composite, ComponentContext(), QUESTION)


def test_a_trial_does_not_blame_a_function_for_an_answer_that_may_be_wrong(
    trusted: Callable[[Callable[..., object]], FunctionRewards],
) -> None:
    trusted(lambda question, text: float(text))
    config = FunctionRewardsConfig(function="author_of_this_test:score", trusted=True)
    FunctionRewards.check_with(config, ComponentContext(), Question(QUESTION.reference, "?", ""))


def test_rewards_of_reasoning_gym_are_refused_for_other_data() -> None:
    with pytest.raises(InvalidManifest, match=r"spec\.game\.rewards\.use is \"reasoning-gym\"; expected rewards for"):
        ReasoningGymRewards.check_with(ReasoningGymRewardsConfig(), ComponentContext(), QUESTION)
