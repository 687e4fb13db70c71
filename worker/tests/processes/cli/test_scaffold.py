"""`swarmgame new`: a new game passes its own tests and validates, and nothing is overwritten."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from swarmgame.cli.new import GameKind, scaffold
from swarmgame_api import load_manifest

ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")} | {
    "OMP_NUM_THREADS": "1"
}


def run(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.mark.parametrize("kind", GameKind)
def test_a_new_game_passes_its_own_tests(tmp_path: Path, kind: GameKind) -> None:
    folder = scaffold(f"my-{kind}-game", kind, tmp_path)
    done = run("pytest", "-q", "-p", "no:cacheprovider", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = {GameKind.TEXT: "5 passed", GameKind.IMAGES: "6 passed", GameKind.ENVIRONMENT: "11 passed"}[kind]
    assert passed in done.stdout


def test_the_tests_of_a_new_game_fail_when_its_rewards_are_broken(tmp_path: Path) -> None:
    folder = scaffold("broken", GameKind.TEXT, tmp_path)
    module = folder / "broken" / "__init__.py"
    module.write_text(module.read_text().replace("    return float(", "    return 1 - float("))
    assert run("pytest", "-q", "-p", "no:cacheprovider", folder=folder).returncode == 1


@pytest.mark.parametrize("kind", GameKind)
def test_a_new_game_passes_the_dry_run(tmp_path: Path, kind: GameKind) -> None:
    scaffold("my-game", kind, tmp_path)
    program = (
        "from swarmgame.cli.validate import validate; from pathlib import Path; validate(Path('my-game/game.yaml'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "my-game is valid" in done.stderr
    (tmp_path / "resolved.yaml").write_text(done.stdout)
    assert load_manifest(tmp_path / "resolved.yaml").spec.game.data.with_


@pytest.mark.parametrize("kind", GameKind)
def test_a_new_game_passes_the_linter_and_the_formatter(tmp_path: Path, kind: GameKind) -> None:
    folder = scaffold("my-game", kind, tmp_path)
    settings = Path(__file__).parents[4] / "pyproject.toml"
    for check in (["check"], ["format", "--check"]):
        done = run("ruff", *check, "--config", str(settings), "--no-cache", str(folder), folder=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    assert not [path for path in folder.rglob("*") if path.is_file() and "$" in path.read_text()]
