"""`swarmgame new`: what it makes passes its own tests, validates, and never replaces anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarmgame.cli.new import GameKind, new, package_of, scaffold
from swarmgame.errors import BadUsage, ExitCode
from swarmgame_api import load_manifest


@pytest.mark.parametrize("kind", GameKind)
def test_a_new_game_has_a_valid_manifest_of_its_name(tmp_path: Path, kind: GameKind) -> None:
    manifest = load_manifest(scaffold("my-game", kind, tmp_path) / "game.yaml")
    assert manifest.metadata.name == "my-game"
    assert manifest.spec.game.data.use.startswith("my_game:")


def test_what_exists_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "my-game").mkdir()
    (tmp_path / "my-game" / "mine.txt").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("my-game", "dangling"):
        with pytest.raises(BadUsage, match="exists already") as caught:
            scaffold(name, parent=tmp_path)
        assert caught.value.exit_code == ExitCode.BAD_USAGE
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["dangling", "mine.txt", "my-game"]


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/b",
        "../a",
        "My-Game",
        "my_game",
        "-a",
        "a-",
        "1a",
        "a.b",
        "a" * 53,
        "json",
        "swarmgame",
        "torch",
        "tests",
        "class",
        "é",
    ],
)
def test_a_name_that_cannot_be_a_game_and_a_package_is_refused_and_nothing_is_made(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadUsage, match="cannot be the name"):
        scaffold(name, parent=tmp_path)
    assert not list(tmp_path.iterdir())


def test_dashes_become_underscores_in_the_package() -> None:
    assert package_of("my-first-game") == "my_first_game"


def test_a_folder_that_cannot_be_made_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(BadUsage, match="is no folder"):
        scaffold("my-game", parent=tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


def test_the_command_says_what_to_do_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    new("stripes", GameKind.IMAGES)
    assert (tmp_path / "stripes" / "tests" / "test_stripes.py").is_file()
    assert "cd stripes && pytest && swarmgame run game.yaml" in capsys.readouterr().err
