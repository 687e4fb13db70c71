"""`swarmgame export` as a user runs it, in a process of its own; the hub is a stand-in over HTTP."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from exported_runs import add_checkpoint, add_rounds, files_of, make_run
from hub_stand_in import TOKEN, HubStandIn, hub_stand_in
from language_rounds import trainer
from running import command, environment

from swarmgame.observability.run_directory import RunDirectory

GRPO = {"use": "grpo", "with": {"generations": 4, "maxNewTokens": 8, "lora": {"rank": 2}}}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> RunDirectory:
    """A run of one peer, with adapters, 5 rounds and an evaluation."""
    made = make_run(tmp_path_factory.mktemp("game"), trainer=GRPO)
    add_rounds(made, 0, 5, {5: 0.6})
    add_checkpoint(made, 0, 5, trainer(cache, lora={"rank": 2}))
    return made


@pytest.fixture
def hub() -> Iterator[HubStandIn]:
    with hub_stand_in() as server:
        yield server


def export(
    cache: Path, run: RunDirectory, *arguments: str | Path, expect: int = 0, **variables: str
) -> subprocess.CompletedProcess[str]:
    given = {**environment(), "SWARMGAME_CACHE": str(cache), **variables}
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        given.pop(name, None) if name not in variables else None
    done = subprocess.run(
        command("export", *arguments, "--runs", run.root.parent),
        capture_output=True,
        text=True,
        env=given,
        timeout=240,
        check=False,
    )
    assert done.returncode == expect, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


def test_a_model_is_pushed_as_private_and_no_token_is_shown(
    cache: Path, run: RunDirectory, hub: HubStandIn, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    done = export(cache, run, "letters", folder, "--push", "me/letters", HF_TOKEN=TOKEN, HF_ENDPOINT=hub.address)
    assert done.stdout.splitlines() == [str(folder), f"{hub.address}/me/letters"]
    assert hub.models["me/letters"]["private"] is True
    assert hub.models["me/letters"]["files"] == files_of(folder)
    assert hub.commits == ["letters: peer 0 after 5 rounds"]
    assert TOKEN not in done.stdout + done.stderr
    assert all(TOKEN.encode() not in data for data in files_of(folder).values())


def test_the_command_names_the_policy_and_prints_the_folder(cache: Path, run: RunDirectory, tmp_path: Path) -> None:
    done = export(cache, run, run.root, tmp_path / "adapters", "--adapter", "--best")
    assert done.stdout == f"{tmp_path / 'adapters'}\n"
    assert "letters: peer 0 after 5 of 20 rounds, held-out mean reward 0.600" in done.stderr
    assert json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())["r"] == 2
