"""`swarmgame export` as a user runs it; the hub is a stand-in over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from exported_runs import add_checkpoint, add_rounds, files_of, make_run
from hub_stand_in import TOKEN, HubStandIn, hub_stand_in
from language_rounds import trainer
from running import process_to_end, run_to_end

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


def test_a_model_is_pushed_as_private_and_no_token_is_shown(
    cache: Path, run: RunDirectory, hub: HubStandIn, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    # A process, since the address of the hub is read when its client is imported.
    arguments = ("letters", folder, "--push", "me/letters", "--runs", run.root.parent)
    variables = {"SWARMGAME_CACHE": str(cache), "HF_TOKEN": TOKEN, "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0"}
    done = process_to_end("export", *arguments, **variables)
    assert "Traceback" not in done.stderr
    assert done.stdout.splitlines() == [str(folder), f"{hub.address}/me/letters"]
    assert hub.models["me/letters"]["private"] is True
    assert hub.models["me/letters"]["files"] == files_of(folder)
    assert hub.commits == ["letters: peer 0 after 5 rounds"]
    assert TOKEN not in done.stdout + done.stderr
    assert all(TOKEN.encode() not in data for data in files_of(folder).values())


def test_the_command_names_the_policy_and_prints_the_folder(cache: Path, run: RunDirectory, tmp_path: Path) -> None:
    done = run_to_end("export", run.root, tmp_path / "adapters", "--adapter", "--best", SWARMGAME_CACHE=str(cache))
    assert done.stdout == f"{tmp_path / 'adapters'}\n"
    assert "letters: peer 0 after 5 of 20 rounds, held-out mean reward 0.600" in done.stderr
    assert json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())["r"] == 2
