"""What peers of one game must share, and what their code consists of."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarmgame.game.code import GameCode, find_code
from swarmgame.game.sources import CURES, NAMES, Difference, Sources, differences, fingerprint, forbidden

OURS = Sources(*(digit * 16 for digit in "12345"))


def test_only_what_both_know_and_is_not_equal_differs() -> None:
    theirs = Sources(rounds="1" * 16, data="a" * 16, code="", rewards="4" * 16, model="b" * 16)
    found = differences(OURS, theirs)
    assert found == (Difference("data", "aaaaaaaa", "22222222"), Difference("model", "bbbbbbbb", "55555555"))
    assert forbidden(found) == found[:1]
    assert str(found[0]) == "your data differs: theirs aaaaaaaa, yours 22222222"
    assert differences(OURS, Sources()) == differences(Sources(), OURS) == ()
    assert CURES.keys() == set(NAMES)


def test_sources_travel_as_bytes_and_as_json() -> None:
    for sources in (OURS, Sources(), Sources(data="0" * 16)):
        assert Sources.of_packed(sources.packed()) == sources
        assert Sources.of_json(sources.as_json()) == sources
    assert Sources.of_packed([*OURS.packed(), b"of a later release"]) == OURS
    assert Sources.of_json({"data": 3, "other": "x"}) == Sources.of_json(None) == Sources()


def test_a_fingerprint_does_not_depend_on_the_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint("a", "b") != fingerprint("ab")
    assert len(fingerprint()) == 16


# ── code


def game(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def code(folder: Path, use: str = "game:Data", **options: object) -> GameCode:
    return find_code([{"use": use, "with": options}], folder)


def test_the_modules_beside_the_manifest_count_that_the_named_ones_import(tmp_path: Path) -> None:
    game(
        tmp_path, game="import helper\nimport json\n", helper="from words import WORDS\n", words="WORDS = 1\n", other=""
    )
    assert sorted(code(tmp_path).files) == ["game", "helper", "words"]
    assert sorted(code(tmp_path, use="text", function="other:score").files) == ["other"]
    assert sorted(code(tmp_path, use="text", rewards=[{"use": "words:Reward"}]).files) == ["words"]
    assert code(tmp_path, use="text").files == {}


def test_packages_count_with_their_parents_and_relative_imports(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/__init__.py").write_text("")
    (tmp_path / "mine/data.py").write_text("from . import words\nfrom .deep.more import NAME\n")
    (tmp_path / "mine/words.py").write_text("")
    (tmp_path / "mine/deep").mkdir()
    (tmp_path / "mine/deep/__init__.py").write_text("")
    (tmp_path / "mine/deep/more.py").write_text("from ..words import x\nNAME = 1\n")
    found = sorted(code(tmp_path, use="mine.data:Data").files)
    assert found == ["mine", "mine.data", "mine.deep", "mine.deep.more", "mine.words"]


def test_the_code_of_the_project_and_of_libraries_does_not_count(tmp_path: Path) -> None:
    game(tmp_path, game="import numpy\nfrom swarmgame.data.text import TextData\n")
    assert sorted(code(tmp_path).files) == ["game"]
    assert code(tmp_path, use="swarmgame.data.text:TextData").files == {}


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("# a comment\n\nimport json   # another\n\nWORDS = '''a\n\nb # c'''\n", True),
        ("import json\r\nWORDS = '''a\r\n\r\nb # c'''\r\n", True),
        ("import json\nWORDS = '''a\nb # c'''\n", False),
        ("import json\nWORDS = '''a\n\nb # d'''\n", False),
        ("import re\nWORDS = '''a\n\nb # c'''\n", False),
    ],
)
def test_comments_and_blank_lines_make_no_other_code(tmp_path: Path, text: str, same: bool) -> None:
    before = code(game(tmp_path / "a", game="import json\nWORDS = '''a\n\nb # c'''\n")).fingerprint
    (tmp_path / "b").mkdir()
    (tmp_path / "b/game.py").write_bytes(text.encode())
    assert (code(tmp_path / "b").fingerprint == before) is same


def test_nothing_is_imported_and_a_broken_file_is_read_as_it_is(tmp_path: Path) -> None:
    game(tmp_path, game="raise RuntimeError('imported')\n", broken="def (:\n")
    assert code(tmp_path).fingerprint != code(tmp_path, use="broken:Data").fingerprint
    assert sorted(code(tmp_path, use="missing:Data").files) == []
