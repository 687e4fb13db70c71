"""The torch.distributed backend keeps the contract, with a real store and real gloo pairs; and what only it can get
wrong.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from exchange_contract import ExchangeContract, gather
from hypothesis import given
from hypothesis import strategies as st
from swarms import RUN, GlooSwarm, free_port

from swarmgame.errors import Temporary
from swarmgame.game.protocol import ClosedBy
from swarmgame.swarm.identity import Identity
from swarmgame.swarm.transports.base import CALL_BYTES, Handlers
from swarmgame.swarm.transports.gloo import CHUNK_BYTES, Broken, Frame, Kind, Pair, device_of
from swarmgame.swarm.transports.torch_distributed import TorchDistributedCommunication, TorchDistributedTransport
from swarmgame.swarm.transports.world import Place, Seat, World, parse_seat


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith(("pair-", "world-"))}


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[GlooSwarm]:
    made = GlooSwarm(tmp_path)
    yield made
    made.close()
    assert threads() == set()


class TestTorchDistributedBackend(ExchangeContract):
    """All of it: a closed world has no strangers, but its members may break every rule that a rogue of the contract
    breaks.
    """


# ── a peer that is killed, and started again
CHILD = """
    import sys, threading
    sys.path.insert(0, sys.argv[1])
    from pathlib import Path
    from contributions import make_contribution
    from swarmgame.swarm.transports.torch_distributed import TorchDistributedCommunication
    from swarmgame.swarm.settings import SwarmSettings
    from swarmgame.swarm.transports.world import Place
    index, port, rounds = map(int, sys.argv[3:])
    peer = TorchDistributedCommunication("contract", Path(sys.argv[2]), Place(index, 4, "127.0.0.1", port), settings=SwarmSettings(heartbeat_seconds=1.0))
    peer.join(timeout_seconds=60)
    peer.publish(make_contribution(peer.peer, rounds))
    print("ready", flush=True)
    threading.Event().wait()
"""


class Child:
    """A peer in a process of its own, which has published in one round and now only answers."""

    def __init__(self, swarm: GlooSwarm, name: str, round: int) -> None:
        place = swarm.place(name)
        command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(CHILD), str(Path(__file__).parent)]
        arguments = [str(swarm.folder / f"{name}.key"), str(place.index), str(place.port), str(round)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self.process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, env=environment)

    def ready(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def child(swarm: GlooSwarm) -> Iterator[Callable[[str, int], Child]]:
    made: list[Child] = []

    def start(name: str, round: int) -> Child:
        made.append(Child(swarm, name, round))
        return made[-1]

    yield start
    for each in made:
        each.kill()


def said_by(
    swarm: GlooSwarm, peers: list[TorchDistributedCommunication], round: int, contribution_of: Any
) -> list[int]:
    """How many others each hears in a round, once all have spoken; nothing is lost, so nobody waits for a deadline."""
    for peer in peers:
        peer.publish(contribution_of(peer.peer, round))
    collected = [peer.collect(round, 0, gather(1.0, 60.0)) for peer in peers]
    assert {each.closed_by for each in collected} == {ClosedBy.QUORUM}
    return [len(each.contributions) for each in collected]


@pytest.mark.parametrize("killed", ["first", "last"])
def test_who_is_killed_hangs_nobody_and_is_paired_again_when_it_comes_back(
    swarm: GlooSwarm, child: Callable[[str, int], Child], contribution_of: Any, killed: str
) -> None:
    if killed == "first":  # it hosts the store
        swarm.place("child")
    ann, bob = (swarm.peer(name, join=False) for name in ("ann", "bob"))
    first = child("child", 0)
    for peer in (ann, bob):
        threading.Thread(target=peer.join, kwargs={"at_least": 3, "timeout_seconds": 60.0}).start()
    first.ready()
    swarm.until(lambda: [len(peer.membership()) for peer in (ann, bob)] == [3, 3])
    assert said_by(swarm, [ann, bob], 0, contribution_of) == [2, 2]
    first.kill()
    assert said_by(swarm, [ann, bob], 1, contribution_of) == [1, 1]
    second = child("child", 2)
    second.ready()
    swarm.until(lambda: [len(peer.membership()) for peer in (ann, bob)] == [3, 3])
    assert said_by(swarm, [ann, bob], 2, contribution_of) == [2, 2]


def test_when_the_host_of_the_store_is_gone_for_good_the_others_end_and_say_why(
    swarm: GlooSwarm, child: Callable[[str, int], Child]
) -> None:
    host = child("host", 0)
    swarm.place("host")
    host.ready()
    bob = swarm.peer("bob", at_least=2, lost_seconds=1.0)
    collecting = swarm.begin(bob, 0, 0, gather(1.0, 600.0))
    host.kill()
    # It may hear that it is alone before it knows that the store will not come back.
    collecting.exception(30)
    swarm.until(lambda: bob._transport.lost != "")
    with pytest.raises(Temporary, match="peer 0, which hosts the store"):
        bob.membership()
    with pytest.raises(Temporary, match="has to be started again"):
        bob.collect(0, 0, gather())


def test_when_the_host_of_the_store_says_goodbye_the_others_play_on(swarm: GlooSwarm, contribution_of: Any) -> None:
    ann = swarm.peer("ann")
    bob, eve = (swarm.peer(name, at_least=count, lost_seconds=0.5) for count, name in ((2, "bob"), (3, "eve")))
    swarm.until(lambda: [len(peer.membership()) for peer in (ann, bob, eve)] == [3, 3, 3])
    ann.leave()
    swarm.until(lambda: _silent(bob) > 1.0)
    assert bob._transport.lost == ""
    assert said_by(swarm, [bob, eve], 0, contribution_of) == [1, 1]


def _silent(peer: TorchDistributedCommunication) -> float:
    answered = peer._transport._world._answered
    return 0.0 if answered is None else time.monotonic() - answered


def test_who_leaves_does_not_wait_for_a_process_that_hangs_and_leaves_no_thread(
    swarm: GlooSwarm, child: Callable[[str, int], Child], contribution_of: Any
) -> None:
    ann = swarm.peer("ann")
    stuck = child("stuck", 0)
    stuck.ready()
    swarm.until(lambda: len(ann.membership()) == 2 and ann._transport._neighbours[0].peer is not None)
    stuck.process.send_signal(signal.SIGSTOP)
    ann.publish(contribution_of(ann.peer))
    ann.leave()
    assert threads() == set()


def test_a_port_that_is_taken_is_an_error_that_names_it_and_leaves_nothing(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        peer = TorchDistributedCommunication(RUN, tmp_path / "key", Place(0, 2, "127.0.0.1", port))
        with pytest.raises(Temporary, match=str(port)):
            peer.join()
    assert threads() == set()
    with pytest.raises(Temporary, match="left"):
        peer.membership()


def test_without_a_store_nobody_begins_alone(tmp_path: Path) -> None:
    peer = TorchDistributedCommunication(RUN, tmp_path / "key", Place(1, 2, "127.0.0.1", free_port()), meet_seconds=0.5)
    with pytest.raises(Temporary, match="which peer 0 hosts, did not answer"):
        peer.join()
    assert threads() == set()


def test_who_sits_at_a_seat_that_another_process_takes_ends(swarm: GlooSwarm) -> None:
    swarm.peer("ann")
    bob = swarm.peer("bob", at_least=2)
    swarm.peer("bob", at_least=2)
    swarm.until(lambda: bob._transport.lost != "")
    with pytest.raises(Temporary, match="another process has taken seat 1"):
        bob.membership()


def test_who_does_not_hold_the_key_that_its_seat_names_is_not_paired_with(swarm: GlooSwarm) -> None:
    ann = swarm.peer("ann")
    mallory = replace(Identity.named("mallory"))
    object.__setattr__(mallory, "peer", Identity.named("somebody else").peer)
    rogue = TorchDistributedTransport(RUN, mallory, swarm.place("mallory"))
    thread = ann._thread
    handlers = Handlers(call=lambda sender, message: b"", body=lambda name: None)
    thread.run(rogue.start(handlers))
    swarm.until(lambda: ann._transport._world.offered_by(1, rogue._world.incarnation) >= 2)
    assert ann._transport._neighbours[0].peer is None
    assert len(ann.membership()) == 1
    thread.run(rogue.close())


# ── frames
@pytest.fixture
def pair() -> Iterator[tuple[Pair, Pair, ThreadPoolExecutor]]:
    place = Place(0, 1, "127.0.0.1", free_port())
    world = World(RUN, place, "nobody")
    world.open()
    with ThreadPoolExecutor(2) as pool:
        device = device_of(loopback=True)
        ends = [pool.submit(lambda rank: Pair(world.client(5.0), "test", rank, device, 5.0), rank) for rank in (0, 1)]
        yield ends[0].result(), ends[1].result(), pool
    world.close(time.monotonic() + 10.0)


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 7])
def test_a_frame_comes_as_it_was_sent(pair: tuple[Pair, Pair, ThreadPoolExecutor], size: int) -> None:
    here, there, pool = pair
    payload = os.urandom(size)
    sending = pool.submit(here.send, Kind.BODY, 1 << 60, payload)
    assert there.receive(lambda kind, number: size) == Frame(Kind.BODY, 1 << 60, payload, size)
    sending.result(5)


def test_of_what_is_too_long_one_chunk_is_kept_and_what_follows_is_heard(
    pair: tuple[Pair, Pair, ThreadPoolExecutor],
) -> None:
    here, there, pool = pair
    size = 4 * CHUNK_BYTES
    sending = pool.submit(here.send, Kind.CALL, 1, bytes(size))
    frame = there.receive(lambda kind, number: CALL_BYTES)
    sending.result(5)
    assert (frame.oversized, frame.size, len(frame.payload)) == (True, size, CHUNK_BYTES)
    sending = pool.submit(here.send, Kind.CALL, 2, b"next")
    assert there.receive(lambda kind, number: CALL_BYTES).payload == b"next"
    sending.result(5)


@pytest.mark.parametrize(("kind", "size"), [(Kind.CALL, 1 << 62), (Kind.BODY, 1 << 30), (0, 0), (200, 5)])
def test_a_head_that_promises_too_much_or_is_none_breaks_the_pair_before_memory_is_taken(
    pair: tuple[Pair, Pair, ThreadPoolExecutor], kind: int, size: int
) -> None:
    here, there, pool = pair
    sending = pool.submit(here._send, struct.pack(">BQQ", kind, 1, size))
    with pytest.raises(Broken):
        there.receive(lambda kind, number: CALL_BYTES)
    sending.result(5)


def test_who_hears_nothing_in_time_gives_up(pair: tuple[Pair, Pair, ThreadPoolExecutor]) -> None:
    _, there, _ = pair
    with pytest.raises(Broken):
        there.receive(lambda kind, number: 0, 0.2)


# ── seats
@given(
    st.text(),
    st.text(),
    st.dictionaries(st.integers(0, 4095), st.tuples(st.text(), st.integers(0, (1 << 32) - 1)), max_size=8),
)
def test_a_seat_is_read_as_it_was_written(incarnation: str, peer: str, offers: dict[int, tuple[str, int]]) -> None:
    seat = Seat(incarnation, peer, offers)
    assert parse_seat(seat.packed()) == seat


@given(
    st.binary()
    | st.builds(lambda data: Seat("a", "b", {1: ("c", 2)}).packed()[: len(data)] + data, st.binary(max_size=12))
)
def test_whatever_stands_in_the_store_is_a_seat_or_none(data: bytes) -> None:
    seat = parse_seat(data)
    assert seat is None or (isinstance(seat.incarnation, str) and isinstance(seat.peer, str))


@pytest.mark.parametrize("number", [-1, 1 << 32, (1 << 64) - 1])
def test_an_offer_whose_number_would_outgrow_its_field_makes_no_seat(number: int) -> None:
    assert parse_seat(Seat("a", "b", {1: ("c", number)}).packed()) is None


def test_a_request_to_a_seat_where_nobody_sits_fails_at_once(swarm: GlooSwarm) -> None:
    ann = swarm.peer("ann")

    async def ask() -> None:
        async with asyncio.timeout(0.5):
            await ann._transport._neighbours[2].ask(Kind.CALL, b"", CALL_BYTES, 60.0)

    with pytest.raises(Exception, match="nobody sits at seat 3"):
        ann._thread.run(ask())
