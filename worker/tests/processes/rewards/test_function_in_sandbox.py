"""A game author's function, in the sandbox unless it is trusted."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarmgame import ComponentContext, Contribution, GameState, Group, Prompt, Question, QuestionRef, Rollout, Round
from swarmgame.errors import BadGame, InvalidManifest
from swarmgame.rewards.function import FunctionRewards, FunctionRewardsConfig

MODULE = """
import math
import numpy
from helper_of_the_author import DOUBLE

def score(item, text):
    if text.startswith("write"):
        open(item["metadata"]["target"], "w").write("x")
    if text == "loop":
        while True:
            pass
    if text == "nan":
        return math.nan
    if text == "text":
        return "good"
    return DOUBLE * float(text == item["answer"])

def fails(item, text):
    return numbers_of(text)["total"]

def numbers_of(text):
    return {}

def reads(item, text):
    return len(open(item["metadata"]["target"]).read())

def loops(item, text):
    while True:
        pass

def scalar(item, text):
    return numpy.float32(text == item["answer"])

def array(item, text):
    return numpy.zeros(3)

def only_one_argument(item):
    return 1.0
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "author").mkdir()
    (tmp_path / "author" / "rewards_of_the_author.py").write_text(MODULE)
    (tmp_path / "author" / "helper_of_the_author.py").write_text("DOUBLE = 2.0\n")
    monkeypatch.syspath_prepend(tmp_path / "author")
    return tmp_path


@pytest.fixture
def rewards(folder: Path) -> Iterator[FunctionRewards]:
    manager = FunctionRewards(FunctionRewardsConfig(function="rewards_of_the_author:score", deadline_seconds=2.0))
    yield manager
    manager.close()


def state_of(folder: Path, *texts: str) -> GameState:
    question = Question(
        QuestionRef("text", "x", 0, 0), "?", "4", {"target": str(folder / "breach"), "strange": object()}
    )
    group = Group(Prompt.from_question(question), tuple(map(Rollout, texts)))
    round = Round(number=0, seed=1, peer_seed=2, stages=1, peer="a", members=("a",))
    return GameState.begin(round, [question]).with_contribution(
        Contribution("a", 0, 0, (group,), {question.id: question.reference})
    )


def test_it_scores_cannot_write_and_its_failures_cost_only_themselves(rewards: FunctionRewards, folder: Path) -> None:
    scores = rewards.rewards(state_of(folder, "4", "5", "write", "nan", "text", "loop", "4"))
    assert list(scores.values()) == [[2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0]]
    assert not (folder / "breach").exists()
    assert rewards.counters() == {"sandbox_exception": 1, "sandbox_timeout": 1, "rewards_not_finite": 2}


def config_of(function: str) -> FunctionRewardsConfig:
    """Return a configuration with a short deadline for the function that does not end, and a long one for others, which
    have to end also on a busy machine.
    """
    seconds = 0.3 if function == "loops" else 20.0
    return FunctionRewardsConfig(function=f"rewards_of_the_author:{function}", deadline_seconds=seconds)


def failing(function: str, folder: Path, *texts: str) -> BadGame:
    """Score answers with a function of the author, and return the error that ends the round."""
    manager = FunctionRewards(config_of(function))
    state = state_of(folder, *texts)
    try:
        (scores,) = manager.rewards(state).values()
        assert scores[:3] == [0.0] * len(texts[:3])
        assert all(map(math.isnan, scores[3:]))  # not made after three breaches: neither right nor wrong
        with pytest.raises(BadGame) as caught:
            manager.round_scored(state)
    finally:
        manager.close()
    return caught.value


def line_of(text: str) -> int:
    """Return the line of the author's file that begins so."""
    return next(number for number, line in enumerate(MODULE.splitlines(), 1) if line.strip().startswith(text))


@pytest.mark.parametrize(
    ("function", "error", "line", "cure"),
    [
        ("fails", "KeyError: 'total'", "return numbers_of(text)", "Correct the function"),
        ("reads", "PermissionError: [Errno 13] Permission denied: ", "return len(open(", "The sandbox has no files"),
        ("loops", "timeout: no answer within 0.3 seconds of processor time", "def loops", "deadlineSeconds"),
        ("array", "TypeError: returned ndarray of shape (3,); expected a number, ", "def array", ""),
        ("only_one_argument", "TypeError: only_one_argument() takes 1 positional argument but 2", "def only_one", ""),
    ],
)
def test_a_round_in_which_every_call_failed_names_the_authors_line_and_the_cure(
    folder: Path, function: str, error: str, line: str, cure: str
) -> None:
    (folder / "breach").write_text("x")
    message = str(failing(function, folder, "4", "5"))
    assert "all 2 calls in round 0 failed" in message
    assert error in message
    assert f"at {folder}/author/rewards_of_the_author.py:{line_of(line)}\n" in message
    assert cure in message


def test_the_traceback_has_the_lines_of_a_file_that_the_sandbox_cannot_read(folder: Path) -> None:
    assert 'return numbers_of(text)["total"]' in str(failing("fails", folder, "4"))


def test_calls_that_were_not_made_after_three_time_outs_are_told(folder: Path) -> None:
    message = str(failing("loops", folder, *map(str, range(6))))
    assert "all 3 calls in round 0 failed" in message
    assert "(3 more were not made after so many failures)" in message


def test_a_number_of_numpy_is_a_number(folder: Path) -> None:
    manager = FunctionRewards(config_of("scalar"))
    assert list(manager.rewards(state_of(folder, "4", "5")).values()) == [[1.0, 0.0]]
    assert manager.failures() == ()
    manager.close()


def test_the_first_error_of_each_kind_is_kept_with_its_count(rewards: FunctionRewards, folder: Path) -> None:
    rewards.rewards(state_of(folder, "4", "nan", "text", "write", "write it"))
    rewards.round_scored(state_of(folder, "4"))
    assert [(failure.error.kind, failure.count) for failure in rewards.failures()] == [
        ("not a number", 2),
        ("PermissionError", 2),
    ]


def test_a_trial_finds_a_function_that_fails_on_a_right_answer(folder: Path) -> None:
    question = next(iter(state_of(folder).questions.values()))
    for function, found in (
        ("fails", "KeyError: 'total'"),
        ("loops", "timeout"),
        ("missing", "no attribute 'missing'"),
    ):
        with pytest.raises((BadGame, InvalidManifest), match=found):
            FunctionRewards.check_with(config_of(function), ComponentContext(), question)
    FunctionRewards.check_with(config_of("score"), ComponentContext(), question)


def test_it_survives_the_death_of_the_sandbox(rewards: FunctionRewards, folder: Path) -> None:
    import os
    import signal

    assert rewards._sandbox is not None
    os.kill(rewards._sandbox.process_id, signal.SIGKILL)
    assert list(rewards.rewards(state_of(folder, "4")).values()) == [[2.0]]


def test_a_function_that_the_sandbox_cannot_import_is_refused_with_its_path(folder: Path) -> None:
    with pytest.raises(InvalidManifest) as caught:
        FunctionRewards(FunctionRewardsConfig(function="rewards_of_the_author:missing"))
    assert caught.value.problems[0].path == "spec.game.rewards.with.function"
