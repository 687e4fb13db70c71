"""`run`: folders, commands, resuming, and what is not written."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from swarmgame.errors import BadUsage, ExitCode, InvalidManifest, NotWritable, Temporary
from swarmgame.launch.local import RunOptions, run
from swarmgame.launch.local_peers import Machine, free_ports, this_machine
from swarmgame.launch.pod import peer_program
from swarmgame.observability.run_directory import RunDirectory
from swarmgame.swarm.identity import Identity
from swarmgame_api.load import load_manifest
from swarmgame_api.manifest import SwarmGame

FakePeer = Callable[[str], Sequence[str]]


class Runner:
    """Runs the game with fake peers, and keeps the messages."""

    def __init__(self, game: Path, fake_peer: FakePeer) -> None:
        self.options = RunOptions(game=game, runs=game.parent / "runs", report=False)
        self.fake_peer = fake_peer
        self.messages: list[str] = []
        self.prepared = 0

    def __call__(self, fault: str = "good", **changes: Any) -> ExitCode:
        options = replace(self.options, program=lambda processes: self.fake_peer(fault), **changes)
        manifest = load_manifest(options.game, options.overrides)
        return run(manifest, options, check=self._check, prepare=self._prepare, notify=self.messages.append)

    def _check(self, manifest: SwarmGame, folder: Path) -> None:
        assert (folder / "game.yaml").exists()

    def _prepare(self, manifest: SwarmGame, folder: Path) -> None:
        self.prepared += 1

    @property
    def directory(self) -> RunDirectory:
        return RunDirectory.of(self.options.runs, "quick")

    def flags(self, index: int) -> list[str]:
        found: list[str] = json.loads((self.directory.peer(index).root / "flags.json").read_text())
        return found

    def attempts(self, index: int) -> int:
        return int((self.directory.peer(index).root / "attempts").read_text())


@pytest.fixture
def runner(game: Path, fake_peer: FakePeer) -> Runner:
    return Runner(game, fake_peer)


def test_every_peer_gets_its_key_its_port_and_the_addresses_of_the_others(runner: Runner) -> None:
    assert runner(overrides=("spec.peers.replicas=3",)) is ExitCode.DONE
    ids = [Identity.load(runner.directory.peer(index).key).peer for index in range(3)]
    ports = []
    for index in range(3):
        flags = dict(flag[2:].split("=", 1) for flag in runner.flags(index) if "initial-peer" not in flag)
        ports.append(flags["port"])
        assert "--set=spec.peers.replicas=3" in runner.flags(index)
        assert flags["host"] == "127.0.0.1"
        assert (flags["index"], flags["min-replicas"]) == (str(index), "3")
        assert flags["identity"] == str(runner.directory.peer(index).key)
    assert len(set(ports)) == 3
    for index in range(3):
        others = [flag.partition("=")[2] for flag in runner.flags(index) if flag.startswith("--initial-peer")]
        assert others == [f"/ip4/127.0.0.1/tcp/{ports[i]}/p2p/{ids[i]}" for i in range(3) if i != index]


def test_peers_of_the_torch_distributed_backend_get_a_rendezvous_and_no_addresses(
    runner: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runner(overrides=("communication.backend=TorchDistributed", "spec.peers.replicas=3")) is ExitCode.DONE
    assert "reachable" not in capsys.readouterr().out
    given = [[flag for flag in runner.flags(index) if "--set" not in flag] for index in range(3)]
    assert {flag.rpartition(":")[0] for flags in given for flag in flags if "rendezvous" in flag} == {
        "--rendezvous=127.0.0.1"
    }
    assert len({flag for flags in given for flag in flags if "rendezvous" in flag}) == 1
    assert not [flag for flags in given for flag in flags if "initial-peer" in flag or "--port" in flag]


def test_a_run_writes_its_resolved_manifest(runner: Runner) -> None:
    runner(overrides=("game.seed=7",))
    text = runner.directory.manifest.read_text()
    assert "seed: 7" in text
    assert "stageDeadlineSeconds: 120" in text


def test_a_finished_run_says_so_and_starts_nothing(runner: Runner) -> None:
    assert runner() is ExitCode.DONE
    assert runner() is ExitCode.DONE
    assert [runner.attempts(0), runner.attempts(1), runner.prepared] == [1, 1, 1]
    assert any("has finished its 5 rounds" in line for line in runner.messages)


def test_a_finished_run_goes_on_with_more_rounds(runner: Runner) -> None:
    runner()
    assert runner(overrides=("spec.game.maxRounds=8",)) is ExitCode.DONE
    assert len(runner.directory.peer(0).metrics.read_text().splitlines()) == 8


def test_an_unfinished_run_goes_on_with_the_same_identities(runner: Runner) -> None:
    assert runner("always-killed") is ExitCode.TEMPORARY
    before = [runner.directory.peer(index).key.read_bytes() for index in range(2)]
    assert runner() is ExitCode.DONE
    assert [runner.directory.peer(index).key.read_bytes() for index in range(2)] == before
    assert "the run quick goes on from its checkpoints" in runner.messages
    assert [len(runner.directory.peer(index).metrics.read_text().splitlines()) for index in range(2)] == [5, 5]


def test_fresh_removes_what_the_run_has_done(runner: Runner) -> None:
    runner()
    (runner.directory.root / "report.html").write_text("old")
    assert runner(fresh=True) is ExitCode.DONE
    assert runner.attempts(0) == 1
    assert not (runner.directory.root / "report.html").exists()


def test_fresh_does_not_touch_a_folder_that_is_not_a_run(runner: Runner) -> None:
    precious = runner.options.runs / "quick" / "thesis.tex"
    precious.parent.mkdir(parents=True)
    precious.write_text("precious")
    with pytest.raises(BadUsage, match="not a run"):
        runner(fresh=True)
    assert precious.read_text() == "precious"


def test_another_game_under_the_same_name_is_refused_with_the_difference(runner: Runner) -> None:
    runner()
    with pytest.raises(BadUsage, match=r"spec\.game\.seed was 0 and is 7"):
        runner(overrides=("game.seed=7",))
    assert runner(overrides=("game.seed=7",), fresh=True) is ExitCode.DONE


def test_a_run_goes_on_with_other_options_of_its_generation_server(tmp_path: Path) -> None:
    directory = RunDirectory.of(tmp_path, "served")

    def manifest(memory: float, generations: int = 4) -> dict[str, Any]:
        block = {"generations": generations, "sampler": {"engine": "vllm", "gpuMemoryUtilization": memory}}
        return {"spec": {"game": {"trainer": {"use": "grpo", "with": block}}}}

    directory.keep_manifest(manifest(0.4))
    directory.refuse_other_game(manifest(0.2))
    with pytest.raises(BadUsage, match="generations was 4 and is 8"):
        directory.refuse_other_game(manifest(0.4, generations=8))


def test_a_run_goes_on_with_other_exports(tmp_path: Path) -> None:
    directory = RunDirectory.of(tmp_path, "exporting")

    def manifest(**model: Any) -> dict[str, Any]:
        return {"spec": {"game": {}, "model": {"uri": "builtin://tiny", **model}}}

    directory.keep_manifest(manifest())
    directory.refuse_other_game(manifest(export={"everyRounds": 5}))
    with pytest.raises(BadUsage, match=r"spec\.model\.uri was"):
        directory.refuse_other_game(manifest(uri="builtin://tiny?layers=3"))


@pytest.mark.parametrize(
    ("overrides", "what"),
    [((), "its policy, as files"), (("model.uri=builtin://tiny",), "a model of it, for transformers")],
    ids=["without a model", "a model"],
)
def test_a_finished_run_names_the_command_that_exports_it_and_knows_the_games_folder(
    runner: Runner, game: Path, overrides: tuple[str, ...], what: str
) -> None:
    runner(overrides=overrides)
    assert any(line.startswith(f"{what}: swarmgame export ") for line in runner.messages)
    assert runner.directory.source() == game.absolute().parent


def test_two_runs_of_one_name_do_not_collide(runner: Runner) -> None:
    with runner.directory.locked(), pytest.raises(Temporary, match=f"held by another process .*{os.getpid()}"):
        runner()
    assert runner() is ExitCode.DONE


@pytest.mark.parametrize("stage", ["check", "prepare"])
def test_nothing_is_written_for_a_game_that_cannot_be_played(runner: Runner, stage: str, game: Path) -> None:
    def refuse(manifest: SwarmGame, folder: Path) -> None:
        raise InvalidManifest("spec.model.uri", "file:///nowhere", "a model")

    def accept(manifest: SwarmGame, folder: Path) -> None:
        return None

    before = sorted(game.parent.rglob("*"))
    with pytest.raises(InvalidManifest):
        run(
            load_manifest(game),
            runner.options,
            check=refuse if stage == "check" else accept,
            prepare=refuse if stage == "prepare" else accept,
            notify=print,
        )
    assert sorted(game.parent.rglob("*")) == before


def test_a_game_of_no_peers_is_refused(runner: Runner) -> None:
    with pytest.raises(BadUsage, match="--peers"):
        runner(overrides=("peers.replicas=0",))


@pytest.mark.parametrize("name", ["../escape", "A", "", ".", "a/b", "-x", "x" * 64])
def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadUsage, match="cannot name a run"):
        RunDirectory.of(tmp_path, name)


def test_a_pipe_gets_where_to_join_one_line_a_round_and_nothing_else(
    runner: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    runner()
    first, *lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert first["event"] == "reachable"
    assert [line["round"] for line in lines] == list(range(5))
    assert all("event" not in line for line in lines)
    assert {"reward", "peers", "tokens_per_second", "exchange_ms", "missing", "external"} <= set(lines[0])


def test_a_resumed_run_writes_only_its_own_rounds(runner: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    runner()
    capsys.readouterr()
    runner(overrides=("spec.game.maxRounds=7",))
    assert [json.loads(line).get("round") for line in capsys.readouterr().out.splitlines()] == [None, 5, 6]


def test_a_run_ends_with_its_report(runner: Runner) -> None:
    assert runner(report=True) is ExitCode.DONE
    assert runner.directory.report.exists()
    assert json.loads(runner.directory.summary.read_text())["rounds"] == 5
    assert any(line.startswith("report: ") and line.endswith("report.html") for line in runner.messages)


def test_ctrl_c_leaves_cleanly_and_running_again_resumes(game: Path, fake_peer: FakePeer) -> None:
    script = textwrap.dedent(
        f"""
        import sys
        from pathlib import Path
        from swarmgame.launch.local import RunOptions, run
        from swarmgame_api import load_manifest
        command = {list(fake_peer("endless"))!r}
        runs = Path({str(game.parent / "runs")!r})
        options = RunOptions(Path({str(game)!r}), runs=runs, report=False, program=lambda n: command)
        nothing = lambda *_: None
        notify = lambda line: print(line, file=sys.stderr)
        sys.exit(run(load_manifest(options.game), options, check=nothing, prepare=nothing, notify=notify))
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    directory = RunDirectory.of(game.parent / "runs", "quick")
    deadline = time.monotonic() + 60
    while not all((directory.peer(index).root / "ready").exists() for index in range(2)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == ExitCode.STOPPED, errors
    assert "run the same command again to go on" in errors
    progress = directory.progress()
    assert progress is not None
    assert not progress.finished
    assert Runner(game, fake_peer)() is ExitCode.DONE


def test_free_ports_are_different() -> None:
    assert len(set(free_ports(50))) == 50


def test_several_ranks_are_started_by_torchrun() -> None:
    assert peer_program(1)[1:] == ("-m", "swarmgame", "peer")
    assert peer_program(2)[1:] == (
        "-m",
        "swarmgame.launch.loopback_torchrun",
        "--nproc-per-node=2",
        "-m",
        "swarmgame",
        "peer",
    )


def test_every_process_gets_at_least_one_thread() -> None:
    machine = this_machine()
    assert machine.threads_of(1, 1) == len(os.sched_getaffinity(0))
    assert machine.threads_of(1000, 2) == 1


def keys(runner: Runner) -> list[bytes]:
    return [runner.directory.peer(index).key.read_bytes() for index in range(2)]


def test_a_fresh_run_of_the_same_manifest_has_the_same_peers_and_another_seed_has_others(runner: Runner) -> None:
    runner()
    first = keys(runner)
    runner(fresh=True)
    assert keys(runner) == first
    assert len(set(first)) == 2
    runner(fresh=True, overrides=("game.seed=1",))
    assert not set(keys(runner)) & set(first)


@pytest.mark.parametrize("options", [{"host": "0.0.0.0"}, {"random_keys": True}])
def test_keys_are_secret_where_other_machines_can_connect_or_the_user_asks_for_it(
    runner: Runner, options: dict[str, Any]
) -> None:
    runner(**options)
    first = keys(runner)
    assert ("--host=127.0.0.1" in runner.flags(0)) == ("host" not in options)
    runner(fresh=True, **options)
    assert not set(keys(runner)) & set(first)


def test_a_run_that_is_opened_later_gets_new_keys_and_says_so(runner: Runner) -> None:
    runner()
    derived = keys(runner)
    runner(host="0.0.0.0", overrides=("spec.game.maxRounds=6",))
    secret = keys(runner)
    assert not set(secret) & set(derived)
    assert any("new, random keys" in line and "0.0.0.0" in line for line in runner.messages)
    runner(overrides=("spec.game.maxRounds=7",))
    assert keys(runner) == secret


def test_a_stage_waits_for_all_peers_of_a_local_run_unless_the_manifest_names_a_quorum(runner: Runner) -> None:
    runner()
    assert "--set=spec.game.progression.quorum=100%" in runner.flags(0)
    assert "quorum: 100%" in runner.directory.manifest.read_text()
    runner(fresh=True, overrides=("game.progression.quorum=50%",))
    assert [flag for flag in runner.flags(0) if "quorum" in flag] == ["--set=game.progression.quorum=50%"]


def test_a_run_that_others_can_join_keeps_the_default_quorum(runner: Runner) -> None:
    runner(host="0.0.0.0")
    assert not [flag for flag in runner.flags(0) if "quorum" in flag]


@pytest.mark.parametrize("host", ["nowhere", "192.0.2.1", "2001:db8::1", ""])
def test_a_host_that_is_no_address_of_this_machine_is_refused(runner: Runner, host: str) -> None:
    with pytest.raises(BadUsage, match="--host"):
        runner(host=host)
    assert not runner.options.runs.exists()


def test_peers_take_the_cuda_devices_in_turn(runner: Runner) -> None:
    machine = Machine(cores=4, devices=("2", "5", "7"))
    runner(machine=lambda: machine, overrides=("spec.peers.replicas=4", "spec.peers.processesPerPeer=1"))
    found = [(runner.directory.peer(index).root / "devices").read_text() for index in range(4)]
    assert found == ["2", "5", "7", "2"]


def test_a_pipe_gets_a_json_line_for_a_process_that_ended_too_early(
    runner: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runner("temporary-once") is ExitCode.DONE
    shown = capsys.readouterr()
    events = [line for line in map(json.loads, shown.out.splitlines()) if "event" in line]
    assert [(each["event"], each.get("peer"), each.get("code"), each.get("message")) for each in events] == [
        ("reachable", None, None, None),
        ("peer-ended", 0, 75, "the port is taken"),
    ]
    ids = [Identity.load(runner.directory.peer(index).key).peer for index in range(2)]
    assert [address.rpartition("/")[2] for address in events[0]["addresses"]] == ids
    assert events[0]["join"] == f"swarmgame join {runner.options.game} --initial-peer {events[0]['addresses'][0]}"
    assert f"lets other machines join):\n  {events[0]['join']}\n" in shown.err
    assert "peer 0 ended with exit code 75; restart 1 of at most 2\n  the port is taken\n  log: " in shown.err


def test_a_folder_of_runs_that_cannot_be_written_is_one_sentence(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *arguments: Any, **options: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(NotWritable, match=r"runs/quick cannot be written: the file system is read-only; make it"):
        runner()


def test_a_report_that_does_not_fit_on_the_disk_does_not_hide_how_the_run_ended(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(directory: RunDirectory) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("swarmgame.report.write_report", full)
    assert runner("always-killed", report=True) is ExitCode.TEMPORARY
    assert any("no report: a file cannot be written: no space is left" in line for line in runner.messages)
    assert any("was killed by SIGKILL, after 2 restarts" in line for line in runner.messages)
