"""Strangers that announce and send their bodies slowly, not at all, or under many names, against four peers of one run.

In virtual time: a round takes one second, a body of an honest peer 20 ms, and a stage waits for 120 seconds at most.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import msgpack
import pytest
from contributions import make_contribution
from paced_swarms import PacedPeer, PacedSwarm
from swarms import RUN, RoguePeer

from swarmgame.game.protocol import Exchange
from swarmgame.game.state import PeerId
from swarmgame.swarm.codec import encode
from swarmgame.swarm.inbox import Inbox
from swarmgame.swarm.messages import make_announcement
from swarmgame.swarm.node import SwarmNode
from swarmgame.swarm.pull import ShardPuller
from swarmgame.swarm.shares import Shares

FOUR = ("ann", "bob", "dan", "eve")
SECONDS = 30.0
QUIET = 30
"""Rounds of an undisturbed swarm in that time."""
DRIP_SECONDS = 300.0
SHARD_BYTES = 16 << 20

MakeSwarm = Callable[..., PacedSwarm]


@pytest.fixture
def swarm_of() -> Iterator[MakeSwarm]:
    made: list[PacedSwarm] = []

    def make(**options: object) -> PacedSwarm:
        swarm = PacedSwarm(**options)  # type: ignore[arg-type]
        made.append(swarm)
        swarm.hub.body_seconds = lambda holder, receiver: 0.02 if holder in FOUR else DRIP_SECONDS
        return swarm

    yield make
    for each in made:
        each.close()


class Dripping(RoguePeer):
    """A peer that announces large bodies in every round, claims that they are worth most, and lets them drip."""

    def __init__(self, swarm: PacedSwarm, name: PeerId = "rogue") -> None:
        super().__init__(swarm.hub.identity(name), name, swarm.hub.transport(name), swarm.hub.thread)
        self.swarm = swarm

    def announce(self, round: int, stages: Sequence[int] = (0,)) -> None:
        self.swarm.greet(self.transport, self.identity, round)  # type: ignore[arg-type]
        for stage in stages:
            rows = [[os.urandom(32), SHARD_BYTES, 1, 1, 0.5, 100] for _ in range(4)]
            self.bodies.update({row[0]: b"" for row in rows})
            index = msgpack.packb([0, rows])
            made = make_announcement(RUN, self.peer, round, stage, index, 2_000_000_000, self.identity.sign)
            for peer in self.swarm.peers[: len(FOUR)]:
                self.send_announcement(peer.name, made.message)


def drip(swarm: PacedSwarm, *rogues: Dripping, stages: Sequence[int] = (0,)) -> float:
    """Let strangers announce for each round. Return the rounds that the slowest honest peer finishes in 30 s."""
    before = [len(peer.finished) for peer in swarm.peers[:4]]
    for _ in range(int(SECONDS)):
        for rogue in rogues:
            rogue.announce(swarm.peers[0].number, stages)
        swarm.pass_time(1.0)
    return min(len(peer.finished) - was for peer, was in zip(swarm.peers[:4], before, strict=True))


def without_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what bounds the memory and the places of strangers, which stops these attacks too."""
    monkeypatch.setattr(Shares, "room", lambda shares, share: 1 << 40)
    monkeypatch.setattr(Inbox, "refusal", lambda inbox, announcement, sender: "")


def wait_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for the body of any peer as long as for one of an anchor."""
    without_bounds(monkeypatch)
    monkeypatch.setattr(ShardPuller, "_until", lambda puller, peer, times: times.anchors)


@pytest.mark.parametrize(("defended", "rogues"), [(True, 1), (True, 8), (False, 1)])
def test_bodies_that_drip_hold_up_no_stage(
    swarm_of: MakeSwarm, monkeypatch: pytest.MonkeyPatch, defended: bool, rogues: int
) -> None:
    if not defended:
        wait_for_all(monkeypatch)
    swarm = swarm_of(anchors=FOUR, exchange=Exchange.PULL, external=4)  # one more than the other three have
    swarm.add(*FOUR)
    swarm.pass_time(5.0)
    pace = drip(swarm, *(Dripping(swarm, f"rogue-{number}") for number in range(rogues)))
    if not defended:
        assert pace <= 2
        return
    assert pace >= 0.8 * QUIET
    for peer in swarm.peers:
        assert {len(collected.contributions) for collected in peer.collected[2:]} == {3}
        assert peer.standing("rogue-0") == "probation"


def test_a_stage_that_has_enough_waits_for_no_body(swarm_of: MakeSwarm) -> None:
    swarm = swarm_of(anchors=FOUR, exchange=Exchange.PULL, external=3)
    swarm.add(*FOUR)
    swarm.pass_time(5.0)
    asked: Counter[PeerId] = Counter()

    def seconds(holder: PeerId, receiver: PeerId) -> float:
        asked[holder] += 1
        return 0.02 if holder in FOUR else DRIP_SECONDS

    swarm.hub.body_seconds = seconds
    before = [len(peer.gaps) for peer in swarm.peers]
    assert drip(swarm, Dripping(swarm)) >= 0.95 * QUIET
    assert all(gap < 1.05 for peer, was in zip(swarm.peers, before, strict=True) for gap in peer.gaps[was:])
    # Only to see whether the stranger delivers: one body a round and peer, in the background.
    assert asked["rogue"] <= len(FOUR) * (QUIET + 1)


@pytest.mark.parametrize("defended", [True, False])
def test_a_counted_stranger_whose_bodies_begin_to_drip_costs_half_a_round_once(
    swarm_of: MakeSwarm, monkeypatch: pytest.MonkeyPatch, defended: bool
) -> None:
    if not defended:
        wait_for_all(monkeypatch)
    swarm = swarm_of(anchors=FOUR, exchange=Exchange.PULL, external=4)
    drips = False

    def seconds(holder: PeerId, receiver: PeerId) -> float:
        return 0.02 if holder in FOUR or not drips else DRIP_SECONDS

    swarm.hub.body_seconds = seconds
    swarm.add(*FOUR)
    swarm.pass_time(4.5)
    swarm.add("stranger")
    swarm.pass_time(9.0)
    honest = swarm.peers[:4]
    assert {peer.standing("stranger") for peer in honest} == {"counted"}
    drips, before = True, len(honest[0].gaps)
    swarm.pass_time(SECONDS)
    if not defended:
        assert max(len(peer.gaps) for peer in honest) - before <= 10
        return
    for peer in honest:
        assert peer.standing("stranger") in ("missed", "probation")
        assert len([gap for gap in peer.gaps[before:] if gap > 1.15]) == 1
        assert max(peer.gaps[before:]) <= 1.5 + 0.2 + 0.05
    assert min(len(peer.gaps) for peer in honest) - before >= 0.8 * QUIET


@pytest.mark.parametrize("defended", [True, False])
def test_bodies_that_drip_take_no_stream_from_others_when_every_peer_fetches_all(
    swarm_of: MakeSwarm, monkeypatch: pytest.MonkeyPatch, defended: bool
) -> None:
    if not defended:
        without_bounds(monkeypatch)
        monkeypatch.setattr(SwarmNode, "_streams_of", lambda node, author: node._streams_of_anchors)
    swarm = swarm_of(anchors=FOUR, quorum=0.67, inline_bytes=0)
    swarm.add(*FOUR)
    swarm.pass_time(5.0)
    pace = drip(swarm, Dripping(swarm), stages=(0, 1, 2, 3))
    if not defended:
        assert pace <= 2
        return
    assert pace >= 0.8 * QUIET
    assert {len(collected.contributions) for peer in swarm.peers for collected in peer.collected[2:]} == {3}


@pytest.mark.parametrize("defended", [True, False])
def test_one_connection_gives_no_groups_under_invented_names(
    swarm_of: MakeSwarm, monkeypatch: pytest.MonkeyPatch, defended: bool
) -> None:
    if not defended:
        without_bounds(monkeypatch)
        monkeypatch.setattr(SwarmNode, "_gossips", lambda node: True)
    swarm = swarm_of(anchors=FOUR, exchange=Exchange.PULL, external=8)
    swarm.add(*FOUR)
    swarm.pass_time(5.0)
    transport = swarm.hub.transport("rogue")
    rogue = RoguePeer(swarm.hub.identity("rogue"), "rogue", transport, swarm.hub.thread)
    before = len(swarm.peers[0].collected)
    for _ in range(10):
        for number in range(10):
            name = f"key-{number}"
            made = make_contribution(name, swarm.peers[0].number, groups=1)
            message = rogue.announcement(made, signer=swarm.hub.identity(name))
            for peer in swarm.peers:
                rogue.send_announcement(peer.name, message, [shard.data for shard in encode(made, RUN)])
        swarm.pass_time(1.0)
    invented = share_of_keys(swarm.peers[0], before)
    if defended:
        assert invented == 0.0
        assert sum(each.outcomes.get("second-hand", 0) for each in swarm.peers[0].collected) >= 90
    else:
        assert invented >= 0.5


@pytest.mark.parametrize("defended", [True, False])
def test_keys_of_one_address_give_as_many_groups_as_one_peer(
    swarm_of: MakeSwarm, caplog: pytest.LogCaptureFixture, defended: bool
) -> None:
    keys = [f"key-{number}" for number in range(10)]
    swarm = swarm_of(anchors=FOUR, exchange=Exchange.PULL, external=8)
    swarm.hub.body_seconds = lambda holder, receiver: 0.02
    if defended:
        swarm.hub.addresses.update(dict.fromkeys(keys, "192.0.2.7"))
    swarm.add(*FOUR)
    swarm.pass_time(5.0)
    before = len(swarm.peers[0].collected)
    rogues = [RoguePeer(swarm.hub.identity(key), key, swarm.hub.transport(key), swarm.hub.thread) for key in keys]
    for _ in range(16):
        for rogue in rogues:
            swarm.greet(rogue.transport, rogue.identity, swarm.peers[0].number)  # type: ignore[arg-type]
            made = make_contribution(rogue.peer, swarm.peers[0].number, groups=1)
            for peer in swarm.peers:
                rogue.send_announcement(peer.name, rogue.announcement(made))
        swarm.pass_time(1.0)
    assert ("raise communication.countedPerAddress" in caplog.text) == defended
    rounds = swarm.peers[0].collected[before:]
    of_keys = [sum(each.peer in keys for each in collected.contributions) for collected in rounds]
    if defended:
        # One together while none of them counts; then four do, each for itself, and the others still are one.
        assert max(of_keys[:3]) == 1
        assert max(of_keys) <= 5
        assert [swarm.peers[0].standing(key) for key in keys].count("counted") == 4
    else:
        assert min(of_keys[1:]) >= 5
        assert [swarm.peers[0].standing(key) for key in keys].count("counted") > 4


def share_of_keys(peer: PacedPeer, since: int) -> float:
    """Return the share of the contributions that invented keys have signed."""
    authors = [each.peer for collected in peer.collected[since:] for each in collected.contributions]
    return sum(author.startswith("key-") for author in authors) / len(authors)
