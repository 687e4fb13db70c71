"""The state of a Dev chain on disk, whatever a full disk or a kill leaves of it."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from swarmgame_chain.dev_state import StateFile


def test_half_a_file_is_replaced_by_the_last_complete_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = StateFile(tmp_path)
    state.keep()
    assert list(tmp_path.iterdir()) == []
    for content in ('{"block": 1}', '{"block": 22}', '{"block": 333', "", "{"):
        state.path.write_text(content)
        state.keep()
    assert state.set_aside("anvil stopped at once: EOF while parsing")
    assert (state.path.read_text(), (tmp_path / "state.broken.json").read_text()) == ('{"block": 22}', "{")
    assert "EOF while parsing; the Dev chain goes on from the copy of its state" in caplog.text


def test_without_a_copy_the_chain_begins_anew_and_what_stops_anvil_then_is_not_its_state(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = StateFile(tmp_path)
    assert not state.set_aside("anvil stopped at once: the port is taken")
    state.path.write_text('{"block"')
    assert state.set_aside("EOF")
    assert not state.path.exists()
    assert "EOF; the Dev chain begins anew without its reports" in caplog.text
    assert not state.set_aside("EOF")


@pytest.mark.parametrize("content", ['{"block": 1}', "[]"])
def test_a_complete_file_stays_where_anvil_ends_for_another_reason(content: str, tmp_path: Path) -> None:
    state = StateFile(tmp_path)
    state.path.write_text(content)
    state.keep()
    assert not state.set_aside("anvil stopped at once: the port is taken")
    assert state.path.read_text() == content
    assert not (tmp_path / "state.broken.json").exists()


def test_each_file_that_is_set_aside_is_kept(tmp_path: Path) -> None:
    state = StateFile(tmp_path)
    for content in ("{", '{"a', b"\xff".decode("latin-1")):
        state.path.write_text(content, encoding="latin-1")
        assert state.set_aside("EOF")
    found = [path.read_text(encoding="latin-1") for path in sorted(tmp_path.glob("state.broken*.json"))]
    assert sorted(found) == sorted(("{", '{"a', "\xff"))


def test_a_copy_that_cannot_be_written_is_said_once_and_the_last_one_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = StateFile(tmp_path)
    state.path.write_text('{"block": 1}')
    state.keep()

    def full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    for block in range(2, 5):
        state.path.write_text(f'{{"block": {block}, "more": true}}')
        state.keep()
    assert (tmp_path / "state.copy.json").read_text() == '{"block": 1}'
    assert caplog.text.count("No space left on device") == 1
    assert "MiB are free" in caplog.text
