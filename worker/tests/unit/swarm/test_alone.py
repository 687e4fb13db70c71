"""When a peer is alone, and whom it greets first, in virtual time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from contributions import make_contribution
from floods import Flooded
from swarms import RUN, MemorySwarm

from swarmgame.game.protocol import ClosedBy, CollectPolicy, Exchange
from swarmgame.swarm import membership
from swarmgame.swarm.counted_peers import CountedPeers, CountingRules, PeerRecord, Standing
from swarmgame.swarm.membership import Membership
from swarmgame.swarm.messages import make_heartbeat

EITHER = pytest.mark.parametrize("vouched", [True, False], ids=["an anchor", "any other peer"])


def anchors(vouched: bool) -> frozenset[str]:
    return frozenset({"ann", "bob"} if vouched else ())


@pytest.fixture
def swarm() -> Iterator[MemorySwarm]:
    made = MemorySwarm()
    yield made
    made.close()


@EITHER
def test_a_peer_is_not_alone_while_the_only_other_one_has_missed_a_stage(swarm: MemorySwarm, vouched: bool) -> None:
    ann, _ = swarm.group("ann", "bob", anchors=anchors(vouched))
    closed = []
    for round in range(3):
        collecting = swarm.begin(ann, round, 0, CollectPolicy(Exchange.GATHER, 1.0, 10.0))
        swarm.pass_time(10.0)
        closed.append(collecting.result(10).closed_by)
    assert ann._node.members.counted.standing("bob") == "missed"
    assert closed == [ClosedBy.DEADLINE] * 3


@EITHER
def test_the_other_peer_is_not_alone_when_one_was_killed_and_plays_its_rounds_again(vouched: bool) -> None:
    two = Flooded(anchors=anchors(vouched))

    def play_again(round: int) -> None:
        """Let the second peer announce another contribution to a round, as a new process does."""
        again = replace(make_contribution("bob", round), policy_version=99)
        node = two.bob._node
        message = b"A" + node.encode_announcement(node.prepare(again))

        async def receive() -> None:
            two.ann._node.on_message("bob", message)

        two.swarm.hub.thread.run(receive())

    try:
        for _ in range(3):
            two.play()
        play_again(2)
        assert [each.closed_by for each in two.play()] == [ClosedBy.QUORUM] * 2
        play_again(3)
        assert two.ann._node.inbox.is_banned("bob")
        for round in range(4, 14):
            banned = two.ann.collect(round, 0, two.policy)
            assert (banned.closed_by, banned.members) == (ClosedBy.DEADLINE, ("ann",))
        two.round = 14
        two.bob.announce_progress(14, 0)
        two.swarm.pass_time(11.0)
        assert [each.closed_by for each in two.play()] == [ClosedBy.QUORUM] * 2
    finally:
        two.close()


def test_keys_that_announced_once_keep_no_anchor_and_no_counted_peer_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "MAX_MEMBERS", 4)
    members = Membership("me", lambda peer: True, 15.0, CountingRules(frozenset({"anchor"})))
    for number, peer in enumerate(["counted", "delivers", "key-2", "key-3"]):
        members.touch(peer, 0, 0, 100.0)
        members.contributed(peer, number)
    records = {
        "counted": PeerRecord(Standing.COUNTED, 3),
        "delivers": PeerRecord(Standing.PROBATION, 2),
        "key-2": PeerRecord(Standing.PROBATION),
        "key-3": PeerRecord(Standing.PROBATION),
    }
    members.counted = CountedPeers(members.counted.rules, records, started=True)
    members.touch("anchor", 0, 0, 101.0)
    assert members.others(101.0) == ["anchor", "counted", "delivers", "key-3"]
    for number in range(5):
        members.touch(f"key-{4 + number}", 0, 0, 101.0)
        members.contributed(f"key-{4 + number}", 9)
    assert members.others(101.0) == ["anchor", "counted", "delivers", "key-8"]


@pytest.mark.parametrize("named", [True, False], ids=["an initial peer", "known by its heartbeat"])
def test_dead_peers_do_not_take_the_places_of_a_live_one_when_a_peer_joins(swarm: MemorySwarm, named: bool) -> None:
    dead = [f"dead-{number:02}" for number in range(60)]
    for name in [*dead, "live"]:
        rogue = swarm.rogue(name)
        expires = swarm.hub.clock.now() + 75.0
        message = make_heartbeat(RUN, name, 0, 0, expires, rogue.identity.sign).message
        swarm.hub.thread.run(rogue.transport.advertise(message, expires))
        if name in dead:
            swarm.hub.kill(name)
    ann = swarm.peer("ann", join=False)
    if not named:

        async def connect() -> list[str]:
            return ["dead-00"]

        ann._node.transport.connect_initial_peers = connect  # type: ignore[method-assign]
    greeted: list[str] = []
    swarm.hub.lost = lambda sender, receiver, message: bool(greeted.append(receiver))  # type: ignore[func-returns-value]
    joining = swarm.pool.submit(ann.join, min_replicas=100, timeout_seconds=10.0)
    swarm.until(joining.done)
    joining.result()
    assert "live" in greeted
