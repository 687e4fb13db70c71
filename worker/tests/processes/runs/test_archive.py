"""A swarm's rollouts are shown, its weights are made again, and one changed byte is named."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from running import EXAMPLES, ROOT, metrics, output_of, run_to_end

from swarmgame.archive.files import round_files
from swarmgame.archive.reader import load

pytestmark = pytest.mark.timeout(600)
GAME = EXAMPLES / "01-quickstart" / "game.yaml"


def test_a_swarms_rollouts_are_shown_replayed_and_a_flipped_byte_is_named(tmp_path: Path) -> None:
    small = {
        "game.data.with.questionsPerRound": "4",
        "game.trainer.with.generations": "4",
        "game.evaluation.questions": "4",
        "game.evaluation.samples": "1",
    }
    changes = [f"--set={path}={value}" for path, value in small.items()]
    options = ("--peers", "2", *changes, "--runs", tmp_path, "--name", "quickstart")
    run_to_end("run", GAME, "--rounds", "2", *options, "--no-report")
    # The resume begins at the checkpoint of round 2, and the archive goes on.
    run_to_end("run", GAME, "--rounds", "4", *options)
    run = tmp_path / "quickstart"
    archives = [run / "peers" / str(index) / "rollouts" for index in range(2)]
    assert [[file.round for file in round_files(archive)] for archive in archives] == [[0, 1, 2, 3]] * 2
    assert "<h2>Rollouts</h2>" in (run / "report.html").read_text()

    # 1. what one peer generated is what the other received
    generated, received = (load(round_files(archive)[2]).rows.to_pylist() for archive in archives)
    author = next(row["author"] for row in generated if row["own"])
    ours = {(row["question"], row["position"]): row["text"] for row in generated if row["own"]}
    theirs = {(row["question"], row["position"]): row["text"] for row in received if row["author"] == author}
    assert theirs
    assert theirs.items() <= ours.items()

    # 2. on a pipe: one JSON line for each
    shown = run_to_end("rollouts", "quickstart", "--runs", tmp_path, "--peer", "1", "--round", "2")
    lines = [json.loads(line) for line in shown.stdout.splitlines()]
    assert len(lines) == len(received)
    assert {line["outcome"] for line in lines} & {"trained", "zero-advantage"}
    (worst,) = map(json.loads, run_to_end("rollouts", run, "--worst", "1", "--env", "products").stdout.splitlines())
    assert (worst["environment"], worst["own"]) == ("products", True)

    # 3. the weights again, from the initial model
    for index in range(2):
        replayed = run_to_end("replay", "quickstart", "--runs", tmp_path, "--peer", str(index))
        assert metrics(run, index)[-1]["weights"] in replayed.stdout
        assert "4 rounds (0 to 3) from the initial model: equal weights" in replayed.stdout
        heads = [load(file).head["contributions"] for file in round_files(archives[index])]
        total = sum(not each["own"] for head in heads for each in head)
        assert f"{total} of {total} received contributions are as their authors signed them" in replayed.stdout

    alone = run / "peers" / "1"
    assert "equal weights" in run_to_end("replay", alone, "--game", run / "game.yaml", "--rounds", ":2").stdout
    assert "--game" in run_to_end("replay", alone, expect=64).stderr
    assert run_to_end("rollouts", alone, "--peer", "1", "--round", "2").stdout == shown.stdout

    # 4. the guide's own commands and code
    guide = (ROOT / "docs" / "guide" / "rollouts.md").read_text()
    commands = [line for block in re.findall(r"```sh\n(.*?)```", guide, re.DOTALL) for line in block.splitlines()]
    assert len(commands) == 6
    for line in commands:
        program, *arguments = shlex.split(line)
        assert program == "swarmgame"
        run_to_end(*arguments, "--runs", tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    code = code.replace('"runs/', f'"{tmp_path}/')
    assert output_of(code, tmp_path).strip()

    # 5. one flipped byte
    file = round_files(archives[0])[1]
    data = bytearray(file.path.read_bytes())
    data[data.index(b"PAR1", 4) // 3] ^= 1
    file.path.write_bytes(data)
    refused = run_to_end("replay", "quickstart", "--runs", tmp_path, "--peer", "0", expect=65)
    assert "round 1:" in refused.stderr
    assert "damaged: column" in refused.stderr
    assert "author 16Uiu2" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_an_archive_that_the_manifest_switches_off_is_missed_with_a_sentence(tmp_path: Path) -> None:
    run_to_end(
        "run", GAME, "--peers", "1", "--rounds", "1", "--runs", tmp_path, "--name", "off", "--no-report",
        "--set", "observability.rollouts.enabled=false", "--set", "game.trainer.with.generations=2",
        "--set", "game.evaluation=null",
    )  # fmt: skip
    assert not (tmp_path / "off" / "peers" / "0" / "rollouts").exists()
    for command in ("rollouts", "replay"):
        refused = run_to_end(command, "off", "--runs", tmp_path, expect=65)
        assert "spec.observability.rollouts.enabled is false" in refused.stderr
