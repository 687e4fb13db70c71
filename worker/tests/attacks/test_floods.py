"""Floods by strangers with free keys: what they may make a peer keep, and what happens without the bounds."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import replace
from random import Random

import pytest
from contributions import make_contribution
from floods import Flooded, Make, announce, pack_announcement, repetitive, without_bounds
from paced_swarms import PacedSwarm, making
from swarms import RUN, RoguePeer

from swarmgame.game.protocol import Exchange
from swarmgame.swarm.codec import Malformed, decode_shard, encode
from swarmgame.swarm.gate import OTHER, OTHER_STREAMS, OTHERS_TOGETHER, STREAMS_PER_PEER, Gate
from swarmgame.swarm.inbox import MAX_AHEAD
from swarmgame.swarm.memory import OTHER_BYTES, OTHERS_BYTES, decoded_bytes
from swarmgame.swarm.node import SwarmNode
from swarmgame.swarm.shares import Pool, Share
from swarmgame.swarm.transport import Unreachable
from swarmgame.swarm.transports.memory import MemoryTransport

LEAST_PROCESS_BYTES = 400 << 20
"""A peer without a model takes 670 MiB, most of it torch; 1.3 times this is less than 1.3 times that."""


@pytest.fixture
def flooded() -> Iterator[Make]:
    with making(Flooded) as make:
        yield make


# ── announcements
@pytest.mark.parametrize("defended", [True, False])
def test_stages_that_the_game_does_not_have_are_refused(flooded: Make, defended: bool) -> None:
    with nullcontext() if defended else without_bounds():
        swarm = flooded(stages=2)
        rogue = swarm.stranger("rogue")
        for stage in range(200):
            swarm_message = announce(rogue, make_contribution("rogue", 0, stage), serve=False)
            rogue.send_announcement("ann", swarm_message)
        found = swarm.entries(swarm.ann)
    assert found == (2 if defended else 200)
    assert swarm.outcome(swarm.ann, "no-such-stage") == (198 if defended else 0)


def test_a_peer_has_one_place_for_each_stage_and_round_of_the_window_and_no_more(flooded: Make) -> None:
    swarm = flooded(stages=2)
    swarm.play()
    for peer in (swarm.ann, swarm.bob):
        peer.announce_progress(10, 0)
    rogue = swarm.stranger("rogue")
    for round in range(20):
        for stage in range(2):
            rogue.send_announcement("ann", announce(rogue, make_contribution("rogue", round, stage), serve=False))
    window = range(10 - 2, 10 + MAX_AHEAD + 1)
    assert swarm.entries(swarm.ann) == 2 * len(window)
    assert (swarm.outcome(swarm.ann, "ahead"), swarm.outcome(swarm.ann, "too-many")) == (2 * (19 - window[-1]), 0)


def test_strangers_together_have_a_bounded_number_of_places_and_known_peers_their_own(
    flooded: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarmgame.swarm.inbox.OTHERS_ENTRIES", Pool(each=256, total=10, address=4))
    swarm = flooded()
    for number in range(12):
        rogue = swarm.stranger(f"rogue-{number}")
        rogue.send_announcement("ann", announce(rogue, make_contribution(rogue.peer), serve=False))
    assert swarm.entries(swarm.ann) == 10
    assert swarm.outcome(swarm.ann, "too-many") == 2
    (collected, _) = swarm.play()
    assert "bob" in {each.peer for each in collected.contributions}


def test_strangers_of_one_address_have_a_part_of_the_places(flooded: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarmgame.swarm.inbox.OTHERS_ENTRIES", Pool(each=256, total=10, address=4))
    swarm = flooded()
    for number in range(6):
        rogue = swarm.stranger(f"rogue-{number}")
        swarm.swarm.hub.addresses[rogue.peer] = "192.0.2.1"
        rogue.send_announcement("ann", announce(rogue, make_contribution(rogue.peer), serve=False))
    assert (swarm.entries(swarm.ann), swarm.outcome(swarm.ann, "too-many")) == (4, 2)


@pytest.mark.parametrize("defended", [True, False])
def test_authors_that_one_stranger_has_invented_take_no_place(flooded: Make, defended: bool) -> None:
    with nullcontext() if defended else without_bounds():
        swarm = flooded()
        rogue = swarm.stranger("rogue")
        for number in range(300):
            name = f"invented-{number}"
            author = type(rogue)(swarm.swarm.hub.identity(name), name, swarm.swarm.hub.transport(name), rogue.thread)
            rogue.send_announcement("ann", announce(author, make_contribution(name), serve=False))
        found = swarm.entries(swarm.ann)
    assert found == (0 if defended else 300)
    assert swarm.outcome(swarm.ann, "second-hand") == (300 if defended else 0)


def test_what_a_known_peer_passes_on_is_taken_in_a_large_swarm(flooded: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SwarmNode, "_gossips", lambda node: True)
    swarm = flooded()
    newcomer = swarm.stranger("newcomer")
    message = announce(newcomer, make_contribution("newcomer"))
    transport = swarm.bob._node.transport
    swarm.swarm.hub.thread.run(transport.call("ann", pack_announcement(message), 5.0))
    assert swarm.entries(swarm.ann) == 1


def test_a_refused_announcement_costs_no_check_of_its_signature(flooded: Make) -> None:
    swarm = flooded()
    checked: list[str] = []
    node = swarm.ann._node
    verify = node.verify
    node.verify = lambda peer, message, signature: checked.append(peer) or verify(peer, message, signature)  # type: ignore[func-returns-value]
    rogue = swarm.stranger("rogue")
    for stage in (1, 2, 3):
        rogue.send_announcement("ann", announce(rogue, make_contribution("rogue", 0, stage), serve=False))
    message = announce(rogue, make_contribution("rogue"), serve=False)
    for _ in range(5):
        rogue.send_announcement("ann", message)
    assert checked == ["rogue"]
    assert swarm.outcome(swarm.ann, "duplicate") == 4


# ── memory
@pytest.mark.parametrize("defended", [True, False])
def test_memory_under_a_flood_of_bodies_stays_below_a_third_of_a_process(flooded: Make, defended: bool) -> None:
    """Many strangers announce contributions that are small on the wire and large in memory."""
    strangers, rounds = 40, 3
    with nullcontext() if defended else without_bounds():
        swarm = flooded()
        swarm.play()
        tracemalloc.start()
        try:
            for number in range(strangers):
                rogue = swarm.stranger(f"rogue-{number}")
                for round in range(1, 1 + rounds):
                    rogue.send_announcement("ann", announce(rogue, repetitive(rogue.peer, round)))
                swarm.settle()
                rogue.bodies.clear()
            grown, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        kept = swarm.kept(swarm.ann)
    each_sent = 2 * 8 * 250_000  # text, and the expanded shard
    assert (grown <= 0.3 * LEAST_PROCESS_BYTES) is defended
    if defended:
        assert kept <= OTHERS_BYTES < strangers * rounds * each_sent
        assert swarm.outcome(swarm.ann, "no-room") > 0
        first, second = swarm.play()
        assert {"ann", "bob"} <= {each.peer for collected in (first, second) for each in collected.contributions}
        swarm.ann.announce_progress(20, 0)
        assert (swarm.kept(swarm.ann), swarm.entries(swarm.ann)) == (0, 0)


def test_what_honest_newcomers_send_at_our_own_size_fits_and_one_byte_more_does_not(flooded: Make) -> None:
    """Contributions larger than the usual share, but as large as our own."""
    swarm = flooded()
    kept = swarm.ann._node.inbox.kept_bytes
    share = Share("newcomer", counts=False)
    assert kept.room(share) == OTHER_BYTES
    large = repetitive("ann", 0, groups=40, characters=1_000_000)
    kept.note_own(large)
    own = decoded_bytes(large)
    assert own > OTHER_BYTES
    for number in range(3):
        assert kept.take(share, own), f"contribution {number + 1}"
    assert not kept.take(share, 1)
    assert kept.take(Share("another", counts=False), own), "another newcomer has a share of its own"
    assert not kept.take(Share("a third", counts=False), own + 1), "all of them together have four contributions"


def test_a_rollout_of_as_many_tokens_as_the_game_allows_is_used_and_a_longer_one_is_not(flooded: Make) -> None:
    swarm = flooded(rollout_tokens=5, anchors=frozenset({"ann", "bob", "rogue-5", "rogue-6"}))
    for tokens in (5, 6):
        rogue = swarm.stranger(f"rogue-{tokens}")
        rogue.send_announcement("ann", announce(rogue, make_contribution(rogue.peer, tokens=tokens)))
    swarm.settle()
    entries = swarm.ann._node.inbox.stage(0, 0)
    assert entries["rogue-5"].complete
    assert (entries["rogue-6"].failed, swarm.outcome(swarm.ann, "too-many-tokens")) == ("too-many-tokens", 1)


# ── calls and streams
@pytest.mark.parametrize("defended", [True, False])
def test_a_flood_of_calls_is_answered_at_a_bounded_rate(flooded: Make, defended: bool) -> None:
    senders, each = 8, 2000
    with nullcontext() if defended else without_bounds():
        swarm = flooded()
        strangers = [swarm.stranger(f"rogue-{number}") for number in range(senders)]
        answered = [answered_calls(rogue, each) for rogue in strangers]
        swarm.swarm.hub.advance(1.0)
        later = answered_calls(strangers[0], each)
    if not defended:
        assert (sum(answered), later) == (senders * each, each)
        return
    assert max(answered) <= OTHER.burst
    assert sum(answered) <= OTHERS_TOGETHER.burst
    assert later <= OTHER.per_second
    assert swarm.outcome(swarm.ann, "too-many-calls") == senders * each + each - sum(answered) - later
    assert swarm.swarm.hub.thread.run(swarm.bob._node.transport.call("ann", b"Q" + bytes(12), 5.0)) == b""


def answered_calls(rogue: RoguePeer, count: int) -> int:
    """Send small calls to a peer. Return how many it answered."""

    async def send() -> int:
        answered = 0
        for _ in range(count):
            with suppress(Unreachable):
                await rogue.transport.call("ann", b"Q" + bytes(12), 5.0)
                answered += 1
        return answered

    return rogue.thread.run(send())


def test_a_large_answer_is_charged_to_the_peer_that_called(flooded: Make) -> None:
    """One announcement with its bodies is 64 KiB for a request of 13 bytes."""
    swarm = flooded()
    gate = swarm.ann._node.gate
    admitted = 0
    while gate.admits("stranger", 13):
        gate.answered("stranger", 64 << 10)
        admitted += 1
    assert admitted == -(-OTHER.burst // 17)


def test_strangers_hold_a_bounded_number_of_streams_and_known_peers_have_their_own() -> None:
    outcomes: Counter[str] = Counter()
    gate = Gate(lambda: 0.0, lambda peer: peer == "known", outcomes)
    held = [gate.open_stream(f"rogue-{number // 8}", f"192.0.2.{number // 64}") for number in range(100)]
    opened = [place for place in held if place is not None]
    assert len(opened) == OTHER_STREAMS.total
    assert outcomes["too-many-streams"] == 100 - len(opened)
    assert [gate.open_stream("known") is not None for _ in range(STREAMS_PER_PEER + 1)] == [True] * 8 + [False]
    gate.close_stream(opened[0])
    assert gate.open_stream("rogue-0", "192.0.2.0") is not None


@pytest.mark.parametrize("defended", [True, False])
def test_announcements_of_strangers_do_not_wake_a_stage_that_waits(
    flooded: Make, monkeypatch: pytest.MonkeyPatch, defended: bool
) -> None:
    if not defended:
        monkeypatch.setattr(SwarmNode, "_wake", lambda node, peer: node.changed.set())
    swarm = flooded(exchange=Exchange.PULL)
    swarm.play()
    looks: list[int] = []
    expected = SwarmNode.expected
    monkeypatch.setattr(SwarmNode, "expected", lambda node, *when: looks.append(1) or expected(node, *when))
    waiting = swarm.swarm.begin(swarm.ann, 1, 0, swarm.policy)
    swarm.settle()
    before = len(looks)
    for number in range(50):
        rogue = swarm.stranger(f"rogue-{number}")
        rogue.send_announcement("ann", announce(rogue, make_contribution(rogue.peer, 1)))
    assert (len(looks) - before < 3) is defended
    swarm.bob.publish(make_contribution("bob", 1))
    swarm.settle()
    assert waiting.result(10.0).contributions


def test_bodies_of_strangers_wait_in_a_bounded_number(flooded: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarmgame.swarm.node.OTHERS_WAITING", 10)
    swarm = flooded()
    for_ever = asyncio.Event()

    async def hang(*request: object) -> None:
        await for_ever.wait()

    monkeypatch.setattr(swarm.ann._node.transport, "fetch", hang)
    for number in range(30):
        rogue = swarm.stranger(f"rogue-{number}")
        rogue.send_announcement("ann", announce(rogue, make_contribution(rogue.peer)))
    swarm.settle()
    assert swarm.outcome(swarm.ann, "no-stream") == 20
    monkeypatch.undo()


FOUR = ("ann", "bob", "dan", "eve")


@pytest.mark.parametrize("defended", [True, False])
def test_strangers_whose_bodies_never_come_do_not_slow_the_others(
    monkeypatch: pytest.MonkeyPatch, defended: bool
) -> None:
    """In every second eight new keys announce bodies, and do not send them; a round takes a second."""
    fetch = MemoryTransport.fetch

    async def slow(transport: MemoryTransport, peer: str, name: bytes, limit: int, seconds: float) -> bytes | None:
        if peer.startswith("rogue"):
            await transport.hub.clock.wait(asyncio.Event(), seconds)
            raise Unreachable(peer)
        return await fetch(transport, peer, name, limit, seconds)

    monkeypatch.setattr(MemoryTransport, "fetch", slow)
    if not defended:
        monkeypatch.setattr(SwarmNode, "_streams_of", lambda node, author: node._streams_of_anchors)
    swarm = PacedSwarm(anchors=FOUR)
    swarm.settings = replace(swarm.settings, inline_bytes=0)
    try:
        swarm.add(*FOUR)
        swarm.pass_time(5.0)
        before = swarm.rounds()
        for second in range(10):
            for number in range(8):
                name = f"rogue-{second}-{number}"
                rogue = RoguePeer(swarm.hub.identity(name), name, swarm.hub.transport(name), swarm.hub.thread)
                for peer in swarm.peers:
                    made = make_contribution(name, peer.number)
                    rogue.send_announcement(peer.name, announce(rogue, made, serve=False))
            swarm.pass_time(1.0)
        played = min(after - was for was, after in zip(before, swarm.rounds(), strict=True))
    finally:
        swarm.close()
    assert (played >= 9) is defended


# ── fuzz
def test_messages_that_are_changed_at_random_leave_no_memory_behind(flooded: Make) -> None:
    swarm = flooded(exchange=Exchange.PULL)
    node, random = swarm.ann._node, Random(7)
    rogues = [swarm.stranger(f"rogue-{number}") for number in range(4)]
    seeds = [pack_announcement(announce(rogue, make_contribution(rogue.peer, 1))) for rogue in rogues]
    seeds += [
        pack_announcement(announce(rogue, made), [shard.data for shard in encode(made, RUN)])
        for rogue in rogues
        for made in [make_contribution(rogue.peer, 2)]
    ]
    shards = [shard.data for number in range(8) for shard in encode(make_contribution(f"p{number}"), RUN)]

    async def send(count: int) -> None:
        for number in range(count):
            node.on_message("rogue-0", changed(random.choice(seeds), random))
            with suppress(Malformed):
                decode_shard(changed(random.choice(shards), random))
            if number % 500 == 0:
                await asyncio.sleep(0)

    thread = swarm.swarm.hub.thread
    thread.run(send(1000))
    gc.collect()
    tracemalloc.start()
    try:
        thread.run(send(4000))
        gc.collect()
        grown, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 256 << 10
    assert peak < 4 << 20
    assert sum(node.outcomes.values()) > 2500


def changed(message: bytes, random: Random) -> bytes:
    """Return a message with some bits flipped, or bytes left out or added."""
    data = bytearray(message)
    for _ in range(random.choice([1, 1, 2, 8])):
        at = random.randrange(len(data))
        match random.randrange(4):
            case 0 | 1:
                data[at] ^= 1 << random.randrange(8)
            case 2:
                del data[at : at + random.randrange(1, 9)]
            case _:
                data[at:at] = random.randbytes(random.randrange(1, 9))
        if not data:
            return b""
    return bytes(data)
