"""A local run listens on this machine alone: every port of every process, over libp2p with a chain's worth of endpoints
and over torch.distributed with two ranks a peer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from listening import is_loopback, listeners, open_socket
from running import EXAMPLES, descendants, kill, metrics, peer_process, running, wait_until

pytestmark = pytest.mark.timeout(300)
GAME = EXAMPLES / "03-digits" / "game.yaml"
SMALL = ("--peers=2", "--rounds=100000", "--no-report", "--set=game.evaluation=null")


def exposed(found: set[tuple[str, int]]) -> set[tuple[str, int]]:
    return {(address, port) for address, port in found if not is_loopback(address)}


def daemons(pid: int) -> list[int]:
    found = []
    for child in descendants(pid):
        with suppress(OSError):  # it has ended
            if Path(f"/proc/{child}/comm").read_text().strip() == "p2pd":
                found.append(child)
    return found


def is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:  # 503, or the peer has ended
        return False


@contextmanager
def run_of(runs: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Yield a run whose peers have played with each other."""
    with running("run", GAME, *SMALL, *options, "--runs", runs) as process:
        wait_until(lambda: together(runs) > 1, "both peers have played", process)
        yield process


def together(runs: Path) -> int:
    """Return how many rounds both peers have finished with each other as a member."""
    rows = [metrics(runs / "digits", index) for index in range(2)]
    return min(sum(len(row["members"]) == 2 for row in each) for each in rows)


def test_a_run_over_libp2p_listens_on_the_loopback_interface_alone_unless_it_is_told_to(tmp_path: Path) -> None:
    with run_of(tmp_path) as run:
        found = listeners(run.pid)
        assert exposed(found) == set()
        assert len(found) >= 4, "a daemon and the endpoints of each peer"
        # In the same run: a daemon that dies ends its peer with 75, is seen meanwhile, and comes back with the peer.
        peer, played = peer_process(run.pid, 1), together(tmp_path)
        (daemon,) = daemons(peer)
        port = json.loads((tmp_path / "digits" / "peers" / "1" / "http.json").read_text())["port"]
        kill(daemon)
        wait_until(lambda: not is_healthy(port), "the endpoints show that the daemon is dead", run)
        wait_until(lambda: together(tmp_path) > played + 2, "both play again", run)
        assert peer_process(run.pid, 1) != peer
        (again,) = daemons(peer_process(run.pid, 1))
        assert again != daemon


def test_with_a_host_the_daemons_listen_there_and_nothing_else_does(tmp_path: Path) -> None:
    with run_of(tmp_path, "--host=0.0.0.0") as run:
        assert len(exposed(listeners(run.pid))) == 2, "the daemons of the two peers"


def test_a_closed_world_with_two_ranks_a_peer_listens_on_the_loopback_interface_alone(tmp_path: Path) -> None:
    with run_of(tmp_path, "--set=communication.backend=TorchDistributed", "--processes-per-peer=2") as run:
        found = listeners(run.pid)
    assert exposed(found) == set()
    assert len(found) >= 4, "a store of the peers, stores of the ranks, endpoints"


def test_torchrun_by_itself_listens_on_all_addresses(tmp_path: Path) -> None:
    """Without the defence: what `loopback_torchrun` is for."""
    (tmp_path / "wait.py").write_text("import sys; print('up', flush=True); sys.stdin.read()")
    for module, options in (
        ("torch.distributed.run", ("--standalone",)),
        ("swarmgame.launch.loopback_torchrun", ()),
    ):
        process = subprocess.Popen(
            [sys.executable, "-m", module, *options, "--nproc-per-node=1", str(tmp_path / "wait.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            found = listeners(process.pid)
        finally:
            process.communicate(b"")
        assert found
        assert bool(exposed(found)) == (module == "torch.distributed.run")


def test_a_socket_on_all_addresses_is_found() -> None:
    opened, shown = open_socket()
    with opened:
        assert shown in exposed(listeners(os.getpid()))
