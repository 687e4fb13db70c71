"""Failures that once ended as a finished game: each ends with the right code or with a warning that names the cause."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from running import run_to_end

from swarmgame.errors import ExitCode
from swarmgame.observability.run_directory import RunDirectory

pytestmark = pytest.mark.timeout(600)
GAME = """
apiVersion: swarmgame.dev/v1alpha1
kind: SwarmGame
metadata: {name: small}
spec:
  peers: {replicas: 1}
  game:
    maxRounds: 4
    data: {use: text, with: {source: FOLDER/questions.jsonl, questionsPerRound: 4}}
    rewards: {use: function, with: {function: "silent_author:score"}}
    trainer: {use: policy-gradient, with: {actions: 4, options: {inputs: 1, hidden: 4}}}
"""
AUTHOR = """
from swarmgame import RewardManager

def score(question, text):
    if text.isdigit():
        raise KeyError("my bug")
    return 1.0

def sometimes(question, text):
    if text == "3":
        raise ValueError("three is refused")
    return float(text == "1")

def zero(question, text):
    return 0.0

class Short(RewardManager):
    def rewards(self, state):
        return {key: [1.0] * (len(group.rollouts) - 1) for key, group in state.groups()}
"""


@pytest.fixture
def game(tmp_path: Path) -> Path:
    # The right answers are words: the policy, whose answers are digits, never gives one, but a trial does.
    rows = [f'{{"question": "{number}", "answer": "word"}}' for number in range(40)]
    (tmp_path / "questions.jsonl").write_text("\n".join(rows) + "\n")
    (tmp_path / "silent_author.py").write_text(AUTHOR)
    (tmp_path / "game.yaml").write_text(GAME.replace("FOLDER", str(tmp_path)))
    return tmp_path / "game.yaml"


def played(game: Path, *overrides: str, expect: int = 0) -> tuple[str, RunDirectory]:
    done = run_to_end(
        "run", game, "--runs", game.parent / "runs", *(f"--set={override}" for override in overrides), expect=expect
    )
    return done.stderr, RunDirectory.of(game.parent / "runs", "small")


def test_a_reward_function_that_always_fails_ends_the_run_with_its_error(game: Path) -> None:
    shown, run = played(game, expect=ExitCode.BAD_CONFIG)
    assert "the reward function silent_author:score cannot be used: all " in shown
    assert f"KeyError: 'my bug' at {game.parent}/silent_author.py:6" in shown
    assert "restart" not in shown
    assert not run.peer(0).metrics.exists() or not run.peer(0).metrics.read_text()


def test_a_manager_that_returns_too_few_rewards_is_found_before_the_run(game: Path) -> None:
    shown, _ = played(game, "game.rewards={use: 'silent_author:Short'}", expect=ExitCode.BAD_CONFIG)
    assert "returned 1 reward for 2 rollouts; expected one per rollout, in order" in shown


def test_an_error_in_some_calls_is_shown_once_and_counted(game: Path) -> None:
    shown, run = played(game, "game.rewards.with.function=silent_author:sometimes")
    assert shown.count("warning: peer 0, round 0: a call of the reward function failed") == 1
    assert re.search(r"\d+ times in all: a call of the reward function failed and scored 0: ValueError", shown)
    written = [json.loads(line) for line in run.peer(0).warnings.read_text().splitlines()]
    assert written[-1]["count"] > written[0]["count"]
    assert "three is refused" in run.report.read_text()


def test_a_game_in_which_nothing_can_be_learned_does_not_end_without_a_word(game: Path) -> None:
    shown, run = played(game, "game.rewards.with.function=silent_author:zero")
    assert shown.count("nothing can be learned: in rounds 0 to 2 every rollout of every group scored 0") == 1
    assert shown.count("nothing was learned: no optimizer step in 4 rounds") == 1
    assert "Likely cause" in run.report.read_text()
