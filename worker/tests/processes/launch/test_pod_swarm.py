"""Pods without a cluster: the commands of the worker's image, with the environment that the operator gives them, as
processes.

One key and one port a pod, as its Secret and its Service give it; everything else by the environment.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import psutil
import pytest
import yaml
from listening import has_ipv6
from running import EXAMPLES, TIMEOUT_SECONDS, descendants, kill, lines, wait_until

from swarmgame.launch.local_peers import free_ports
from swarmgame.swarm.identity import Identity, dial_address
from swarmgame_common.parent_death import VARIABLE

pytestmark = pytest.mark.timeout(600)
DIGITS = EXAMPLES / "03-digits" / "game.yaml"


class Cluster:
    """A game's pods, in a folder."""

    def __init__(self, folder: Path, processes: int = 1, **game: Any) -> None:
        self.folder = folder
        data = yaml.safe_load(DIGITS.read_text())
        data["spec"]["game"] |= {"maxRounds": 1_000_000, **game}
        data["spec"]["game"]["data"]["with"]["questionsPerRound"] = 256
        data["spec"]["storage"] = {"checkpoints": {"everyRounds": 1}}
        data["spec"]["peers"] = {"replicas": 4, "minReplicas": 2, "processesPerPeer": processes}
        data["spec"]["preRunningDeadlineSeconds"] = 600
        self.game = folder / "game.yaml"
        self.game.write_text(yaml.safe_dump(data))
        self.key = folder / "bootnode.key"
        self.port, self.http = free_ports(2)
        bootnode = Identity.load_or_create(self.key).peer
        self.hosts = ("127.0.0.1", "::1") if has_ipv6() else ("127.0.0.1",)
        self.bootnodes = [dial_address(bootnode, self.port, host) for host in self.hosts]
        self.key.chmod(0o440)
        self.stack = ExitStack()

    def start(self, command: str, log: str, **environment: str) -> subprocess.Popen[bytes]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("SWARMGAME_")}
        common = {
            VARIABLE: "1",
            "SWARMGAME_GAME": str(self.game),
            "SWARMGAME_TERMINATION_LOG": str(self.folder / f"{log}.termination"),
            "OMP_NUM_THREADS": "1",
        }
        with (self.folder / f"{log}.log").open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "swarmgame", "pod", command],
                env=inherited | common | environment,
                stdout=output,
                stderr=output,
                cwd=self.folder,
                start_new_session=True,
            )
        self.stack.callback(_end, process)
        return process

    def start_bootnode(self) -> subprocess.Popen[bytes]:
        where = {
            "SWARMGAME_PORT": str(self.port),
            "SWARMGAME_HTTP_PORT": str(self.http),
            "SWARMGAME_IDENTITY": str(self.key),
        }
        process = self.start("bootnode", "bootnode", **where)
        wait_until(lambda: self.ready(self.http), "the bootnode is ready")
        return process

    def start_peer(self, index: int, **environment: str) -> subprocess.Popen[bytes]:
        pod = {
            "JOB_COMPLETION_INDEX": str(index),
            "SWARMGAME_DIRECTORY": str(self.directory(index)),
            "SWARMGAME_IDENTITY": str(self.folder / f"peer-{index}.key"),
            # Pods listen on both families, so the peers meet whichever way each reaches the bootnode.
            "SWARMGAME_INITIAL_PEERS": self.bootnodes[index % len(self.bootnodes)],
            "SWARMGAME_PORT": "0",
            "SWARMGAME_HTTP_PORT": "0",
        }
        return self.start("peer", f"peer-{index}", **pod | environment)

    def directory(self, index: int) -> Path:
        return self.folder / "checkpoints" / str(index)

    def rows(self, index: int) -> list[dict[str, Any]]:
        return lines(self.directory(index) / "metrics.jsonl")

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def termination_message(self, name: str) -> str:
        file = self.folder / f"{name}.termination"
        return file.read_text() if file.exists() else ""

    @staticmethod
    def ready(port: int) -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except (HTTPError, URLError, OSError):
            return False


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    for pid in (*descendants(process.pid), process.pid):
        kill(pid)
    process.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    with made.stack:
        yield made


def get(port: int, path: str) -> Mapping[str, Any] | str:
    with urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        text = answer.read().decode()
    return dict(json.loads(text)) if text.startswith("{") else text


def test_a_bootnode_is_small_is_no_member_and_is_found_again_after_a_restart(cluster: Cluster) -> None:
    bootnode = cluster.start_bootnode()
    boots = Identity.load(cluster.key).peer
    loaded = Path(f"/proc/{bootnode.pid}/maps").read_text()
    assert "libtorch" not in loaded
    assert psutil.Process(bootnode.pid).memory_info().rss < 150 << 20

    peers = [cluster.start_peer(index) for index in range(2)]
    wait_until(lambda: all(len(cluster.rows(index)) >= 3 for index in range(2)), "both play")
    assert {len(row["members"]) for row in cluster.rows(0)} == {2}
    assert all(boots not in row["members"] for row in cluster.rows(0))
    wait_until(
        lambda: "swarmgame_bootnode_members 2.0" in str(get(cluster.http, "/metrics")),
        "the bootnode keeps both heartbeats",
    )

    bootnode.kill()
    bootnode.wait()
    played = len(cluster.rows(0))
    wait_until(lambda: len(cluster.rows(0)) >= played + 3, "they play on without it", None)
    cluster.start_bootnode()
    wait_until(
        lambda: "swarmgame_bootnode_members 2.0" in str(get(cluster.http, "/metrics")), "both have found it again"
    )
    # The bootnode is all that the third knows.
    third = cluster.start_peer(2)
    wait_until(lambda: len(cluster.rows(2)) >= 2, "the third plays")
    assert len(cluster.rows(2)[-1]["members"]) == 3
    assert cluster.rows(2)[0]["round"] > 0, "it came into a game that was on, not into one of its own"

    for process in (*peers, third):
        process.send_signal(signal.SIGTERM)
    assert [process.wait(TIMEOUT_SECONDS) for process in (*peers, third)] == [143] * 3
    assert boots not in cluster.rows(1)[-1]["members"]


def test_a_bootnode_leaves_nothing_behind_when_it_is_stopped(cluster: Cluster) -> None:
    bootnode = cluster.start_bootnode()
    status = get(cluster.http, "/status")
    assert isinstance(status, dict)
    assert any(
        address.endswith(f"/tcp/{cluster.port}/p2p/{Identity.load(cluster.key).peer}")
        for address in status["addresses"]
    )
    children = descendants(bootnode.pid)
    assert children, "the p2p daemon"
    bootnode.send_signal(signal.SIGTERM)
    assert bootnode.wait(TIMEOUT_SECONDS) == 143
    wait_until(lambda: not any(map(_runs, children)), "the p2p daemon has ended")
    assert cluster.termination_message("bootnode") == ""


def test_a_bootnode_whose_daemon_dies_ends_with_the_temporary_code(cluster: Cluster) -> None:
    bootnode = cluster.start_bootnode()
    kill(descendants(bootnode.pid)[0])
    assert bootnode.wait(60) == 75
    assert "the p2p daemon ended" in cluster.termination_message("bootnode")


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path, processes=2, progression={"stageDeadlineSeconds": 600})
    with made.stack:
        yield made


def test_two_ranks_of_a_pod_stop_together_save_their_state_and_resume(pair: Cluster) -> None:
    pair.start_bootnode()
    peers = [pair.start_peer(index) for index in range(2)]
    wait_until(lambda: all(len(pair.rows(index)) >= 2 for index in range(2)), "both play")
    below = [pid for process in peers for pid in descendants(process.pid)]
    assert len(below) > 4, "two ranks of each peer, and what they started"
    for process in peers:
        process.send_signal(signal.SIGTERM)
    assert [process.wait(120) for process in peers] == [143] * 2
    wait_until(lambda: not any(map(_runs, below)), "no process of theirs is left")
    before = [pair.rows(index)[-1]["round"] for index in range(2)]

    peers = [pair.start_peer(index) for index in range(2)]
    wait_until(lambda: all(pair.rows(index)[-1]["round"] > before[index] for index in range(2)), "both play again")
    for index in range(2):
        rounds = [row["round"] for row in pair.rows(index)]
        assert rounds == sorted(set(rounds))
    # A rank that was killed from outside: the peer can be run again.
    ranks = [pid for pid in descendants(peers[0].pid) if b"local" in environment_of(pid)]
    assert len(ranks) == 2
    kill(max(ranks))
    assert peers[0].wait(120) == 75
    assert "from its last checkpoint" in pair.termination_message("peer-0")


def environment_of(pid: int) -> bytes:
    """`local` for a rank, and for nothing else below torchrun: the sandbox's environment is empty, the daemon's
    command is its own.
    """
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
    return b"local" if any(each.startswith(b"LOCAL_RANK=") for each in variables) and b"\0peer\0" in command else b""


SLOW_RANK = """
import os, pathlib, signal, sys, threading, time
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
here, rank = pathlib.Path(sys.argv[0]).parent, os.environ["RANK"]
(here / rank).write_text("up")
stop.wait()
(here / rank).write_text("saving")
began = time.monotonic()
while not (here / "disk").exists() and time.monotonic() < began + 20:  # torchrun's own grace period is 30 seconds
    time.sleep(0.05)
(here / rank).write_text("saved")
sys.exit(143)
"""
WRAPPER = """
import pathlib, sys
from swarmgame.launch.pod import run_ranks
from swarmgame.runtime.options import PeerOptions
from swarmgame.swarm.network_options import NetworkOptions
here = pathlib.Path(sys.argv[1])
options = PeerOptions(here, NetworkOptions(here / "peer.key"))
torchrun = (sys.executable, "-m", "swarmgame.launch.loopback_torchrun", "--nproc-per-node=2", str(here / "rank.py"))
sys.exit(int(run_ranks(here / "game.yaml", options, 2, int(sys.argv[2]), program=lambda count: torchrun).code))
"""


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Callable[[int], subprocess.Popen[bytes]]]:
    """Start two ranks with a grace period in seconds; return their torchrun's parent when both are up."""
    (tmp_path / "rank.py").write_text(SLOW_RANK)
    with ExitStack() as stack:

        def start(grace: int) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-c", WRAPPER, tmp_path, str(grace)]
            process = subprocess.Popen(command, start_new_session=True)
            stack.callback(_end, process)
            wait_until(lambda: all((tmp_path / rank).exists() for rank in "01"), "both ranks are up")
            return process

        yield start


def test_ranks_that_need_less_than_the_grace_period_save_their_state(
    tmp_path: Path, ranks: Callable[[int], subprocess.Popen[bytes]]
) -> None:
    process = ranks(60)
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: all((tmp_path / rank).read_text() == "saving" for rank in "01"), "both save", process)
    (tmp_path / "disk").touch()
    assert process.wait(120) == 143
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["saved"] * 2


def test_ranks_that_need_more_than_the_grace_period_of_the_pod_are_killed(
    tmp_path: Path, ranks: Callable[[int], subprocess.Popen[bytes]]
) -> None:
    """This number counts, not torchrun's 30 seconds, in which they would save."""
    process = ranks(1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 143
    assert "saved" not in [(tmp_path / rank).read_text() for rank in "01"]
