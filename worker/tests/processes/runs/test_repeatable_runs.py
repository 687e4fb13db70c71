"""Equal manifests give equal numbers from a fresh start, and no local peer is left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from running import EXAMPLES, ROOT, metrics, newest_weights, reproducible, run_to_end

pytestmark = pytest.mark.timeout(600)

ROUNDS = 4
QUICKSTART = EXAMPLES / "01-quickstart" / "game.yaml"


def assert_equal(first: Path, second: Path, peers: int, rounds: int) -> None:
    for index in range(peers):
        expected, found = reproducible(metrics(first, index)), reproducible(metrics(second, index))
        assert [row["round"] for row in expected] == list(range(rounds))
        assert found == expected, f"peer {index}"
        left, right = newest_weights(first, index), newest_weights(second, index)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left), f"weights of peer {index}"


SETTINGS = (
    "--set=game.data.with.questionsPerRound=4",
    "--set=game.evaluation.everyRounds=2",
    "--set=game.evaluation.questions=4",
    "--set=game.evaluation.samples=2",
    "--set=game.trainer.with.generations=4",
)


def play(runs: Path, peers: int, *more: str) -> None:
    done = run_to_end(
        "run", QUICKSTART, f"--peers={peers}", "--rounds=3", *SETTINGS, "--no-report", "--runs", runs, *more
    )
    assert "held-out questions: " in done.stderr, done.stderr  # the results are shown without a report too


@pytest.mark.parametrize("peers", [1, 2])
def test_two_fresh_runs_of_a_language_model_agree_number_for_number(tmp_path: Path, peers: int) -> None:
    for name in ("first", "second"):
        play(tmp_path, peers, "--name", name)
    assert_equal(tmp_path / "first", tmp_path / "second", peers, 3)
    assert [bool(row["evaluation"]) for row in metrics(tmp_path / "first", 0)] == [False, True, True]
    if peers == 1:
        play(tmp_path, peers, "--name", "third", "--set=game.seed=5")
        assert reproducible(metrics(tmp_path / "third", 0)) != reproducible(metrics(tmp_path / "first", 0))


def test_four_peers_play_every_round_twice_alike_and_the_summary_says_so(tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "guide" / "repeat-a-run.md").read_text()
    commands = [line.split()[1:] for line in guide.splitlines() if line.startswith("swarmgame ")]
    assert [arguments[-1] for arguments in commands] == ["first", "second"]
    for arguments in commands:
        run_to_end(*arguments, f"--rounds={ROUNDS}", "--runs", tmp_path)
    assert_equal(tmp_path / "first", tmp_path / "second", 4, ROUNDS)
    for row in metrics(tmp_path / "first", 0):
        assert (row["missing"], row["closed_by"], len(row["members"])) == ([], "quorum", 4)
    summary = json.loads((tmp_path / "first" / "summary.json").read_text())
    assert summary["participation"] == [
        {"index": index, "played": ROUNDS, "skipped": {}, "left_out": 0} for index in range(4)
    ]
