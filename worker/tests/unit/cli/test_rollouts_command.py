"""`swarmgame rollouts` and `swarmgame replay`: what they print, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from archived_games import MANIFEST, play

from swarmgame.archive.files import round_files
from swarmgame.cli.main import run_command
from swarmgame.cli.replay import _range
from swarmgame.errors import BadUsage, ExitCode


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one archived peer, whose oldest rounds were dropped."""
    root = tmp_path_factory.mktemp("runs") / "toys"
    play(root / "peers" / "0", max_bytes=20_000)
    (root / "game.yaml").write_text(yaml.safe_dump(MANIFEST))
    return root


def lines(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[list[dict[str, object]], str]:
    assert run_command([str(argument) for argument in arguments]) == ExitCode.DONE
    output = capsys.readouterr()
    return [json.loads(line) for line in output.out.splitlines()], output.err


def test_without_options_the_last_rounds_own_rollouts_are_shown(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, _ = lines(capsys, "rollouts", run)
    assert len(found) == 12
    assert {(row["round"], row["author"]) for row in found} == {(5, "me")}


def test_a_peers_archive_has_what_it_received(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, _ = lines(capsys, "rollouts", run, "--peer", "0", "--round", "4")
    assert {(row["round"], row["author"]) for row in found} == {(4, "me"), (4, "other")}


def test_best_and_worst_are_of_all_rounds(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, _ = lines(capsys, "rollouts", run, "--worst", "2", "--best", "1", "--env", "toy")
    assert [row["reward"] for row in found] == [1.0, 0.0, 0.0]
    assert lines(capsys, "rollouts", run, "--env", "other", "--best", "1")[0] == []


def test_what_is_not_there_is_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, error = lines(capsys, "rollouts", run, "--env", "other")
    assert "no rollout matches" in error
    assert "oldest rounds were removed" in error


def test_a_damaged_file_is_named_and_the_others_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    play(tmp_path / "peers" / "0")
    file = round_files(tmp_path / "peers" / "0" / "rollouts")[2]
    file.path.write_bytes(file.path.read_bytes()[:-3])
    found, error = lines(capsys, "rollouts", tmp_path, "--best", "100")
    assert 2 not in {row["round"] for row in found}
    assert "round 2: " in error
    assert "is damaged" in error


def test_a_run_or_a_peer_that_is_not_there_is_refused_with_those_that_are(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("rollouts", "replay"):
        assert run_command([command, str(run), "--peer", "3"]) == ExitCode.BAD_USAGE
        assert "has no peer 3; it has 0" in capsys.readouterr().err
        assert run_command([command, "none", "--runs", str(run.parent)]) == ExitCode.BAD_USAGE
        assert "holds toys" in capsys.readouterr().err


def test_a_replay_says_which_rounds_were_dropped_and_where_it_began(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["replay", str(run)]) == ExitCode.DONE
    output = capsys.readouterr()
    assert "peer 0: 2 rounds (4 to 5) from the checkpoint of round 4: equal weights" in output.out
    assert "the archive does not hold" in output.err
    assert "rounds 0 to 3 were not replayed" in output.err


@pytest.mark.parametrize(
    ("given", "expected"), [("", (0, None)), ("3:", (3, None)), (":7", (0, 7)), ("3:7", (3, 7)), (":", (0, None))]
)
def test_a_range_of_rounds(given: str, expected: tuple[int, int | None]) -> None:
    assert _range(given) == expected


@pytest.mark.parametrize("given", ["7", "7:7", "8:7", "-1:3", "a:b", "1:2:3"])
def test_a_range_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(BadUsage, match="expected A:B"):
        _range(given)
