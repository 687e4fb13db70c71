"""The torch.distributed backend: the contract of all backends, and the faults that are specific to a fixed group."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgpack
import pytest
from exchange_contract import BackendContract, collect_all, gather, trio
from listening import has_ipv6
from swarms import RUN, RankGroupSwarm, free_port

from swarmgame.errors import BadUsage, Refused, Temporary
from swarmgame.game.protocol import ClosedBy
from swarmgame.game.sources import Sources
from swarmgame.swarm.codec import encode
from swarmgame.swarm.identity import Identity
from swarmgame.swarm.messages import make_outbound
from swarmgame.swarm.transports import rank_group
from swarmgame.swarm.transports.payload import pack_payload
from swarmgame.swarm.transports.rank_group import RankAddress
from swarmgame.swarm.transports.torch_distributed import TorchDistributedCommunication


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[RankGroupSwarm]:
    made = RankGroupSwarm(tmp_path)
    yield made
    made.close()


class TestTorchDistributedBackend(BackendContract):
    pass


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")
@pytest.mark.parametrize("loopback", [True, False], ids=["on ::1 alone", "a store on every address"])
def test_peers_meet_at_a_store_of_ipv6(
    swarm: RankGroupSwarm, contribution_of: Any, monkeypatch: pytest.MonkeyPatch, loopback: bool
) -> None:
    swarm.host = "::1"
    if not loopback:
        monkeypatch.setattr(RankAddress, "loopback", property(lambda self: False))
    peers = trio(swarm)
    for peer in peers:
        peer.publish(contribution_of(peer.peer, 0))
    assert [len(each.contributions) for each in collect_all(swarm, peers, 0, gather())] == [2, 2, 2]


# ── peers that are a round apart after a restart
def test_a_peer_that_is_behind_collects_first_and_the_others_send_again(
    swarm: RankGroupSwarm, contribution_of: Any
) -> None:
    ann, bob, eve = peers = trio(swarm)
    for peer in peers:
        for round in (4, 5):
            peer.publish(contribution_of(peer.peer, round))
    collecting = [swarm.begin(ann, 5, 0, gather()), swarm.begin(bob, 5, 0, gather())]
    behind = eve.collect(4, 0, gather())
    assert [each.round for each in behind.contributions] == [4, 4]
    assert behind.closed_by is ClosedBy.QUORUM
    assert not any(each.done() for each in collecting)
    assert [each.round for each in eve.collect(5, 0, gather()).contributions] == [5, 5]
    assert [len(each.result(30).contributions) for each in collecting] == [2, 2]


def test_peers_that_have_finished_still_serve_one_that_is_behind(swarm: RankGroupSwarm, contribution_of: Any) -> None:
    ann, bob, eve = peers = trio(swarm)
    for peer in peers:
        peer.publish(contribution_of(peer.peer, 9))
    for peer in (ann, bob):
        peer.announce_progress(10, 0)
    collecting = swarm.begin(eve, 9, 0, gather())
    lingering = [swarm.pool.submit(swarm.until, lambda peer=peer: _all_at(peer, 10)) for peer in (ann, bob)]
    assert [each.round for each in collecting.result(30).contributions] == [9, 9]
    eve.announce_progress(10, 0)
    for each in lingering:
        each.result(30)


def _all_at(peer: TorchDistributedCommunication, round: int) -> bool:
    return all(member.round >= round for member in peer.membership())


def test_a_peer_too_far_behind_is_lagging(swarm: RankGroupSwarm, contribution_of: Any) -> None:
    ann, bob, eve = peers = trio(swarm, keep_rounds=1)
    for peer in (ann, bob):
        peer.publish(contribution_of(peer.peer, 9))
    eve.publish(contribution_of(eve.peer, 0))
    ahead = [swarm.begin(peer, 9, 0, gather()) for peer in (ann, bob)]
    behind = eve.collect(0, 0, gather())
    assert (behind.closed_by, behind.contributions, len(behind.missing)) == (ClosedBy.LAGGING, (), 2)
    assert {member.round for member in eve.membership() if member.peer != eve.peer} == {9}
    eve.publish(contribution_of(eve.peer, 9))
    assert len(eve.collect(9, 0, gather()).contributions) == 2
    assert [len(each.result(30).contributions) for each in ahead] == [2, 2]
    assert peers


# ── peers that are gone
def test_a_peer_that_leaves_ends_the_others_with_a_temporary_error(swarm: RankGroupSwarm, contribution_of: Any) -> None:
    ann, bob, eve = trio(swarm)
    collecting = [swarm.begin(peer, 0, 0, gather(1.0, 600.0)) for peer in (ann, bob)]
    eve.leave()
    for each in collecting:
        with pytest.raises(Temporary, match=r"peer 2 has left; all peers have to be started again"):
            each.result(30)


def test_peers_that_are_stopped_one_after_another_end_without_an_error(swarm: RankGroupSwarm) -> None:
    ann, bob, eve = trio(swarm)
    stop = threading.Event()
    collecting = [swarm.pool.submit(peer.collect, 0, 0, gather(1.0, 600.0), stopped=stop.is_set) for peer in (ann, bob)]
    eve.leave()
    swarm.until(lambda: ann._group.has_left(2))
    assert not any(each.done() for each in collecting)
    stop.set()
    assert {each.result(10).closed_by for each in collecting} == {ClosedBy.DEADLINE}


def test_a_peer_that_does_not_come_ends_the_others_at_the_deadline(swarm: RankGroupSwarm) -> None:
    ann, bob, _ = trio(swarm)
    collecting = [swarm.begin(peer, 3, 1, gather(0.5, 0.5)) for peer in (ann, bob)]
    # One of the two may begin so late that the other waits for it too.
    expected = r"peers? (\d, )?2 did not reach round 3, stage 1 within 0\.5 s|peer \d has left"
    for each in collecting:
        with pytest.raises(Temporary, match=expected):
            each.result(30)


def test_when_all_have_finished_they_leave_without_an_error(swarm: RankGroupSwarm) -> None:
    peers = trio(swarm)
    for peer in peers:
        peer.announce_progress(7, 0)
    leaving = []
    for peer in peers:  # rank 0, which hosts the store, first
        assert all(member.round == 7 for member in peer.membership())
        leaving.append(swarm.pool.submit(peer.leave))
    for each in leaving:
        each.result(10)


CHILD = """
    import sys
    sys.path.insert(0, sys.argv[1])
    from pathlib import Path
    from contributions import make_contribution
    from exchange_contract import gather
    from swarmgame.swarm.transports.rank_group import RankAddress
    from swarmgame.swarm.transports.torch_distributed import TorchDistributedCommunication
    rank, size, port, rounds = map(int, sys.argv[3:])
    address = RankAddress(rank, size, "127.0.0.1", port)
    peer = TorchDistributedCommunication("contract", Path(sys.argv[2]), address)
    print("imported", flush=True)
    peer.join(timeout_seconds=60)
    for round in range(rounds):
        peer.publish(make_contribution(peer.peer, round))
        peer.collect(round, 0, gather())
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def child(swarm: RankGroupSwarm) -> Iterator[Any]:
    """Start a peer in a process of its own, which takes part in some rounds and then waits; return when it has made its
    imports, which may take longer than others wait for it.
    """
    started = []

    def start(name: str, rank: int, size: int, rounds: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(CHILD), str(Path(__file__).parent)]
        arguments = [str(swarm.folder / f"{name}.key"), *map(str, (rank, size, swarm.port, rounds))]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        process = subprocess.Popen(
            [*command, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"imported\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("killed", [0, 2])
def test_a_killed_peer_ends_the_others_when_it_is_started_again_and_all_resume(
    swarm: RankGroupSwarm, child: Any, contribution_of: Any, killed: int
) -> None:
    ranks = [rank for rank in range(3) if rank != killed]
    peers = [swarm.communication(f"peer {rank}", rank, 3) for rank in ranks]
    process = child(f"peer {killed}", killed, 3, 1)
    swarm.join(peers)
    for peer in peers:
        peer.publish(contribution_of(peer.peer, 0))
    assert [len(each.contributions) for each in collect_all(swarm, peers, 0, gather())] == [2, 2]
    assert process.stdout.readline() == b"ready\n"
    collecting = [swarm.begin(peer, 1, 0, gather(1.0, 600.0)) for peer in peers]
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = child(f"peer {killed}", killed, 3, 1)
    for each in collecting:
        expected = r"an exchange with the other peers failed|peer \d (was started again|has left)"
        with pytest.raises(Temporary, match=expected):
            each.result(60)
    swarm.close()
    swarm.reopen()
    peers = [swarm.communication(f"peer {rank}", rank, 3) for rank in ranks]
    swarm.join(peers)
    for peer in peers:
        peer.publish(contribution_of(peer.peer, 0))
    assert [len(each.contributions) for each in collect_all(swarm, peers, 0, gather())] == [2, 2]
    assert again.stdout.readline() == b"ready\n"


def test_peers_of_different_games_are_refused_and_told_what_differs(
    swarm: RankGroupSwarm, caplog: pytest.LogCaptureFixture
) -> None:
    ours = Sources(data="1" * 16, model="5" * 16)
    peers = [
        swarm.communication(name, rank, 3, sources=sources)
        for rank, (name, sources) in enumerate(
            {"ann": ours, "bob": replace(ours, model="6" * 16), "eve": replace(ours, data="2" * 16)}.items()
        )
    ]
    joining = [swarm.pool.submit(peer.join, timeout_seconds=30.0) for peer in peers]
    for each in joining:
        with pytest.raises(Refused, match="your data differs: theirs"):
            each.result(60)
    assert "your model differs" in caplog.text


def test_a_transfer_fails_when_a_connection_is_closed(swarm: RankGroupSwarm, contribution_of: Any) -> None:
    ann, _, eve = peers = trio(swarm)
    for peer in peers:
        peer.publish(contribution_of(peer.peer))
    # Eve comes to the exchange, and is gone before the transfer. Ann and Bob also wait for each other.
    eve._group._group = LostConnections()
    for each in [swarm.begin(peer, 0, 0, gather()) for peer in peers]:
        with pytest.raises(Temporary, match="an exchange with the other peers failed"):
            each.result(30)
    with pytest.raises(Temporary, match="the connections were closed when an exchange failed"):
        ann.collect(0, 0, gather())


class LostConnections:
    """In the place of a process group, whose connections close when nothing refers to it."""

    def broadcast(self, *_: Any) -> None:
        raise RuntimeError("Connection closed by peer")


@pytest.mark.parametrize("value", [b"\xc1", b"\x05", msgpack.packb([[0], []]), msgpack.packb([[0, 0], [[0, 0]]])])
def test_an_invalid_value_in_the_store_ends_the_exchange(swarm: RankGroupSwarm, value: bytes) -> None:
    ann, _, eve = trio(swarm)
    for rank in (1, 2):
        eve._group._store.set(f"exchange/0/{rank}", value)
    with pytest.raises(Temporary, match="the store holds an invalid value of exchange/0/1"):
        ann.collect(0, 0, gather())
    assert len(ann.membership()) == 1


# ── joining
def test_a_port_that_is_taken_is_an_error_that_names_it(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        peer = TorchDistributedCommunication(RUN, tmp_path / "key", RankAddress(0, 2, "127.0.0.1", port))
        with pytest.raises(Temporary, match=str(port)):
            peer.join()
    with pytest.raises(Temporary, match="left"):
        peer.membership()


def test_without_a_store_or_all_ranks_no_peer_begins(tmp_path: Path) -> None:
    port = free_port()
    one, zero = (
        TorchDistributedCommunication(RUN, tmp_path / str(rank), RankAddress(rank, 3, "127.0.0.1", port))
        for rank in (1, 0)
    )
    with pytest.raises(Temporary, match="which peer 0 hosts, did not answer within"):
        one.join(timeout_seconds=0.5)
    with pytest.raises(Temporary, match="peers 1, 2 did not join run 'contract' within"):
        zero.join(timeout_seconds=0.5)


def test_two_peers_with_one_key_are_refused(swarm: RankGroupSwarm) -> None:
    peers = [swarm.communication("same", rank, 2) for rank in range(2)]
    joining = [swarm.pool.submit(peer.join, timeout_seconds=20.0) for peer in peers]
    for each in joining:
        with pytest.raises(BadUsage, match="have the same key"):
            each.result(30)


# ── contributions that cannot be used
def test_a_contribution_of_a_peer_that_is_not_admitted_is_counted_and_dropped(
    swarm: RankGroupSwarm, contribution_of: Any
) -> None:
    mallory = Identity.load_or_create(swarm.folder / "eve.key").peer
    peers = trio(swarm, admission=lambda peer: peer != mallory)
    for peer in peers:
        peer.publish(contribution_of(peer.peer))
    collected = collect_all(swarm, peers, 0, gather())[0]
    assert [each.peer for each in collected.contributions] == [peers[1].peer]
    assert mallory not in collected.members
    assert collected.outcomes["not-admitted"] == 1
    assert mallory not in [member.peer for member in peers[0].membership()]


@pytest.mark.parametrize(
    "fault",
    [
        "garbage",
        "another run",
        "another's",
        "another stage",
        "bad-hash",
        "index",
        "count",
        "shard",
        "stale",
        "signature",
    ],
)
def test_a_contribution_that_cannot_be_used_is_counted_and_the_round_goes_on(
    swarm: RankGroupSwarm, contribution_of: Any, fault: str
) -> None:
    ann, bob, eve = peers = trio(swarm)
    for peer in peers:
        peer.publish(contribution_of(peer.peer))
    key, now = eve._key, time.time()
    honest = contribution_of(eve.peer)

    def made(contribution: Any = honest, run: str = RUN, sign: Any = key.sign, now: float = now) -> list[Any]:
        outbound = make_outbound(contribution, (), run=run, sign=sign, now=now)
        return list(msgpack.unpackb(pack_payload(outbound)))

    message, index, bodies = made()
    other = encode(contribution_of(bob.peer), RUN)[0].data
    row = [sha256(other).digest(), len(other), 3, 0, None, 1]
    payload, reason = {
        "garbage": (b"\xc1garbage", "malformed"),
        "another run": (made(run="another"), "bad-signature"),
        "another's": (made(contribution_of(bob.peer)), "bad-signature"),
        "another stage": (made(contribution_of(eve.peer, 0, 1)), "malformed"),
        "bad-hash": ([message, index, [bodies[0] + b"x"]], "bad-hash"),
        "index": ([message, msgpack.packb([7, [row]]), [other]], "bad-hash"),
        "count": ([message, index, [*bodies, *bodies]], "malformed"),
        "shard": (_announced(key, [row], [other]), "malformed"),
        "stale": (made(now=1.0), "stale"),
        "signature": (made(sign=Identity.named("another").sign), "bad-signature"),
    }[fault]
    eve._payloads[0, 0] = payload if isinstance(payload, bytes) else msgpack.packb(payload)
    for peer, collected in zip((ann, bob), collect_all(swarm, peers, 0, gather())[:2], strict=True):
        assert [each.peer for each in collected.contributions] == [({ann.peer, bob.peer} - {peer.peer}).pop()]
        assert collected.missing == (eve.peer,)
        assert collected.outcomes == {"accepted": 1, reason: 1}


def _announced(key: Identity, rows: list[Any], bodies: list[bytes]) -> list[Any]:
    from swarmgame.swarm.messages import make_announcement

    index = msgpack.packb([0, rows])
    return [make_announcement(RUN, key.peer, 0, 0, index, 2_000_000_000, key.sign).message, index, bodies]


def test_a_contribution_that_is_too_large_is_not_transferred(
    swarm: RankGroupSwarm, contribution_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    peers = trio(swarm)
    for peer in peers[:2]:
        peer.publish(contribution_of(peer.peer))
    peers[2].publish(replace(contribution_of(peers[2].peer, groups=8, tokens=400)))
    monkeypatch.setattr(rank_group, "MAX_BYTES", 5_000)
    for collected in collect_all(swarm, peers, 0, gather())[:2]:
        assert collected.missing == (peers[2].peer,)
        assert collected.outcomes == {"accepted": 1, "too-large": 1}
        assert collected.bytes_received < 5_000
