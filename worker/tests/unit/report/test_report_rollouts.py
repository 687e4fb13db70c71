"""The report's rollouts: by environment, the last rounds only, and escaped."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from archived_games import FACTS, record, with_text
from contributions import make_contribution

from swarmgame import FinishReason, GroupKey, Rollout
from swarmgame.archive.files import encode_round, round_files, write_round
from swarmgame.archive.rows import round_rows
from swarmgame.archive.writer import ArchiveState
from swarmgame.game.rollout import Segment
from swarmgame.observability.run_directory import RunDirectory
from swarmgame.report import write_report
from swarmgame.report.rollouts import LAST_ROUNDS, rollouts_section

MakeRun = Callable[..., RunDirectory]
HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e&"


def archive(directory: RunDirectory, number: int, text: str, reward: float) -> None:
    own = with_text(make_contribution("me", number), text)
    rewards = {
        GroupKey(number, 0, "me", group.question_id): [reward + at, reward] for at, group in enumerate(own.groups)
    }
    other = with_text(make_contribution("other", number), "of another peer")
    head, rows = round_rows(record(own, [other], rewards=rewards))
    folder = directory.peer(0).rollouts
    folder.mkdir(parents=True, exist_ok=True)
    write_round(folder, number, encode_round({**FACTS, **head, "round": number}, rows))


def test_a_hostile_text_is_harmless_in_the_page(make_run: MakeRun) -> None:
    directory = make_run(peers=1, rounds=4, environments=0)
    archive(directory, 3, HOSTILE, -5.0)
    write_report(directory)
    page = directory.report.read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\x1b[31m\\u202e&amp;" in page
    assert "\x1b" not in page
    assert "<h2>Rollouts</h2>" in page
    assert "of another peer" not in page


def test_only_the_last_rounds_are_searched(make_run: MakeRun) -> None:
    directory = make_run()
    for number in range(LAST_ROUNDS + 1):
        archive(directory, number, f"text of round {number}.", 100.0 - number)
    page = str(rollouts_section(directory))
    assert "text of round 0." not in page
    assert "round 1 · peer 0" in page
    assert "round 0 ·" not in page


def test_a_run_without_an_archive_has_no_section(make_run: MakeRun) -> None:
    assert rollouts_section(make_run()) == ""


def test_a_damaged_file_and_an_archive_that_is_off_are_named(make_run: MakeRun) -> None:
    directory = make_run()
    archive(directory, 1, "plain", 0.0)
    folder = directory.peer(0).rollouts
    (file,) = round_files(folder)
    file.path.write_bytes(file.path.read_bytes()[:-1])
    shutil.copy(file.path, folder / "not-a-round.parquet")
    (folder / "archive.json").write_text('{"off": "No space left on device"}')
    assert ArchiveState.of(folder).off
    page = str(rollouts_section(directory))
    assert "is damaged" in page
    assert "No space left on device" in page


def test_a_missing_folder_is_no_error(tmp_path: Path) -> None:
    assert rollouts_section(RunDirectory(tmp_path)) == ""


def test_the_turns_of_transcripts_are_set_apart_and_escaped(make_run: MakeRun) -> None:
    directory = make_run()
    own = make_contribution("me", 3)
    segments = (Segment(2, "5"), Segment(3, HOSTILE), Segment(1, "7"))
    made = Rollout("7", (1, 2, 9, 9, 9, 3), (-1.0, -2.0, -3.0), FinishReason.DONE, segments)
    groups = tuple(replace(group, rollouts=(made, made)) for group in own.groups)
    rewards = {GroupKey(3, 0, "me", group.question_id): [1.0, 0.0] for group in groups}
    head, rows = round_rows(record(replace(own, groups=groups), [], rewards=rewards))
    folder = directory.peer(0).rollouts
    folder.mkdir(parents=True, exist_ok=True)
    write_round(folder, 3, encode_round({**FACTS, **head, "round": 3}, rows))
    page = str(rollouts_section(directory))
    assert 'title="turn 1">5</pre>' in page
    assert 'title="environment">&lt;script&gt;' in page
    assert 'title="turn 2">7</pre>' in page
    assert "\x1b" not in page
