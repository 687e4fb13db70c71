"""Every example runs, and learns: the numbered folders are documentation that cannot go stale."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from running import EXAMPLES, ROOT, metrics, run_to_end

pytestmark = pytest.mark.timeout(600)


def rise(run: Path) -> float:
    return float(json.loads((run / "summary.json").read_text())["rise"])


def test_every_example_has_a_test() -> None:
    assert sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir()) == [
        "01-quickstart",
        "02-multistage-math",
        "03-digits",
    ]


def test_the_quickstart_plays_and_shares(tmp_path: Path) -> None:
    """CI runs the complete example, with its rise and its control, as the demo."""
    done = run_to_end("run", EXAMPLES / "01-quickstart" / "game.yaml", "--rounds=4", "--runs", tmp_path)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [row["round"] for row in rows] == [0, 1, 2, 3]
    assert sum(len(row["external"]) for index in range(4) for row in metrics(tmp_path / "quickstart", index)) > 0
    assert (tmp_path / "quickstart" / "report.html").stat().st_size > 10_000


def test_the_multistage_game_learns_in_three_stages(tmp_path: Path) -> None:
    run_to_end("run", EXAMPLES / "02-multistage-math" / "game.yaml", "--runs", tmp_path)
    run = tmp_path / "multistage-math"
    assert rise(run) > 0.1
    assert all(len(row["stage_rewards"]) == 3 for row in metrics(run, 0))
    assert list((run / "plots").glob("*.png"))


def test_digits_are_learned_without_a_language_model(tmp_path: Path) -> None:
    run_to_end("run", EXAMPLES / "03-digits" / "game.yaml", "--runs", tmp_path)
    run = tmp_path / "digits"
    assert rise(run) > 0.3
    assert sum(len(row["external"]) for row in metrics(run, 0)) > 10


def test_the_game_in_the_readme_plays(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text()
    code, manifest = (re.search(rf"```{kind}\n(.*?)```", readme, re.DOTALL) for kind in ("python", "yaml"))
    assert code is not None
    assert manifest is not None
    (tmp_path / "sums.py").write_text(code.group(1))
    (tmp_path / "game.yaml").write_text(manifest.group(1))
    run_to_end("run", tmp_path / "game.yaml", "--rounds=2", "--peers=2", "--runs", tmp_path / "runs", "--no-report")
    assert [row["round"] for row in metrics(tmp_path / "runs" / "sums", 1)] == [0, 1]


def test_two_ranks_a_peer_play_the_same_game(tmp_path: Path) -> None:
    game = EXAMPLES / "03-digits" / "game.yaml"
    run_to_end("run", game, "--rounds=5", "--peers=2", "--processes-per-peer=2", "--runs", tmp_path, "--no-report")
    for index in range(2):
        rows = metrics(tmp_path / "digits", index)
        assert [row["round"] for row in rows] == list(range(5))
        assert all(row["policy_version"] == row["round"] + 1 for row in rows)
