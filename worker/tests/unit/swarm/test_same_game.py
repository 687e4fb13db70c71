"""Peers of another game are named when they meet, and are no members."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from exchange_contract import gather
from swarms import MemorySwarm

from swarmgame.errors import ExitCode, Refused, Temporary, exit_code_of
from swarmgame.game.sources import Sources
from swarmgame.swarm.identity import Identity, verify
from swarmgame.swarm.messages import Rejected, make_heartbeat, parse_heartbeat

OURS = Sources(*(digit * 16 for digit in "12345"))
OTHER_DATA = replace(OURS, data="d" * 16)
OTHER_MODEL = replace(OURS, model="e" * 16)


@pytest.fixture
def swarm() -> Iterator[MemorySwarm]:
    made = MemorySwarm()
    yield made
    made.close()


def joining(swarm: MemorySwarm, name: str, sources: Sources, min_replicas: int = 2) -> tuple[Any, Future[None]]:
    peer = swarm.peer(name, join=False, sources=sources)
    future = swarm.pool.submit(peer.join, min_replicas=min_replicas, timeout_seconds=30.0)
    return peer, future


def ended(swarm: MemorySwarm, future: Future[None]) -> None:
    swarm.until(future.done, 60.0)


@pytest.mark.parametrize("min_replicas", [1, 2])
def test_a_peer_that_differs_from_all_members_is_refused_at_join_and_told_why(
    swarm: MemorySwarm, min_replicas: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        ann = swarm.peer("ann", sources=OURS)
        _, future = joining(swarm, "bob", replace(OTHER_DATA, code="c" * 16), min_replicas)
        ended(swarm, future)
    error = future.exception()
    assert isinstance(error, Refused)
    assert exit_code_of(error) is ExitCode.REFUSED
    for part in (
        "your data differs: theirs 22222222, yours dddddddd",
        "your code differs: theirs 33333333, yours cccccccc",
        "take their spec.game.data",
        "modules beside game.yaml",
    ):
        assert part in str(error)
    assert [member.peer for member in ann.membership()] == ["ann"]
    assert "peer …bob plays another game" in caplog.text
    assert ann.collect(0, 0, gather()).outcomes["other-game"] >= 1


def test_one_member_that_agrees_is_enough_to_stay(swarm: MemorySwarm) -> None:
    swarm.peer("eve", sources=OTHER_DATA)
    swarm.hub.advance(1.0)
    dan, future = joining(swarm, "dan", OURS)
    swarm.hub.advance(2.0)
    assert not future.done()
    # It agrees with dan, and so it stays too.
    fay, later = joining(swarm, "fay", OURS)
    ended(swarm, later)
    ended(swarm, future)
    assert future.exception() is later.exception() is None
    assert [member.peer for member in dan.membership()] == ["dan", "fay"]
    assert [member.peer for member in fay.membership()] == ["dan", "fay"]


def test_announcements_of_another_game_are_not_collected(swarm: MemorySwarm, contribution_of: Any) -> None:
    ann = swarm.peer("ann", sources=OURS)
    eve = swarm.peer("eve", join=False, sources=OTHER_DATA)
    future = swarm.pool.submit(eve.join, min_replicas=1, timeout_seconds=30.0)
    swarm.hub.advance(1.0)
    assert not future.done()
    # Its heartbeat is known; now it publishes although it differs.
    swarm.hub.thread.run(eve._node.publish(eve._node.prepare(contribution_of("eve"))))
    swarm.hub.advance(1.0)
    collected = ann.collect(0, 0, gather())
    assert (collected.contributions, collected.members) == ((), ("ann",))
    ended(swarm, future)


def test_another_base_model_is_information(swarm: MemorySwarm, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        ann = swarm.peer("ann", sources=OURS)
        bob = swarm.peer("bob", min_replicas=2, sources=OTHER_MODEL)
    assert [member.peer for member in bob.membership()] == ["ann", "bob"]
    assert [member.peer for member in ann.membership()] == ["ann", "bob"]
    assert "peer …ann has another base model than this one (theirs 55555555, ours eeeeeeee)" in caplog.text


def test_peers_of_an_earlier_release_still_work(swarm: MemorySwarm, contribution_of: Any) -> None:
    ann = swarm.peer("ann", sources=OURS)
    old = swarm.peer("old", min_replicas=2)
    assert [member.peer for member in ann.membership()] == ["ann", "old"]
    old.publish(contribution_of("old"))
    assert len(ann.collect(0, 0, gather()).contributions) == 1


def test_last_heartbeats_of_processes_that_have_ended_refuse_no_peer(swarm: MemorySwarm) -> None:
    """After a change of the game all peers start again, and the directory still holds what they sent before."""
    swarm.peer("ann", sources=OURS)
    swarm.hub.kill("ann")
    bob, future = joining(swarm, "bob", OTHER_DATA, min_replicas=1)
    ended(swarm, future)
    assert future.exception() is None
    assert [member.peer for member in bob.membership()] == ["bob"]


def test_peers_that_are_not_admitted_refuse_no_peer(swarm: MemorySwarm) -> None:
    swarm.peer("eve", sources=OTHER_DATA)
    bob = swarm.peer("bob", sources=OURS, admission=lambda peer: peer != "eve")
    assert [member.peer for member in bob.membership()] == ["bob"]


def test_a_peer_that_corrects_its_game_becomes_a_member(swarm: MemorySwarm) -> None:
    ann = swarm.peer("ann", sources=OURS)
    _, future = joining(swarm, "bob", OTHER_DATA)
    ended(swarm, future)
    assert isinstance(future.exception(), Refused)
    swarm.peer("bob", min_replicas=2, sources=OURS)
    assert [member.peer for member in ann.membership()] == ["ann", "bob"]


# ── the wire format
ANN = Identity.named("ann")


def test_a_heartbeat_without_process_and_sources_is_that_of_earlier_releases() -> None:
    plain = make_heartbeat("run", ANN.peer, 3, 1, 99.5, ANN.sign)
    assert len(msgpack.unpackb(msgpack.unpackb(plain.message)[0])) == 7
    full = make_heartbeat("run", ANN.peer, 3, 1, 99.5, ANN.sign, process=b"process1", sources=OURS)
    parsed = parse_heartbeat(full.message, "run", verify)
    assert parsed == full
    assert (parsed.process, parsed.sources) == (b"process1", OURS)
    addresses = [f"/dns4/{'a' * 60}.example.org/tcp/31000"] * 4
    longest = make_heartbeat(
        "run", ANN.peer, 2**39, 1, 1e9, ANN.sign, addresses=addresses, process=b"process1", sources=OURS
    )
    assert len(longest.message) <= 512
    assert len(longest.addresses) >= 3


@pytest.mark.parametrize("origin", [1, [], [b"p"], [b"p"] * 5, [b"p"] * 5 + ["t"], [b"p" * 9] * 6, [b"p"] * 5 + [None]])
def test_origins_of_another_form_are_malformed(origin: Any) -> None:
    packed = msgpack.packb([1, ANN.peer, 0, 0, 99.5, [], False, origin])
    fields = [b"swarmgame-heartbeat/1", b"run", packed]
    text = b"".join(len(part).to_bytes(4, "big") + part for part in fields)
    with pytest.raises(Rejected, match="malformed"):
        parse_heartbeat(msgpack.packb([packed, ANN.sign(text)]), "run", verify)


def test_only_an_address_without_members_is_told_apart_from_silence(
    swarm: MemorySwarm, caplog: pytest.LogCaptureFixture
) -> None:
    _, silent = joining(swarm, "ann", OURS)
    ended(swarm, silent)
    assert isinstance(silent.exception(), Temporary)
    swarm.rogue("bootnode")
    with caplog.at_level(logging.WARNING):
        _, alone = joining(swarm, "bob", OURS)
        ended(swarm, alone)
    assert alone.exception() is None
    assert "peers of another metadata.name or game.seed do not see each other" in caplog.text
