"""Exit codes and messages: a mistake is one readable message, and nothing is started or written."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from running import run_to_end

from swarmgame import __version__
from swarmgame.cli.main import run_command
from swarmgame.errors import BadData, BadUsage, ExitCode, InvalidManifest, Refused, Temporary
from swarmgame.swarm.identity import Identity

pytestmark = pytest.mark.timeout(600)

PEER = Identity.named("a member").peer
GAME = """
apiVersion: swarmgame.dev/v1alpha1
kind: SwarmGame
metadata: {name: small}
spec:
  game:
    maxRounds: 1
    data:
      use: reasoning-gym
      with: {environments: [{name: chain_sum}], questionsPerRound: 1}
    rewards: {use: reasoning-gym}
    trainer: {use: grpo, with: {generations: 2, maxNewTokens: 2}}
  model: {uri: "builtin://tiny"}
  peers: {replicas: 1}
"""


def swarmgame(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
        "NO_COLOR": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        **variables,
    }
    command = [sys.executable, "-m", "swarmgame", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500, check=False
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "game.yaml").write_text(GAME)
    return tmp_path


@pytest.mark.parametrize(
    ("override", "path", "hint"),
    [
        ("spec.game.maxRound=3", "spec.game.maxRound", "maxRounds"),
        ("spec.communication.backend=Hivemnid", "spec.communication.backend", "Hivemind"),
        ("spec.game.progression.quorum=0%", "spec.game.progression.quorum", "%"),
        ("spec.game.data.use=nowhere.at_all:Data", "spec.game.data.use", "nowhere.at_all:Data"),
        ("spec.game.data.with.environments[0].name=chain_sun", "spec.game.data.with.environments[0].name", "chain_sum"),
        ("spec.game.trainer.with.generations=1", "spec.game.trainer.with.generations", "2"),
        ("spec.model.uri=file:///nowhere/at/all", "spec.model.uri", "file:///nowhere/at/all"),
    ],
    ids=[
        "unknown key",
        "wrong enum",
        "quorum of 0 %",
        "missing module",
        "unknown environment",
        "wrong option of a component",
        "no such model",
    ],
)
def test_a_bad_manifest_is_one_message_and_code_78_and_leaves_no_trace(
    folder: Path, override: str, path: str, hint: str
) -> None:
    done = run_to_end("run", "game.yaml", "--set", override, folder=folder, expect=ExitCode.BAD_CONFIG)
    assert done.stdout == ""
    messages = [line for line in done.stderr.splitlines() if line.startswith("game.yaml: ")]
    assert len(messages) == 1
    assert path in messages[0]
    assert hint in messages[0]
    assert [each.name for each in folder.rglob("*")] == ["game.yaml"]


@pytest.mark.parametrize("command", ["validate", "run"])
def test_a_model_of_the_hub_without_a_network_is_one_message(folder: Path, command: str) -> None:
    away = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(folder / ".cache")}
    done = swarmgame(folder, command, "game.yaml", "--set", "spec.model.uri=hf://org/name", **away)
    assert done.returncode == ExitCode.BAD_CONFIG, done.stderr
    assert done.stderr == (
        'game.yaml: spec.model.uri is "hf://org/name"; expected a model on the hub or in the local cache: it is not '
        "cached and the hub was not reached\n"
    )
    assert done.stdout == ""


def test_a_dataset_of_the_hub_without_a_network_is_one_message_at_once(folder: Path) -> None:
    away = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(folder / ".cache"), "SWARMGAME_CACHE": str(folder)}
    data = 'spec.game.data={use: text, with: {source: "hf://org/name"}}'
    done = swarmgame(folder, "validate", "game.yaml", "--set", data, "--set", "game.rewards={use: exact}", **away)
    assert done.returncode == ExitCode.TEMPORARY, done.stderr
    assert done.stderr == (
        f"the hub cannot be reached for hf://org/name, and {folder}/datasets has no copy of it: check the network, "
        "HF_ENDPOINT and HF_HUB_OFFLINE, or load it once where the hub can be reached\n"
    )


@pytest.mark.parametrize(
    ("option", "taken"),
    [("--port", "p2p daemon does not start on port"), ("--http-port", "cannot listen on 127.0.0.1")],
)
def test_a_port_that_is_taken_is_one_message_and_code_75(folder: Path, option: str, taken: str) -> None:
    with socket.socket() as other:
        other.bind(("0.0.0.0" if option == "--port" else "127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        done = swarmgame(folder, "peer", "game.yaml", "--directory", "peer", option, port, "--min-replicas", "1")
    assert done.returncode == ExitCode.TEMPORARY, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert taken in last
    assert port in last


def test_a_peer_that_waits_for_others_has_shown_where_they_join(folder: Path) -> None:
    waiting = ("--min-replicas", "2", "--pre-running-deadline-seconds", "1", "--set", "game.seed=7")
    announced = ("--announce", "/dns4/me.example.org/tcp/31000")
    done = swarmgame(folder, "peer", "game.yaml", "--directory", "peer", *waiting, *announced)
    assert done.returncode == ExitCode.TEMPORARY, done.stderr
    (shown,) = map(json.loads, done.stdout.splitlines())
    peer = Identity.load(folder / "peer" / "peer.key").peer
    assert shown == {
        "event": "reachable",
        "addresses": [f"/dns4/me.example.org/tcp/31000/p2p/{peer}"],
        "join": f"swarmgame join game.yaml --set=game.seed=7 --initial-peer {shown['addresses'][0]}",
    }
    logged = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert any(shown["join"] in line["event"] for line in logged)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["run", "game.yaml", "--peers", "0"],
        ["run", "game.yaml", "--peers", "many"],
        ["run", "game.yaml", "--name", "../elsewhere"],
        ["rum", "game.yaml"],
        ["join", "game.yaml"],
        ["join", "game.yaml", "--initial-peer", "192.0.2.1:31000"],
        ["join", "game.yaml", "--initial-peer", f"/ip4/192.0.2.7/tcp/1/p2p/{PEER}", "--announce", "me.org:31000"],
        ["report", "nothing"],
        ["peer", "game.yaml"],
        [],
    ],
    ids=lambda arguments: " ".join(arguments) or "nothing",
)
def test_a_command_line_that_makes_no_sense_is_code_64(
    folder: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert run_command(arguments) == ExitCode.BAD_USAGE
    assert [each.name for each in folder.rglob("*")] == ["game.yaml"]


@pytest.mark.parametrize("command", ["run", "validate", "join", "peer"])
def test_a_file_that_is_not_there_is_named(folder: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--directory", str(folder / "peer")] if command == "peer" else []
    assert run_command([command, str(folder / "gone.yaml"), *more]) == ExitCode.BAD_CONFIG
    assert f"{folder / 'gone.yaml'}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidManifest("spec.x", 1, "2"), 78),
        (BadUsage("no"), 64),
        (BadData("no"), 65),
        (Temporary("no"), 75),
        (Refused("no"), 77),
        (KeyboardInterrupt(), 143),
    ],
)
def test_every_kind_of_error_has_its_code_and_shows_its_message_alone(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fail(directory: object) -> None:
        raise error

    monkeypatch.setattr("swarmgame.report.write_report", fail)
    (tmp_path / "peers").mkdir()
    assert run_command(["report", str(tmp_path)]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == (f"{error}\n" if str(error) else "stopped\n")


def test_an_internal_error_is_raised_with_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(directory: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("swarmgame.report.write_report", fail)
    (tmp_path / "peers").mkdir()
    with pytest.raises(ZeroDivisionError):
        run_command(["report", str(tmp_path)])


def test_help_loads_nothing_heavy(folder: Path) -> None:
    script = (
        "import sys; from swarmgame.cli.main import run_command; code = run_command(['--help']);"
        "heavy = {'torch', 'transformers', 'hivemind', 'matplotlib', 'aiohttp', 'reasoning_gym', 'datasets', 'numpy'};"
        "heavy &= set(sys.modules);"
        "print(heavy, file=sys.stderr); sys.exit(code or len(heavy))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr.strip()) == (0, "set()")
    for command in ("run", "join", "validate", "report", "env", "new", "peer"):
        assert f" {command} " in done.stdout


@pytest.mark.parametrize("command", ["run", "join", "validate", "report", "peer"])
def test_every_command_teaches_by_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([command, "--help"]) == ExitCode.DONE
    shown = capsys.readouterr().out
    assert "Examples" in shown
    assert f"swarmgame {command} " in shown


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--version"]) == ExitCode.DONE
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_read_only_disk_is_one_message_and_code_75_wherever_a_command_meets_it(
    number: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "peers" / "0").mkdir(parents=True)
    (tmp_path / "peers" / "0" / "metrics.jsonl").write_text('{"round": 0}\n')

    def refuse(path: Path, text: str, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_text", refuse)
    assert run_command(["report", str(tmp_path)]) == ExitCode.TEMPORARY
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert f"{tmp_path / 'summary.json'} cannot be written: " in shown.err
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
