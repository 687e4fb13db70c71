"""The record of how a peer's process ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from swarmgame.errors import BadData, BadGame, ExitCode, NotWritable
from swarmgame.launch import exit_record as module
from swarmgame.launch.exit_record import exit_record, keep_previous, recording_exit, termination_message
from swarmgame.observability.run_directory import PeerDirectory
from swarmgame.runtime.failure import Failure, PeerFailure


def of_game(round: int = 2, *, line: int = 7) -> PeerFailure:
    return PeerFailure(Failure("ValueError", "broken", f"/games/mine.py:{line}", "rewards", round=round, of_game=True))


def end_with(directory: PeerDirectory, error: BaseException) -> BaseException:
    """Run a process that ends with an error; return the error that left it."""
    with pytest.raises(BaseException) as caught, recording_exit(directory):  # noqa: PT011 — any of them
        raise error
    return caught.value


def test_an_error_is_recorded_with_its_class_text_line_round_and_log(tmp_path: Path) -> None:
    directory = PeerDirectory(tmp_path)
    directory.output.touch()
    assert isinstance(end_with(directory, of_game()), PeerFailure)
    found: dict[str, Any] = json.loads(directory.exit.read_text())
    assert found == {
        "code": 1,
        "message": "ValueError: broken at /games/mine.py:7, in rewards (in round 2)",
        "restart": True,
        "failure": {
            "kind": "ValueError",
            "message": "broken",
            "where": "/games/mine.py:7",
            "function": "rewards",
            "round": 2,
            "of_game": True,
        },
        "log": str(directory.output),
    }


def test_the_same_exception_of_the_game_at_the_same_line_in_the_same_round_is_its_authors(tmp_path: Path) -> None:
    directory = PeerDirectory(tmp_path)
    end_with(directory, of_game())
    again = end_with(directory, of_game())
    assert isinstance(again, BadGame)
    assert str(again) == (
        "the game's own code fails here each time: ValueError: broken at /games/mine.py:7, in rewards (in round 2)"
    )
    assert exit_record(directory).code == ExitCode.BAD_CONFIG


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (of_game(round=2), of_game(round=3)),
        (of_game(line=7), of_game(line=8)),
        (BadData("a file"), of_game()),
        (
            PeerFailure(Failure("ValueError", "ours", "/swarmgame/x.py:1", "f", round=2)),
            PeerFailure(Failure("ValueError", "ours", "/swarmgame/x.py:1", "f", round=2)),
        ),
    ],
    ids=["another round", "another line", "another error", "a bug of this project"],
)
def test_anything_else_may_pass_by_itself(tmp_path: Path, first: Exception, second: Exception) -> None:
    directory = PeerDirectory(tmp_path)
    end_with(directory, first)
    assert end_with(directory, second) is second
    assert exit_record(directory).code == ExitCode.INTERNAL


def test_a_process_that_finishes_makes_the_earlier_error_forgotten(tmp_path: Path) -> None:
    directory = PeerDirectory(tmp_path)
    end_with(directory, of_game())
    with recording_exit(directory) as record:
        record(ExitCode.DONE)
    assert exit_record(directory).code is None
    assert isinstance(end_with(directory, of_game()), PeerFailure)


def test_a_runner_that_makes_room_and_a_process_that_was_killed_keep_the_earlier_error(tmp_path: Path) -> None:
    directory = PeerDirectory(tmp_path)
    end_with(directory, of_game())
    for _ in range(3):  # started, killed
        keep_previous(directory)
        assert exit_record(directory).code is None
    assert isinstance(end_with(directory, of_game()), BadGame)


def test_a_full_disk_is_not_restarted(tmp_path: Path) -> None:
    directory = PeerDirectory(tmp_path)
    end_with(directory, NotWritable("metrics.jsonl cannot be written: no space is left"))
    record = exit_record(directory)
    assert (record.code, record.restart) == (ExitCode.TEMPORARY, False)


def test_a_process_that_could_not_even_record_its_end_on_a_full_disk_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free, total = 0, 4096

    directory = PeerDirectory(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: Usage)
    record = exit_record(directory)
    assert (record.code, record.restart) == (ExitCode.TEMPORARY, False)
    assert "no space is left on the device (0 bytes of 4.0 KiB are free); free some" in termination_message(directory)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"code": "x"}', '{"code": null}', "{"])
def test_a_record_that_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    directory = PeerDirectory(tmp_path)
    directory.exit.write_text(text)
    assert exit_record(directory).code is None
