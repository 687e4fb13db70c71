"""The display of a run prints the warnings of its peers, each once."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarmgame.launch.display import RunDisplay
from swarmgame.observability.diagnostics.files import append
from swarmgame.observability.diagnostics.rules import Diagnostic
from swarmgame.observability.run_directory import PeerDirectory, RunDirectory


def directories(root: Path) -> dict[int, PeerDirectory]:
    found = {index: RunDirectory(root).peer(index) for index in range(2)}
    for directory in found.values():
        directory.root.mkdir(parents=True)
    return found


def warning(index: int, code: str, files: dict[int, PeerDirectory], count: int = 1) -> None:
    append(files[index].warnings, index, Diagnostic(code, "", 2, f"text of {code}", "", "Do it", count=count))


def test_warnings_of_this_run_are_printed_once_and_totals_of_failed_calls_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = directories(tmp_path)
    warning(0, "isolated", files)
    display = RunDisplay("quick", 5, files)
    with display:
        warning(0, "no-spread", files)
        warning(0, "scoring-failed", files)
        display.refresh(now=True)
        warning(1, "no-spread", files)
        display.refresh(now=True)
        warning(0, "scoring-failed", files, count=30)
        warning(1, "nothing-learned", files)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "warning: peer 0, round 2: text of no-spread. Do it",
        "warning: peer 0, round 2: text of scoring-failed. Do it",
        "warning: peer 1, round 2: text of nothing-learned. Do it",
        "30 times in all: text of scoring-failed",
    ]


def test_a_peer_of_this_process_shows_its_warnings_in_its_log_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = directories(tmp_path)
    with RunDisplay("join", 5, files, warnings=False) as display:
        warning(0, "no-spread", files)
        display.refresh(now=True)
    assert capsys.readouterr().err == ""
