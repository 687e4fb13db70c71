"""What every built-in reward makes of empty, long, strange and unreadable answers."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy
import pytest

from swarmgame import (
    ComponentContext,
    Contribution,
    GameState,
    Group,
    Prompt,
    Question,
    QuestionRef,
    RewardManager,
    Rollout,
    Round,
)
from swarmgame.data.chess import ChessConfig, ChessData
from swarmgame.errors import BadGame, InvalidManifest
from swarmgame.rewards import function as function_module
from swarmgame.rewards.chess import ChessRewards
from swarmgame.rewards.choices import ANY, chosen_letter, listed_letters
from swarmgame.rewards.composite import CompositeRewards, CompositeRewardsConfig
from swarmgame.rewards.exact import ExactRewards, ExactRewardsConfig
from swarmgame.rewards.function import FunctionRewards, FunctionRewardsConfig
from swarmgame.rewards.numbers_in_text import boxed, known_number, last_number
from swarmgame.rewards.reasoning_gym import ReasoningGymRewards, ReasoningGymRewardsConfig
from swarmgame.rewards.scoring import answer_of
from swarmgame.sandbox.requests import batches
from swarmgame.user_code import as_number, kind_of

ROUND = Round(number=0, seed=1, peer_seed=2, stages=1, peer="a", members=("a",))
EOS = 2


def question(answer: str, text: str = "1+1=", **metadata: Any) -> Question:
    return Question(QuestionRef("text", "x", 0, 0), text, answer, metadata)


def state_of(asked: Question, *rollouts: Rollout, prompt: Prompt | None = None) -> GameState:
    group = Group(prompt or Prompt.from_question(asked), rollouts)
    return GameState.begin(ROUND, [asked]).with_contribution(
        Contribution("a", 0, 0, (group,), {asked.id: asked.reference})
    )


def rewards_of(manager: RewardManager, state: GameState) -> list[float]:
    return list(next(iter(manager.rewards(state).values())))


def exact(**config: Any) -> ExactRewards:
    return ExactRewards(ExactRewardsConfig.model_validate(config), ComponentContext())


def test_an_empty_answer_is_the_empty_text_and_never_the_id_of_eos() -> None:
    ended = Rollout("", (EOS,), (-0.1,))
    for match in ("text", "number"):
        assert rewards_of(exact(match=match), state_of(question(str(EOS)), ended, Rollout("2"))) == [0.0, 1.0]
    seen: list[str] = []
    rewards = FunctionRewards(FunctionRewardsConfig(function="builtins:len", trusted=True))
    rewards._function = lambda asked, text: seen.append(text) or 0.5  # type: ignore[func-returns-value]
    assert rewards_of(rewards, state_of(question(str(EOS)), ended)) == [0.5]
    assert seen == [""]


def test_actions_are_the_answer_only_in_a_game_without_text() -> None:
    state = state_of(question("7", ""), Rollout(token_ids=(7,), logprobs=(0.0,)), prompt=Prompt(question("7").id))
    assert rewards_of(exact(), state) == [1.0]
    written = state_of(question("7", ""), Rollout("7", (7,), (0.0,)), prompt=Prompt(question("7").id))
    assert rewards_of(exact(), written) == [1.0]


def test_the_tagged_answer_is_the_last_closed_one() -> None:
    assert answer_of("<answer>1</answer> no <answer> 2 </answer>", "tagged") == "2"
    assert answer_of("<answer>3</answer> and <answer>unfinished", "tagged") == "3"
    assert answer_of("<answer>1 <answer>2</answer> 3</answer>", "tagged") == "2"
    assert answer_of("<answer></answer>", "tagged") == ""
    for text in ("", "4", "<answer>4", "4</answer>", "</answer><answer>"):
        assert answer_of(text, "tagged") is None
    assert rewards_of(exact(answerFormat="tagged"), state_of(question("4"), Rollout("4"))) == [0.0]


def test_only_a_known_format_of_the_data_counts() -> None:
    for named, expected in (("tagged", 0.0), ("plain", 1.0), (7, 1.0), ("essay", 1.0)):
        assert rewards_of(exact(), state_of(question("4", answer_format=named), Rollout("4"))) == [expected]


def test_the_format_reward_is_for_tagged_answers_only() -> None:
    rewards = ReasoningGymRewards(ReasoningGymRewardsConfig(format_reward=0.5))
    try:
        assert rewards.finish(0.0, Rollout("a <answer>b</answer>"), "b") == 0.5
        assert rewards.finish(0.0, Rollout("ends with </answer>"), "ends with </answer>") == 0.0
        assert rewards.finish(0.0, Rollout("no tags"), None) == 0.0
    finally:
        rewards.close()


@pytest.mark.parametrize(
    ("options", "format_of_data"),
    [({}, "tagged"), ({"threshold": 0.99}, "tagged"), ({"answer_format": "tagged"}, None), ({}, "plain")],
)
def test_the_format_reward_makes_no_part_of_a_score_a_pass(
    options: dict[str, Any], format_of_data: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {"half": 0.5, "right": 1.0}
    monkeypatch.setattr(ReasoningGymRewards, "score", lambda _, answers: [scores[answer] for _, answer in answers])
    texts = scores if format_of_data == "plain" else [f"<answer>{answer}</answer>" for answer in scores]
    rewards = ReasoningGymRewards(ReasoningGymRewardsConfig(format_reward=0.5, **options))
    composite = CompositeRewards(
        CompositeRewardsConfig.model_validate(
            {"rewards": [{"use": "reasoning-gym", "with": rewards.config.model_dump(by_alias=True)}]}
        ),
        ComponentContext(),
    )
    state = state_of(question("4", answer_format=format_of_data), *map(Rollout, texts))
    try:
        for manager in (rewards, composite):
            found = rewards_of(manager, state)
            assert [reward >= manager.full_reward for reward in found] == [False, True]
    finally:
        rewards.close()
        composite.close()


# A search that takes time proportional to the square of the length would take hours over these.
HARD = [
    part * (50_000 // len(part))
    for part in ("1,", "1 ", "1/", "1.", "1e", "1^", "^", "{", "\\", "\\boxed{", "\\frac{1}", "½", "x1", "{,}", "A ")
] + [f"5{' ' * 50_000}x", "9" * 50_000, "answer " * 7_000, "<answer>" * 6_000, "<answer>" + "</answer" * 6_000]


@pytest.mark.parametrize("text", HARD, ids=lambda text: repr(text[:8]))
def test_every_reader_takes_time_proportional_to_the_length_of_the_answer(text: str) -> None:
    last_number(text)
    known_number(text)
    boxed(text)
    chosen_letter(text)
    listed_letters(text)
    answer_of(text, "tagged")


def test_a_long_answer_scores_nothing_and_is_counted() -> None:
    rewards = exact(match="number", maxAnswerCharacters=5)
    assert rewards_of(rewards, state_of(question("1"), Rollout("000001"), Rollout("1"))) == [0.0, 1.0]
    assert rewards.counters() == {"answers_too_long": 1}


def test_a_tolerance_of_the_manifest_counts_for_all_numbers() -> None:
    state = state_of(question("1000000"), *map(Rollout, ("1000001", "1000000.9", "1000100")))
    assert rewards_of(exact(match="number"), state) == [0, 0, 0]
    assert rewards_of(exact(match="number", tolerance=2e-6), state) == [1, 1, 0]
    assert rewards_of(exact(match="number", tolerance=0), state_of(question("0.5"), Rollout("1/2"))) == [1]


def test_both_forms_of_an_accented_letter_are_one_text() -> None:
    assert rewards_of(exact(), state_of(question("caf\u00e9"), Rollout("cafe\u0301"))) == [1.0]
    assert rewards_of(exact(ignoreCase=True), state_of(question("STRASSE"), Rollout("straße"))) == [1.0]


def test_choices_are_the_letters_of_the_manifest_or_of_the_question() -> None:
    assert listed_letters("Which?\nA) Paris\nB) Rome\n(C) Oslo") == frozenset("ABC")
    assert listed_letters("Which? a. Paris b. Rome") == frozenset("AB")
    for unlisted in ("Which city?", "Section A) only", "B) Rome C) Oslo"):
        assert listed_letters(unlisted) == ANY
    listing = question("B", "A) Paris\nB) Rome")
    assert rewards_of(exact(match="choice"), state_of(listing, Rollout("B, not D."))) == [1.0]
    assert rewards_of(exact(match="choice"), state_of(question("B", "Which?"), Rollout("B, not D."))) == [0.0]
    assert rewards_of(
        exact(match="choice", choices="abc"), state_of(question("B", "Which?"), Rollout("B, not D."))
    ) == [1]


@pytest.mark.parametrize(
    ("match", "known"),
    [("text", ""), ("text", " \n"), ("number", ""), ("number", "Paris"), ("number", "3,14"), ("number", "2024-10-05"),
     ("number", "10-5"), ("number", "2, 3, 5"), ("number", "1.234,56"), ("number", "1,23,456"), ("number", "1/0"),
     ("choice", "Paris"), ("choice", "")],
)  # fmt: skip
def test_a_known_answer_that_cannot_be_read_gives_no_score(
    match: str, known: str, caplog: pytest.LogCaptureFixture
) -> None:
    rewards = exact(match=match)
    state = state_of(question(known), Rollout(known), Rollout(""), Rollout("5"))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert all(map(math.isnan, rewards_of(rewards, state)))
    assert rewards.counters() == {"questions_without_readable_answer": 1}
    assert len(caplog.records) == 1
    assert "1+1=" in caplog.text
    with pytest.raises(InvalidManifest):
        ExactRewards.check_with(rewards.config, ComponentContext(), question(known))


def test_known_answers_may_have_units_words_and_a_calculation() -> None:
    for text, value in (("1,234", 1234), ("$3.50", Fraction("3.5")), ("72.", 72), ("48+24=72", 72), ("5 m^2", 5),
                        ("The sum of 2 and 3 is 5", 5), ("-5", -5), ("1 1/2", Fraction(3, 2))):  # fmt: skip
        assert known_number(text) == value
        ExactRewards.check_with(ExactRewardsConfig(match="number"), ComponentContext(), question(text))


def test_a_composite_of_a_question_without_a_score_has_none() -> None:
    use = {"use": "swarmgame.rewards.exact:ExactRewards"}
    config = {"rewards": [{**use, "with": {"match": "number"}}, {**use, "weight": 0.5}]}
    rewards = CompositeRewards(CompositeRewardsConfig.model_validate(config), ComponentContext())
    assert math.isnan(rewards_of(rewards, state_of(question("Paris"), Rollout("Paris")))[0])
    assert rewards_of(rewards, state_of(question("5"), Rollout("5"), Rollout("5 km"))) == [1.5, 1.0]
    for weight in (math.nan, math.inf):
        with pytest.raises(ValueError, match="finite"):
            CompositeRewardsConfig.model_validate({"rewards": [{**use, "weight": weight}]})


def test_a_wrong_answer_must_score_less_than_a_right_one() -> None:
    for right, wrong in ((1.0, 1.0), (0.0, 1.0), (math.nan, 0.0)):
        with pytest.raises(ValueError, match=r"wrong must be less|finite"):
            ExactRewardsConfig(right=right, wrong=wrong)


@pytest.mark.parametrize(
    "metadata", [{}, {"fen": "?", "task": "mate-in-one"}, {"fen": "8/8/8/8/8/8/8/8 w - - 0 1"}, {"fen": 7, "task": "x"}]
)
def test_chess_rewards_refuse_questions_of_other_data(metadata: Mapping[str, Any]) -> None:
    rewards = ChessRewards()
    state = state_of(question("e2e4", **metadata), Rollout("e2e4"))
    assert rewards_of(rewards, state) == [0.0]
    assert rewards.counters() == {"items_of_another_source": 1}
    with pytest.raises(BadGame, match="none of 1 answers"):
        rewards.round_scored(state)
    with pytest.raises(InvalidManifest):
        ChessRewards.check_with(rewards.config, ComponentContext(), question("e2e4", **metadata))
    ChessRewards.check_with(rewards.config, ComponentContext(), ChessData(ChessConfig()).round_data(ROUND)[0])


def test_a_column_named_environment_makes_no_question_of_reasoning_gym() -> None:
    with pytest.raises(InvalidManifest):
        ReasoningGymRewards.check_with(
            ReasoningGymRewardsConfig(), ComponentContext(), question("4", environment="sums", config="x")
        )


class Broken:
    """A value whose own methods raise."""

    shape = ()

    def item(self) -> float:
        raise RuntimeError("broken")

    def __repr__(self) -> str:
        raise RuntimeError("broken")


@pytest.mark.parametrize(
    ("value", "number"),
    [(True, 1.0), (numpy.bool_(True), 1.0), (numpy.float32(0.5), 0.5), (numpy.int64(3), 3.0), (Fraction(1, 2), 0.5),
     (Decimal("0.25"), 0.25), (numpy.array(2.0), 2.0), (None, None), ("1", None), ([1.0], None), (1j, None),
     (numpy.array([1.0]), None), (Decimal("sNaN"), None), (Broken(), None), (10**400, math.inf)],
)  # fmt: skip
def test_single_numbers_of_any_kind_count_and_nothing_raises(value: object, number: float | None) -> None:
    assert as_number(value) == number
    assert kind_of(value)


def test_a_trusted_function_may_return_anything_without_ending_the_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    values: list[object] = [None, [1.0], "1", Broken(), Decimal("sNaN"), 10**400, math.nan, Fraction(1, 4)]
    monkeypatch.setattr(function_module, "_load", lambda name: lambda asked, text: values[int(text)])
    rewards = FunctionRewards(FunctionRewardsConfig(function="any:thing", trusted=True))
    rollouts = [Rollout(str(place)) for place in range(len(values))]
    assert rewards_of(rewards, state_of(question("0"), *rollouts)) == [0, 0, 0, 0, 0, 0, 0, 0.25]
    assert sum(failure.count for failure in rewards.failures()) == 7


def test_requests_to_the_sandbox_are_split_by_number_and_size() -> None:
    sizes: Callable[[list[list[str]]], list[int]] = lambda calls: [len(batch) for batch in batches(calls)]  # noqa: E731
    assert sizes([]) == []
    assert sizes([["a"]] * 1025) == [512, 512, 1]
    assert sizes([["a" * 5 * 2**20]] * 3) == [1, 1, 1]
    calls = [["a" * (place % 7) * 2**18] for place in range(40)]
    assert [call for batch in batches(calls) for call in batch] == calls
