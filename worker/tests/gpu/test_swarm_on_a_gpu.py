"""A complete swarm whose peers share a CUDA device: processes, hivemind, the sandbox, checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
from running import EXAMPLES, metrics, run_to_end

pytestmark = pytest.mark.timeout(600)


def test_the_quickstart_plays_on_the_device_and_resumes(tmp_path: Path) -> None:
    game = EXAMPLES / "01-quickstart" / "game.yaml"
    run_to_end(
        "run", game, "--rounds=4", "--runs", tmp_path, "--no-report", "--set", "storage.checkpoints.everyRounds=2"
    )
    run_to_end(
        "run", game, "--rounds=7", "--runs", tmp_path, "--no-report", "--set", "storage.checkpoints.everyRounds=2"
    )
    for index in range(4):
        rows = metrics(tmp_path / "quickstart", index)
        assert [row["round"] for row in rows] == list(range(7))
        assert any(row["external"] for row in rows)


def test_a_game_without_a_language_model_plays_there_too(tmp_path: Path) -> None:
    run_to_end(
        "run", EXAMPLES / "03-digits" / "game.yaml", "--rounds=5", "--peers=2", "--runs", tmp_path, "--no-report"
    )
    assert [row["round"] for row in metrics(tmp_path / "digits", 1)] == list(range(5))
