"""`swarmgame new`: what it makes passes its own tests, validates, and never replaces anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from swarmgame.cli.new import Kind, new, package_of, scaffold
from swarmgame.errors import BadUsage, ExitCode
from swarmgame_api import load_manifest

ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")} | {"OMP_NUM_THREADS": "1"}


def run(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=200, check=False
    )


@pytest.mark.processes
@pytest.mark.parametrize("kind", Kind)
def test_a_new_game_passes_its_own_tests(tmp_path: Path, kind: Kind) -> None:
    folder = scaffold(f"my-{kind}-game", kind, tmp_path)
    done = run("pytest", "-q", "-p", "no:cacheprovider", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = {Kind.TEXT: "5 passed", Kind.IMAGES: "6 passed"}[kind]
    assert passed in done.stdout


@pytest.mark.processes
def test_the_tests_of_a_new_game_fail_when_its_rewards_are_broken(tmp_path: Path) -> None:
    folder = scaffold("broken", Kind.TEXT, tmp_path)
    module = folder / "broken" / "__init__.py"
    module.write_text(module.read_text().replace("    return float(", "    return 1 - float("))
    assert run("pytest", "-q", "-p", "no:cacheprovider", folder=folder).returncode == 1


@pytest.mark.unit
@pytest.mark.parametrize("kind", Kind)
def test_a_new_game_has_a_valid_manifest_of_its_name(tmp_path: Path, kind: Kind) -> None:
    manifest = load_manifest(scaffold("my-game", kind, tmp_path) / "game.yaml")
    assert manifest.metadata.name == "my-game"
    assert manifest.spec.game.data.use.startswith("my_game:")


@pytest.mark.processes
@pytest.mark.parametrize("kind", Kind)
def test_a_new_game_passes_the_dry_run(tmp_path: Path, kind: Kind) -> None:
    scaffold("my-game", kind, tmp_path)
    program = "from swarmgame.cli.validate import validate; from pathlib import Path; validate(Path('my-game/game.yaml'))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "my-game is valid" in done.stderr
    (tmp_path / "resolved.yaml").write_text(done.stdout)
    assert load_manifest(tmp_path / "resolved.yaml").spec.game.data.with_


@pytest.mark.unit
@pytest.mark.parametrize("kind", Kind)
def test_a_new_game_is_written_as_the_house_writes(tmp_path: Path, kind: Kind) -> None:
    folder = scaffold("my-game", kind, tmp_path)
    settings = Path(__file__).parents[3] / "pyproject.toml"
    for check in (["check"], ["format", "--check"]):
        done = run("ruff", *check, "--config", str(settings), "--no-cache", str(folder), folder=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    assert not [path for path in folder.rglob("*") if path.is_file() and "$" in path.read_text()]


@pytest.mark.unit
def test_what_exists_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "my-game").mkdir()
    (tmp_path / "my-game" / "mine.txt").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("my-game", "dangling"):
        with pytest.raises(BadUsage, match="exists already") as caught:
            scaffold(name, parent=tmp_path)
        assert caught.value.exit_code == ExitCode.BAD_USAGE
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["dangling", "mine.txt", "my-game"]


@pytest.mark.unit
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


@pytest.mark.unit
def test_dashes_become_underscores_in_the_package() -> None:
    assert package_of("my-first-game") == "my_first_game"


@pytest.mark.unit
def test_a_folder_that_cannot_be_made_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(BadUsage, match="is no folder"):
        scaffold("my-game", parent=tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


@pytest.mark.unit
def test_the_command_says_what_to_do_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    new("stripes", Kind.IMAGES)
    assert (tmp_path / "stripes" / "tests" / "test_stripes.py").is_file()
    assert "cd stripes && pytest && swarmgame run game.yaml" in capsys.readouterr().err
