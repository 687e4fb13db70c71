"""A game author's function, in the sandbox unless it is trusted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from swarmgame import Contribution, GameState, Group, Prompt, Question, QuestionRef, Rollout, Round
from swarmgame.errors import InvalidManifest
from swarmgame.rewards.function import FunctionRewards, FunctionRewardsConfig

MODULE = """
import math
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
    manager = FunctionRewards(FunctionRewardsConfig(function="rewards_of_the_author:score", deadline_seconds=0.5))
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
