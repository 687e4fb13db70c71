"""`swarmgame run`: every option reaches the runner."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from swarmgame.cli.main import run_command
from swarmgame.errors import ExitCode
from swarmgame.launch.local import RunOptions
from swarmgame_api.manifest import SwarmGame

GAME = """
apiVersion: swarmgame.dev/v1alpha1
kind: SwarmGame
metadata: {name: small}
spec:
  game:
    maxRounds: 1
    data: {use: text, with: {source: questions.jsonl}}
    rewards: {use: exact}
    trainer: {use: policy-gradient, with: {actions: 4}}
"""


def test_options_of_the_command_line_are_those_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[SwarmGame, RunOptions]] = []

    def run(manifest: SwarmGame, options: RunOptions, **steps: Any) -> ExitCode:
        found.append((manifest, options))
        return ExitCode.DONE

    monkeypatch.setattr("swarmgame.launch.local.run", run)
    game = tmp_path / "game.yaml"
    game.write_text(GAME)
    options = (
        "--name=n",
        f"--runs={tmp_path}",
        "--host=0.0.0.0",
        "--fresh",
        "--random-keys",
        "--no-report",
        "--peers=3",
    )
    assert run_command(["run", str(game), *options]) == ExitCode.DONE
    ((manifest, given),) = found
    assert manifest.spec.peers.replicas == 3
    of_tests = {"program", "machine"}
    assert {field.name: getattr(given, field.name) for field in fields(given) if field.name not in of_tests} == {
        "game": game,
        "overrides": ("spec.peers.replicas=3",),
        "runs": tmp_path,
        "name": "n",
        "fresh": True,
        "report": False,
        "host": "0.0.0.0",
        "random_keys": True,
    }
