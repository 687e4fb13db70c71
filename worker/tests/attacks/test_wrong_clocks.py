"""A clock that is wrong: it is measured against the others' and shown, and the swarm goes on; a peer that lies about
its time changes nothing for others. In virtual time; heartbeats last 15 seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import pytest
from paced_swarms import PacedPeer, PacedSwarm, making

from swarmgame.game.protocol import ClosedBy
from swarmgame.swarm.membership import Membership
from swarmgame.swarm.peer_clocks import PeerClocks
from swarmgame.swarm.transports.memory import MemoryTransport

THREE = ("ann", "bob", "dan")
HOUR, DAY = 3600.0, 86_400.0
SECONDS = 30.0


class OneInitialPeer(MemoryTransport):
    """Knows one address at first, as a peer that joins by a command does."""

    async def connect_initial_peers(self) -> Sequence[str]:
        return [THREE[0]]

    async def ping_initial_peer(self, known: Collection[str]) -> None:
        """Do nothing."""


@pytest.fixture
def swarm_of() -> Iterator[Callable[..., PacedSwarm]]:
    with making(PacedSwarm) as make:
        yield make


def believe_our_own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judge every message by the time here."""
    update = Membership.update
    monkeypatch.setattr(PeerClocks, "now_of", lambda clocks, peer, now: now)
    monkeypatch.setattr(Membership, "update", lambda members, heartbeat, now, **known: update(members, heartbeat, now))


def heard(peer: PacedPeer, rounds: int) -> list[int]:
    """Return how many contributions a peer had in each of its last rounds."""
    return [len(collected.contributions) for collected in peer.collected[-rounds:]]


@pytest.mark.parametrize("ahead", [20.0, HOUR, 10 * DAY, -20.0, -HOUR, -10 * DAY])
def test_a_peer_with_a_wrong_clock_joins_and_plays_and_knows_by_how_much_it_is_wrong(
    swarm_of: Callable[..., PacedSwarm], ahead: float
) -> None:
    swarm = swarm_of()
    swarm.add(*THREE)
    swarm.pass_time(5.0)
    wrong = swarm.add("wrong", ahead=ahead, connect=OneInitialPeer)
    assert set(wrong.node.members.confirmed(wrong.clock.now())) >= {THREE[0]}
    swarm.pass_time(SECONDS)
    assert wrong.number >= 30
    assert heard(wrong, 20) == [3] * 20
    assert [heard(peer, 20) for peer in swarm.peers[:3]] == [[3] * 20] * 3
    assert wrong.clock_error == pytest.approx(ahead, abs=1.0)
    assert [peer.clock_error for peer in swarm.peers[:3]] == [pytest.approx(0.0, abs=1.0)] * 3
    assert set(wrong.closed_by[-20:]) == {ClosedBy.QUORUM}


def test_by_our_own_clock_alone_a_fast_peer_finds_nobody(
    swarm_of: Callable[..., PacedSwarm], monkeypatch: pytest.MonkeyPatch
) -> None:
    believe_our_own_clock(monkeypatch)
    swarm = swarm_of()
    swarm.add(*THREE)
    swarm.pass_time(5.0)
    wrong = swarm.add("wrong", ahead=HOUR, connect=OneInitialPeer)
    assert wrong.node.members.confirmed(wrong.clock.now()) == []


@pytest.mark.parametrize("liars", [1, 2])
def test_peers_that_lie_about_their_time_shift_no_other_clock(swarm_of: Callable[..., PacedSwarm], liars: int) -> None:
    swarm = swarm_of(anchors=THREE)
    swarm.add(*THREE)
    swarm.pass_time(3.0)
    for number in range(liars):
        swarm.add(f"liar-{number}", ahead=HOUR)
    swarm.pass_time(SECONDS)
    honest = swarm.peers[:3]
    assert {peer.standing("liar-0") for peer in honest} == {"counted"}
    assert [peer.clock_error for peer in honest] == [pytest.approx(0.0, abs=1.0)] * 3
    assert {by for peer in honest for by in peer.closed_by} == {ClosedBy.QUORUM}


def test_a_clock_that_was_corrected_meanwhile_no_longer_counts_as_wrong(swarm_of: Callable[..., PacedSwarm]) -> None:
    swarm = swarm_of()
    swarm.add(*THREE)
    swarm.pass_time(5.0)
    wrong = swarm.add("wrong", ahead=HOUR)
    swarm.pass_time(SECONDS)
    wrong.clock.was_set = -HOUR
    swarm.pass_time(2.0)
    assert wrong.clock_error == pytest.approx(0.0, abs=1.0)
    assert heard(wrong, 1) == [3]
