"""The archive's writer: whole files, a bound, a resume, and a disk that is full."""

from __future__ import annotations

import errno
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from archived_games import play
from scripted_game import remote
from toys import ToyTrainer

from swarmgame import Contribution
from swarmgame.archive import writer
from swarmgame.archive.files import round_files
from swarmgame.archive.reader import load
from swarmgame.archive.writer import ArchiveState


def rounds(root: Path) -> list[int]:
    return [file.round for file in round_files(root / "rollouts")]


def test_every_round_is_a_file_with_what_was_generated_and_received(tmp_path: Path) -> None:
    play(tmp_path)
    assert rounds(tmp_path) == [0, 1, 2, 3, 4, 5]
    stored = load(round_files(tmp_path / "rollouts")[3])
    authors = stored.rows["author"].to_pylist()
    assert (authors.count("me"), authors.count("other")) == (12, 12)
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[3])
    assert stored.head["weights"] == line["weights"] != ""
    assert stored.head["members"] == ["me", "other"]


def test_reading_an_archive_starts_no_threads(tmp_path: Path) -> None:
    play(tmp_path)
    code = """
import os, sys
from pathlib import Path
from swarmgame.archive.files import round_files
from swarmgame.archive.reader import damage, load
before = len(os.listdir("/proc/self/task"))
for file in round_files(Path(sys.argv[1])):
    load(file)
    damage(file.path.read_bytes())
print(len(os.listdir("/proc/self/task")) - before)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "rollouts"], capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stdout == "0\n"


def test_rounds_after_the_checkpoint_are_overwritten_and_not_doubled(tmp_path: Path) -> None:
    play(tmp_path)
    before = {file.round: file.digest for file in round_files(tmp_path / "rollouts")}
    (tmp_path / "rollouts" / ".round-00000004-half.parquet.1").write_bytes(b"a crash left this")
    resumed = ToyTrainer()
    resumed.table["changed"] = [1.0, 0.0, 0.0, 0.0]
    play(tmp_path, first_round=2, trainer=resumed, rounds=5)
    after = {file.round: file.digest for file in round_files(tmp_path / "rollouts")}
    assert sorted(after) == [0, 1, 2, 3, 4]
    assert {number: after[number] for number in (0, 1)} == {number: before[number] for number in (0, 1)}
    assert all(after[number] != before[number] for number in (2, 3, 4))
    assert not list((tmp_path / "rollouts").glob(".*"))


def test_a_full_disk_switches_the_archive_off_with_one_sentence_and_the_game_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write = writer.write_round

    def full(folder: Path, number: int, data: bytes) -> object:
        if number == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(folder, number, data)

    monkeypatch.setattr(writer, "write_round", full)
    with caplog.at_level(logging.WARNING):
        play(tmp_path)
    assert rounds(tmp_path) == [0, 1]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 6
    (message,) = [record.getMessage() for record in caplog.records if "archive" in record.getMessage()]
    assert "No space left on device" in message
    assert "the game goes on" in message
    assert "No space left" in ArchiveState.of(tmp_path / "rollouts").off


def test_a_partly_written_file_does_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    play(tmp_path)
    assert [path.name for path in (tmp_path / "rollouts").iterdir()] == ["archive.json"]


def test_a_folder_that_cannot_be_made_does_not_stop_the_game(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "rollouts").write_text("a file stands where the folder should be")
    play(tmp_path)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 6
    assert sum("switched off" in record.getMessage() for record in caplog.records) == 1


def test_an_error_of_our_own_switches_the_archive_off_and_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(record: object) -> object:
        raise ZeroDivisionError("a mistake")

    monkeypatch.setattr(writer, "round_rows", broken)
    play(tmp_path)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 6
    (logged,) = [record for record in caplog.records if record.exc_info]
    assert "goes on without it" in logged.getMessage()


def test_the_oldest_rounds_go_when_the_archive_is_full_which_is_counted_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    play(tmp_path / "whole")
    sizes = [file.path.stat().st_size for file in round_files(tmp_path / "whole" / "rollouts")]
    limit = sum(sizes[3:]) + 10
    play(tmp_path / "bounded", max_bytes=limit)
    folder = tmp_path / "bounded" / "rollouts"
    assert rounds(tmp_path / "bounded") == [3, 4, 5]
    assert sum(file.path.stat().st_size for file in round_files(folder)) <= limit
    state = ArchiveState.of(folder)
    assert state.dropped_rounds == 3
    assert abs(state.dropped_bytes - sum(sizes[:3])) < 30  # the folder's name is part of each file
    assert sum("maxBytes" in record.getMessage() for record in caplog.records) == 1


def test_what_was_dropped_is_still_counted_after_a_resume_and_forgotten_by_a_fresh_start(tmp_path: Path) -> None:
    play(tmp_path)
    limit = sum(file.path.stat().st_size for file in round_files(tmp_path / "rollouts")[:3]) + 10
    play(tmp_path, max_bytes=limit)
    dropped = ArchiveState.of(tmp_path / "rollouts").dropped_rounds
    assert dropped >= 3
    play(tmp_path, first_round=5, max_bytes=limit)
    assert ArchiveState.of(tmp_path / "rollouts").dropped_rounds >= dropped
    play(tmp_path)
    assert ArchiveState.of(tmp_path / "rollouts") == ArchiveState()


def test_a_round_larger_than_the_limit_is_not_kept_and_removes_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def others(own: Contribution) -> list[Contribution]:
        return [remote("other", own.round, count=500 if own.round == 3 else 3)]

    play(tmp_path, others=others, max_bytes=60_000)
    assert rounds(tmp_path) == [0, 1, 2, 4, 5]
    assert ArchiveState.of(tmp_path / "rollouts").too_large == 1
    assert sum("not archived" in record.getMessage() for record in caplog.records) == 1
