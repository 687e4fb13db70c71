"""The `exact` and `composite` rewards, and the author's own function when it is trusted."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from guides import GUIDES, blocks
from hypothesis import given
from hypothesis import strategies as st

from swarmgame import (
    ComponentContext,
    Contribution,
    GameState,
    Group,
    Prompt,
    Question,
    QuestionRef,
    RewardManager,
    Rewards,
    Rollout,
    Round,
)
from swarmgame.errors import InvalidManifest
from swarmgame.rewards.composite import CompositeRewards, CompositeRewardsConfig
from swarmgame.rewards.exact import ExactRewards, ExactRewardsConfig
from swarmgame.rewards.function import FunctionRewards, FunctionRewardsConfig
from swarmgame.rewards.numbers_in_text import last_number

ROUND = Round(number=0, seed=1, peer_seed=2, stages=1, peer="a", members=("a",))


def state_of(answer: str, *rollouts: Rollout) -> GameState:
    question = Question(QuestionRef("text", "x", 0, 0), "?", answer)
    contribution = Contribution(
        "a", 0, 0, (Group(Prompt.from_question(question), rollouts),), {question.id: question.reference}
    )
    return GameState.begin(ROUND, [question]).with_contribution(contribution)


def rewards_of(manager: RewardManager, answer: str, *texts: str) -> list[float]:
    return list(next(iter(manager.rewards(state_of(answer, *map(Rollout, texts))).values())))


def exact(**config: Any) -> ExactRewards:
    return ExactRewards(ExactRewardsConfig.model_validate(config), ComponentContext())


def test_texts_must_be_equal_except_for_surrounding_space() -> None:
    assert rewards_of(exact(), "Paris", "Paris", " Paris\n", "paris", "in Paris", "") == [1, 1, 0, 0, 0]
    assert rewards_of(exact(ignoreCase=True), "Paris", "PARIS") == [1]


def test_numbers_are_the_last_of_the_text_and_never_computed() -> None:
    given = ("1234.5", "it is 1,234.50", "12, so 1.2345e3", "1234.4", "1234.5 - 1", "none", "9**9**9")
    assert rewards_of(exact(match="number"), "1234.5", *given) == [1, 1, 1, 0, 0, 0, 0]
    assert rewards_of(exact(match="number"), "0.5", "1/2", "2 / 4", "1/0") == [1, 1, 0]
    assert rewards_of(exact(match="number", tolerance=0.1), "100", "95", "80") == [1, 0]


def test_choices_are_single_letters() -> None:
    assert rewards_of(exact(match="choice"), "B", "b", "(B)", "A or B", "B, no: C", "Because", "") == [1, 1, 1, 0, 0, 0]


def test_right_and_wrong_may_have_other_values() -> None:
    manager = exact(right=2.0, wrong=-1.0)
    assert rewards_of(manager, "x", "x", "y") == [2, -1]
    assert manager.full_reward == 2


@given(st.text(max_size=200))
def test_no_text_makes_the_search_for_a_number_raise(text: str) -> None:
    number = last_number(text)
    assert number is None or isinstance(number, Fraction)


@given(st.floats(allow_nan=False, allow_infinity=False), st.text(alphabet="ab .", max_size=10))
def test_a_number_is_found_at_the_end_of_a_text(number: float, text: str) -> None:
    found = last_number(f"{text} {number!r}")
    assert found is not None
    assert found == Fraction(repr(number))


class Half(RewardManager):
    """A half for every text; an empty one is not scored."""

    full_reward = 0.5

    def rewards(self, state: GameState) -> Rewards:
        return {key: [0.5 if rollout.text else math.nan for rollout in group.rollouts] for key, group in state.groups()}


def composite(*rewards: dict[str, Any]) -> CompositeRewards:
    return CompositeRewards(CompositeRewardsConfig.model_validate({"rewards": rewards}), ComponentContext())


def test_a_composite_is_a_weighted_sum_and_what_is_unscored_stays_so() -> None:
    blind = {"use": "swarmgame.rewards.exact:ExactRewards", "with": {"ignoreCase": True}, "weight": 0.5}
    manager = composite({"use": f"{__name__}:Half", "weight": 2.0}, blind)
    scores = rewards_of(manager, "x", "X", "y", "")
    assert scores[:2] == [1.5, 1.0]
    assert math.isnan(scores[2])
    assert manager.full_reward == 1.5


@pytest.mark.parametrize(
    ("entry", "path"),
    [
        ({"use": "nowhere:Class"}, "rewards[0].use"),
        ({"use": "exactt"}, "rewards[0].use"),
        ({"use": "json:JSONDecoder"}, "rewards[0].use"),
        ({"use": "swarmgame.rewards.exact:ExactRewards", "with": {"tolerence": 1}}, "rewards[0].with.tolerence"),
        ({"use": "swarmgame.rewards.exact:ExactRewards", "with": {"tolerance": math.inf}}, "rewards[0].with.tolerance"),
    ],
)
def test_the_error_of_a_composite_names_the_wrong_member(entry: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidManifest) as caught:
        composite(entry)
    assert caught.value.problems[0].path == f"spec.game.rewards.with.{path}"


def length(question: dict[str, Any], text: str) -> float:
    return len(text) / len(question["answer"]) if text != "nan" else math.nan


def test_a_trusted_function_runs_here_and_its_failures_are_counted() -> None:
    import sys

    sys.modules.setdefault("reward_by_length", sys.modules[__name__])
    manager = FunctionRewards(FunctionRewardsConfig(function="reward_by_length:length", trusted=True))
    assert rewards_of(manager, "four", "ab", "four", "nan") == [0.5, 1.0, 0.0]
    assert rewards_of(manager, "", "another") == [0.0]
    assert manager.counters() == {"rewards_not_finite": 1, "reward_exceptions": 1}


@pytest.mark.parametrize("function", ["no_such_module:f", "json:no_such_function", "json:__doc__"])
def test_a_function_that_cannot_be_had_is_refused(function: str) -> None:
    with pytest.raises(InvalidManifest) as caught:
        FunctionRewards(FunctionRewardsConfig(function=function, trusted=True))
    assert caught.value.problems[0].path == "spec.game.rewards.with.function"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("def f(:\n", "SyntaxError"),
        ("import os\nunknown\n", "NameError"),
        ("open('no such file')\n", "FileNotFoundError"),
    ],
)
def test_a_trusted_functions_module_that_fails_is_named_with_its_line(
    code: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"fails_with_{kind}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InvalidManifest, match=rf"{kind}: .* at .*fails_with_{kind}\.py:\d") as caught:
        FunctionRewards(FunctionRewardsConfig(function=f"fails_with_{kind}:f", trusted=True))
    assert caught.value.problems[0].path == "spec.game.rewards.with.function"


def test_the_reward_manager_of_the_guide_scores_each_rollout() -> None:
    names: dict[str, Any] = {}
    (code,) = (block for block in blocks(GUIDES / "write-a-game.md", "python") if "RewardManager" in block)
    exec(code, names)  # noqa: S102  # the guide is ours
    manager = names["Right"](None, ComponentContext())
    assert rewards_of(manager, "4", "4", "5") == [1.0, 0.0]
