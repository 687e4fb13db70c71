"""The fork server: a peer that it starts is as one that a command starts, and none outlives the server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import EXAMPLES, fork_server, wait_until

from swarmgame.launch import fork_server as fork_server_module
from swarmgame.launch.fork_server import ForkedProcess, PeerForkServer, can_fork, modules_of
from swarmgame.launch.peer_process import ChildProcess
from swarmgame.launch.pod import peer_program
from swarmgame_api.load import load_manifest

STAND_IN = """
import atexit, json, os, random, sys, time
import numpy
import swarmgame.cli.main

def main():
    atexit.register(lambda: print("at exit", flush=True))
    facts = {
        "arguments": sys.argv, "environment": dict(os.environ), "group": os.getpgid(0), "folder": os.getcwd(),
        "random": [random.random(), numpy.random.random()], "name": open("/proc/self/comm").read(),
    }
    print(json.dumps(facts), flush=True)
    print("an error", file=sys.stderr, flush=True)
    if "--wait" in sys.argv:
        time.sleep(600)
    sys.exit(7)

swarmgame.cli.main.main = main
"""
"""A module that replaces the function which runs a peer."""
MODULES = ["stand_in_for_a_peer"]


class Server:
    """A fork server whose peers are stand-ins, and its messages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.messages: list[str] = []
        self.server = PeerForkServer(MODULES, self.messages.append)

    def start(self, index: int, *arguments: str, **environment: str) -> ChildProcess:
        self.output(index).parent.mkdir(exist_ok=True)
        return self.server.start([*peer_program(1), *arguments], {"PATH": "", **environment}, self.output(index))

    def output(self, index: int) -> Path:
        return self.folder / str(index) / "output.log"

    def facts(self, index: int) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.output(index).read_text().splitlines()[0])
        return found


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    (tmp_path / f"{MODULES[0]}.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    made = Server(tmp_path)
    with made.server:
        yield made
    wait_until(lambda: not alive(made.server.pid), "the server has ended")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_fork_has_the_arguments_the_environment_the_output_and_the_exit_code_of_a_command(server: Server) -> None:
    (server.folder / "3").mkdir()
    server.output(3).write_text("")
    peer = server.start(3, "game.yaml", "--index=3", PEER_OF_TEST="3")
    assert isinstance(peer, ForkedProcess)
    assert peer.wait() == 7
    assert peer.poll() == 7
    facts = server.facts(3)
    assert facts["arguments"][1:] == ["peer", "game.yaml", "--index=3"]
    assert facts["environment"] == {"PATH": "", "PEER_OF_TEST": "3"}
    assert (facts["group"], facts["folder"], facts["name"]) == (peer.pid, os.getcwd(), "peer-3\n")
    assert server.output(3).read_text().splitlines()[1:] == ["an error", "at exit"]
    again = server.start(3)
    assert (again.wait(), server.output(3).read_text().count("at exit")) == (7, 2), "output is appended"
    assert server.messages == []


def test_forks_draw_different_random_numbers(server: Server) -> None:
    for peer in [server.start(index) for index in range(2)]:
        peer.wait()
    (first, second), (third, fourth) = (server.facts(index)["random"] for index in range(2))
    assert first != third
    assert second != fourth


def test_a_fork_that_is_ended_by_a_signal_has_its_number_and_the_others_go_on(server: Server) -> None:
    peers = [server.start(index, "--wait") for index in range(3)]
    peers[0].terminate()
    assert peers[0].wait() == -signal.SIGTERM
    os.killpg(peers[1].pid, signal.SIGKILL)
    assert peers[1].wait() == -signal.SIGKILL
    peers[0].terminate()  # it has ended, so nothing happens
    assert peers[2].poll() is None


def test_when_the_server_dies_its_peers_die_with_it_and_the_next_is_started_as_a_command(server: Server) -> None:
    peers = [server.start(index, "--wait") for index in range(2)]
    os.kill(server.server.pid, signal.SIGKILL)
    assert [peer.wait() for peer in peers] == [-signal.SIGKILL] * 2
    wait_until(lambda: not any(alive(peer.pid) for peer in peers), "the kernel has ended both")
    third = server.start(2, "--help", PYTHONPATH=os.environ["PYTHONPATH"])
    assert isinstance(third, subprocess.Popen)
    assert third.wait() == 0
    assert "Usage: swarmgame peer" in server.output(2).read_text()
    assert server.messages == [
        "the fork server of the peers ended with code -9; peers are started as commands from now on"
    ]


def test_a_server_that_cannot_import_its_modules_leaves_the_peers_to_commands(tmp_path: Path) -> None:
    messages: list[str] = []
    with PeerForkServer(["no_such_module_at_all"], messages.append) as server:
        peer = server.start([*peer_program(1), "--help"], dict(os.environ), tmp_path / "output.log")
        assert isinstance(peer, subprocess.Popen)
        assert peer.wait() == 0
    assert len(messages) == 1


def test_an_environment_too_large_for_a_request_is_given_to_a_command(server: Server) -> None:
    large = {f"VARIABLE_{number}": "x" * 100_000 for number in range(10)}
    peer = server.start(0, "--help", PYTHONPATH=os.environ["PYTHONPATH"], **large)
    assert isinstance(peer, subprocess.Popen)
    assert peer.wait() == 0
    assert isinstance(server.start(1), ForkedProcess)


def test_what_is_no_peer_of_one_process_is_started_as_a_command(server: Server, tmp_path: Path) -> None:
    other = server.server.start([sys.executable, "-c", "print('other')"], os.environ, tmp_path / "output.log")
    assert isinstance(other, subprocess.Popen)
    assert (other.wait(), (tmp_path / "output.log").read_text()) == (0, "other\n")


def test_neither_the_server_nor_a_peer_outlives_a_runner_that_is_killed(server: Server, tmp_path: Path) -> None:
    runner = textwrap.dedent(
        """
        import os, sys, time
        from pathlib import Path
        from swarmgame.launch.fork_server import PeerForkServer
        from swarmgame.launch.pod import peer_program
        server = PeerForkServer(["stand_in_for_a_peer"], print)
        peer = server.start([*peer_program(1), "--wait"], {}, Path(sys.argv[1]))
        print(server.pid, peer.pid, flush=True)
        time.sleep(600)
        """
    )
    command = [sys.executable, "-c", runner, str(tmp_path / "output.log")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 2
        process.kill()
    wait_until(lambda: not any(map(alive, pids)), "both have ended")


def test_the_imports_of_all_peers_start_no_thread_in_the_server(tmp_path: Path) -> None:
    """A fork has only the thread that made it: a lock that another one held would never be released. The allocator of
    pyarrow has a thread too, and locks that it takes and releases around a fork.
    """
    server = fork_server()
    assert server.start([*peer_program(1), "--help"], os.environ, tmp_path / "output.log").wait() == 0
    threads = [(thread / "comm").read_text() for thread in Path(f"/proc/{server.pid}/task").iterdir()]
    assert len([name for name in threads if name != "jemalloc_bg_thd\n"]) == 1


def test_the_server_imports_what_the_components_need_and_no_module_of_the_author() -> None:
    quickstart = modules_of(load_manifest(EXAMPLES / "01-quickstart" / "game.yaml"))
    assert {"swarmgame.trainer.grpo.trainer", "swarmgame.swarm.transports.libp2p"} <= {*quickstart}
    assert "transformers.models.llama.modeling_llama" in quickstart
    multistage = modules_of(load_manifest(EXAMPLES / "02-multistage-math" / "game.yaml"))
    assert not [module for module in multistage if module.startswith("multistage")]
    digits = modules_of(load_manifest(EXAMPLES / "03-digits" / "game.yaml"))
    assert not [module for module in digits if module.startswith("transformers")]


@pytest.mark.parametrize(
    ("override", "forks"),
    [
        ("game.seed=1", True),
        ("peers.processesPerPeer=1", True),
        ("peers.processesPerPeer=2", False),
        ("communication.backend=TorchDistributed", False),
    ],
)
def test_peers_of_several_ranks_and_of_a_closed_world_are_commands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, override: str, forks: bool
) -> None:
    game = load_manifest(EXAMPLES / "03-digits" / "game.yaml", (override,))
    monkeypatch.setattr(fork_server_module, "ACCELERATORS", (tmp_path / "nvidiactl",))
    assert can_fork(game) is forks
    (tmp_path / "nvidiactl").touch()
    assert not can_fork(game)
