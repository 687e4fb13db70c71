"""The libp2p backend keeps the contract, with real daemons and real sockets; and the faults that are specific to it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from exchange_contract import ExchangeContract, gather
from listening import has_ipv6
from swarms import RUN, Libp2pSwarm, all_count

from swarmgame.errors import Temporary
from swarmgame.game.protocol import ClosedBy
from swarmgame.swarm.identity import Identity
from swarmgame.swarm.messages import make_heartbeat
from swarmgame.swarm.network_options import NetworkOptions
from swarmgame.swarm.transports.libp2p import Libp2pTransport

LOOPBACK = {"/ip4/127.0.0.1/": "127.0.0.1", "/ip6/::1/": "::1"}


def daemons() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True) if child.name() == "p2pd"}


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[Libp2pSwarm]:
    before = daemons()
    made = Libp2pSwarm(tmp_path)
    yield made
    made.close()
    assert daemons() == before


class TestHivemindBackend(ExchangeContract):
    pass


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")
def test_a_peer_on_every_address_plays_with_peers_of_ipv4_and_of_ipv6(swarm: Libp2pSwarm, contribution_of: Any) -> None:
    swarm.host = "::"
    middle = swarm.peer("middle")
    addresses = {prefix: next(each for each in middle.addresses if each.startswith(prefix)) for prefix in LOOPBACK}
    others = []
    for prefix, host in LOOPBACK.items():
        swarm.host, swarm.known = host, (addresses[prefix],)
        others.append(swarm.peer(host, min_replicas=2))
        assert all(each.startswith(prefix) for each in others[-1].addresses)
    swarm.until(lambda: all_count((middle, *others)))
    for peer in (middle, *others):
        peer.publish(contribution_of(peer.peer, 0))
    found = middle.collect(0, 0, gather(1.0, 60.0))
    assert {each.peer for each in found.contributions} == {peer.peer for peer in others}


def test_a_stranger_whose_answers_are_no_messages_keeps_no_newcomer_out(
    swarm: Libp2pSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, liars = Libp2pTransport._answer, set[str]()

    async def answered(self: Libp2pTransport, message: bytes, sender: Any) -> bytes:
        return b"\xff" * 9 if self.peer in liars else await answer(self, message, sender)

    monkeypatch.setattr(Libp2pTransport, "_answer", answered)
    swarm.peer("ann")
    liar = swarm.rogue("liar")
    liars.add(liar.peer)
    heartbeat = make_heartbeat(RUN, liar.peer, 0, 0, time.time() + 60.0, liar.identity.sign)
    liar.thread.run(liar.transport.advertise(heartbeat.message, heartbeat.expires))
    bob = swarm.peer("bob", min_replicas=2)
    swarm.until(lambda: bool(bob._node.outcomes["malformed"]))
    assert len(bob.membership()) >= 2


def test_a_daemon_starts_where_one_of_two_addresses_is_not_there(
    swarm: Libp2pSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = ["/ip4/127.0.0.1/tcp/0", "/ip6/2001:db8::1/tcp/0"]  # no machine has the second (RFC 3849)
    monkeypatch.setattr("swarmgame.swarm.transports.libp2p.listen_addresses", lambda port, host: both)
    peer = swarm.peer("ann")
    assert [each.split("/")[1:3] for each in peer.addresses] == [["ip4", "127.0.0.1"]]


def test_two_processes_with_one_key_notice_it_and_the_later_one_ends(
    swarm: Libp2pSwarm, caplog: pytest.LogCaptureFixture
) -> None:
    first, bob = swarm.group("ann", "bob")

    def play_as_second() -> None:
        second = swarm.peer("ann", min_replicas=2)  # it may notice already here
        swarm.until(lambda: "and was in the swarm first" in caplog.text)
        second.membership()

    with pytest.raises(Temporary, match="another process runs with this peer's key"):
        play_as_second()
    swarm.peers[-1].leave()
    swarm.until(lambda: "and came later" in caplog.text, 60.0)
    swarm.until(lambda: len(bob.membership()) == len(first.membership()) == 2)


def test_a_peer_whose_daemon_dies_ends_instead_of_playing_on_alone(swarm: Libp2pSwarm) -> None:
    ann, bob = swarm.group("ann", "bob")
    collecting = swarm.begin(ann, 0, 0, gather(1.0, 600.0))
    assert ann.failure == ""
    address = ann._node.transport.remote_address
    assert (address(bob.peer), address(Identity.generate().peer)) == ("", None), "of loopback; of no connection"
    child = ann._transport._p2p._child
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(Temporary, match="the p2p daemon ended with exit code -9; start this process again"):
        collecting.result(60)
    assert ann.failure.startswith("the p2p daemon ended")
    # One that is being stopped has its daemon stopped too.
    assert ann.collect(0, 0, gather(1.0, 600.0), stopped=lambda: True).closed_by is ClosedBy.DEADLINE
    assert bob.failure == ""


def test_the_daemon_has_the_peer_id_that_we_compute(tmp_path: Path) -> None:
    import asyncio

    from hivemind.p2p import P2P

    async def identified(path: Path) -> str:
        p2p = await P2P.create(
            identity_path=str(path),
            check_if_identity_free=False,
            nat_port_map=False,
            auto_nat=False,
            startup_timeout=60,
        )
        try:
            return p2p.peer_id.to_base58()
        finally:
            await p2p.shutdown()

    for number in range(3):
        path = tmp_path / f"{number}.key"
        assert asyncio.run(identified(path) if path.exists() else identified(_made(path))) == Identity.load(path).peer


def _made(path: Path) -> Path:
    Identity.load_or_create(path)
    return path


def test_a_port_that_is_taken_is_an_error_that_names_it_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from swarmgame.swarm.transports import libp2p
    from swarmgame.swarm.transports.libp2p import HivemindCommunication

    monkeypatch.setattr(libp2p, "_START_ATTEMPTS", 1)
    before = daemons()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        peer = HivemindCommunication("run", NetworkOptions(tmp_path / "key", "127.0.0.1", port))
        with pytest.raises(Temporary, match=str(port)):
            peer.join()
    assert daemons() == before
    with pytest.raises(Temporary, match="left"):
        peer.membership()


def test_when_no_initial_peer_answers_a_join_that_needs_one_says_so(tmp_path: Path) -> None:
    from swarmgame.swarm.transports.libp2p import HivemindCommunication

    offline = f"/ip4/127.0.0.1/tcp/9/p2p/{Identity.named('offline').peer}"
    with pytest.raises(Temporary, match="no peer of run"):
        HivemindCommunication("run", NetworkOptions(tmp_path / "key", "127.0.0.1", initial_peers=(offline,))).join(
            min_replicas=2, timeout_seconds=2.0
        )
    alone = HivemindCommunication("run", NetworkOptions(tmp_path / "key", "127.0.0.1", initial_peers=(offline,)))
    alone.join(min_replicas=1, timeout_seconds=10.0)
    assert alone.collect(0, 0, gather()).closed_by is ClosedBy.ISOLATED
    alone.leave()


CHILD = """
    import sys, threading
    sys.path.insert(0, sys.argv[1])
    from pathlib import Path
    from contributions import make_contribution
    from swarmgame.swarm.transports.libp2p import HivemindCommunication
    from swarmgame.swarm.settings import SwarmSettings
    from swarmgame.swarm.network_options import NetworkOptions
    network = NetworkOptions(Path(sys.argv[2]), "127.0.0.1", initial_peers=tuple(sys.argv[3:]))
    peer = HivemindCommunication("contract", network, settings=SwarmSettings(heartbeat_seconds=1.0))
    peer.join(min_replicas=2, timeout_seconds=60)
    peer.publish(make_contribution(peer.peer, 0))
    print("ready", flush=True)
    threading.Event().wait()
"""


def test_a_killed_process_hangs_no_other_peer_and_its_daemon_dies_with_it(
    swarm: Libp2pSwarm, tmp_path: Path, contribution_of: Any
) -> None:
    ann = swarm.peer("ann")
    bob = swarm.peer("bob", min_replicas=2)
    child = subprocess.Popen(
        [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            textwrap.dedent(CHILD),
            str(Path(__file__).parent),
            str(tmp_path / "child.key"),
            *swarm.known,
        ],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        (daemon,) = [process for process in psutil.Process(child.pid).children() if process.name() == "p2pd"]
        # They count each other and the child.
        members = [peer.membership for peer in (ann, bob)]
        swarm.until(lambda: all([each.weight > 0 for each in found()] == [True] * 3 for found in members))
        for peer in (ann, bob):
            peer.publish(contribution_of(peer.peer, 0))
        assert [len(peer.collect(0, 0, gather()).contributions) for peer in (ann, bob)] == [2, 2]
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        for peer in (ann, bob):
            peer.publish(contribution_of(peer.peer, 1))
        for peer in (ann, bob):
            collected = peer.collect(1, 0, gather(1.0, 60.0))
            assert collected.closed_by is ClosedBy.QUORUM
            assert [each.peer for each in collected.contributions] == [
                other.peer for other in (ann, bob) if other is not peer
            ]
            assert len(collected.members) == 2
        swarm.until(lambda: not daemon.is_running() or daemon.status() == psutil.STATUS_ZOMBIE)
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def test_a_heartbeat_is_stored_by_every_replica_and_costs_no_more_in_a_full_directory(swarm: Libp2pSwarm) -> None:
    import time

    ann = swarm.peer("ann", heartbeat_seconds=300.0)
    bob = swarm.peer("bob", min_replicas=2, heartbeat_seconds=300.0)
    here, there = ann._transport, bob._transport
    expires = time.time() + 60.0
    assert there._node is not None
    others = [Identity.generate() for _ in range(50)]
    full = [make_heartbeat(RUN, each.peer, 0, 0, expires, each.sign).message for each in others]
    for each, message in zip(others, full, strict=True):
        bob._thread.run(there._node.store(there._directory, message, expires, subkey=f"{each.peer}/0123abcd"))

    before = here.traffic.bytes_sent + here.traffic.bytes_received
    # It replaces the heartbeat of ann's join, which expires earlier.
    own = make_heartbeat(RUN, here.peer, 7, 0, expires + 300.0, ann._node.sign).message
    ann._thread.run(here.advertise(own, expires + 300.0))
    spent = here.traffic.bytes_sent + here.traffic.bytes_received - before

    found = bob._thread.run(there.discover())
    assert set(full) <= set(found)
    assert own in found
    assert 300 < spent < 5_000
