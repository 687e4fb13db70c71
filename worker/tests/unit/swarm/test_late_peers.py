"""Peers whose announcements come after the stage has closed, and peers that were stopped, in virtual time.

A round takes one second; a late peer announces 0.6 s after the others have gone on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from paced_swarms import PacedPeer, PacedSwarm, making

from swarmgame.game.protocol import ClosedBy, Exchange
from swarmgame.swarm.transports.memory import MemoryTransport

FOUR = ("ann", "bob", "dan", "eve")
FAST = 0.02
DRIPPING = 300.0

MakeSwarm = Callable[..., PacedSwarm]


@pytest.fixture
def swarm_of() -> Iterator[MakeSwarm]:
    with making(PacedSwarm) as make:
        yield make


def bodies_take(swarm: PacedSwarm, seconds: float) -> None:
    """Let bodies of all but the four take so long."""
    swarm.hub.body_seconds = lambda holder, receiver: FAST if holder in FOUR else seconds


def standings_of(peer: PacedPeer, other: str, rounds: int) -> Counter[str]:
    """Return the standings of another peer in the last rounds."""
    return Counter(str(each.standings.get(other)) for each in peer.collected[-rounds:])


# ── newcomers
@pytest.mark.parametrize(
    ("exchange", "late", "seconds"),
    [(Exchange.PULL, 0.0, 0.6), (Exchange.PULL, 0.6, 0.3), (Exchange.PULL, 0.6, 0.6), (Exchange.GATHER, 0.6, 0.6)],
)
def test_a_newcomer_with_slow_bodies_comes_to_count_and_counts_in_most_rounds(
    swarm_of: MakeSwarm, exchange: Exchange, late: float, seconds: float
) -> None:
    swarm = swarm_of(anchors=FOUR, exchange=exchange, external=3, inline_bytes=0)
    bodies_take(swarm, seconds)
    swarm.add(*FOUR)
    swarm.pass_time(6.0 + late)
    swarm.add("newcomer")
    swarm.pass_time(30.0)
    for peer in swarm.peers[:4]:
        assert standings_of(peer, "newcomer", 16)["counted"] >= 8


@pytest.mark.parametrize("late", [0.0, 0.6])
def test_a_newcomer_whose_bodies_never_come_does_not_count(swarm_of: MakeSwarm, late: float) -> None:
    swarm = swarm_of(anchors=FOUR, exchange=Exchange.PULL, external=3)
    bodies_take(swarm, DRIPPING)
    swarm.add(*FOUR)
    swarm.pass_time(6.0 + late)
    swarm.add("newcomer")
    before = swarm.rounds()[:4]
    swarm.pass_time(12.0)
    for peer, was in zip(swarm.peers[:4], before, strict=True):
        assert standings_of(peer, "newcomer", 8) == {"probation": 8}
        assert len(peer.finished) - was >= 11
        # One watched shard at a time, given up before the next but one begins.
        assert len(peer.barrier._attendance._probing) <= 2
        assert len(peer.barrier._attendance._undecided) <= 2


def test_a_newcomer_is_watched_until_it_counts_or_fails_however_many_others_are_silent(swarm_of: MakeSwarm) -> None:
    swarm = swarm_of(anchors=FOUR, exchange=Exchange.PULL, external=3)
    bodies_take(swarm, 0.3)
    swarm.add(*FOUR)
    swarm.pass_time(6.0)
    swarm.silent_keys(20)
    swarm.pass_time(0.6)
    swarm.add("newcomer")
    swarm.pass_time(12.0)
    for peer in swarm.peers[:4]:
        assert "counted" in standings_of(peer, "newcomer", 12)


# ── contributions that are too late to be used
def test_a_counted_peer_whose_late_bodies_no_longer_come_stops_counting(swarm_of: MakeSwarm) -> None:
    swarm = swarm_of(anchors=FOUR, quorum=0.67, inline_bytes=0)
    swarm.policy = replace(swarm.policy, max_staleness=0)
    swarm.settings = replace(swarm.settings, keep_rounds=1)
    bodies_take(swarm, FAST)
    swarm.add(*FOUR)
    swarm.pass_time(6.6)
    swarm.add("late")
    swarm.pass_time(8.0)
    assert {peer.standing("late") for peer in swarm.peers[:4]} == {"counted"}
    bodies_take(swarm, DRIPPING)
    swarm.pass_time(4.0)
    assert {peer.standing("late") for peer in swarm.peers[:4]} <= {"missed", "probation"}
    assert all(each.outcomes.get("stale") for each in swarm.peers[0].collected[-2:])


def test_a_peer_that_answers_is_live_also_where_no_heartbeat_comes_through(
    swarm_of: MakeSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heartbeats lie at nodes that anyone may run, and a round may be longer than a heartbeat lasts."""
    swarm = swarm_of(anchors=FOUR, exchange=Exchange.GATHER)
    ann = swarm.add("ann")
    swarm.add("bob", work=40.0)
    swarm.pass_time(100.0)

    async def nothing(self: MemoryTransport, *, thorough: bool = False) -> list[bytes]:
        return []

    monkeypatch.setattr(MemoryTransport, "discover", nothing)
    before = len(ann.collected)
    swarm.pass_time(300.0)
    assert len(ann.collected) >= before + 6
    assert set(ann.closed_by[before:]) == {ClosedBy.QUORUM}


# ── a process that was stopped
@pytest.mark.parametrize("asleep", [8.0, 60.0, 36000.0])
def test_time_in_which_a_peer_was_stopped_is_not_taken_from_the_bodies_of_others(
    swarm_of: MakeSwarm, asleep: float
) -> None:
    swarm = swarm_of(exchange=Exchange.PULL, external=4)
    swarm.hub.body_seconds = lambda holder, receiver: 0.4
    ann = swarm.add("ann")
    swarm.add("bob", "dan", work=1.3)
    swarm.pass_time(20.0)
    assert {ann.standing(name) for name in ("bob", "dan")} == {"counted"}
    number = ann.number
    while ann.number == number:
        swarm.pass_time(0.05)
    swarm.pass_time(1.1)  # it has published, and waits for the other two
    ann.clock.ahead += asleep
    swarm.pass_time(2.0)
    assert ann.gaps[-1] > asleep
    assert not ann.collected[-1].missing
    assert len(ann.collected[-1].contributions) == 2
    assert {ann.standing(name) for name in ("bob", "dan")} == {"counted"}
