"""The memory backend keeps the contract, in virtual time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from exchange_contract import ExchangeContract, gather, pull, trio
from swarms import MemorySwarm

from swarmgame.game.protocol import ClosedBy
from swarmgame.swarm.clock import Clock


@pytest.fixture
def swarm() -> Iterator[MemorySwarm]:
    made = MemorySwarm()
    yield made
    made.close()


class TestMemoryBackend(ExchangeContract):
    pass


def test_a_peer_that_has_played_the_last_round_tells_the_others_at_once(swarm: MemorySwarm) -> None:
    ann, bob = swarm.peer("ann", max_rounds=3), swarm.peer("bob", max_rounds=3, min_replicas=2)

    def seen_by(peer: Any) -> dict[str, int]:
        return {member.peer: member.round for member in peer.membership()}

    ann.announce_progress(2, 0)
    bob.announce_progress(2, 0)
    swarm.pass_time(1.0)
    assert (seen_by(bob)["ann"], seen_by(ann)["bob"]) == (0, 0), "before the next heartbeats"
    ann.announce_progress(3, 0)
    swarm.pass_time(1.0)
    assert (seen_by(bob)["ann"], seen_by(ann)["bob"]) == (3, 2)
    bob.announce_progress(3, 0)
    swarm.pass_time(1.0)
    assert seen_by(ann)["bob"] == 3


def test_lost_announcements_are_requested(swarm: MemorySwarm, contribution_of: Any) -> None:
    ann, bob, eve = trio(swarm)
    ann.collect(0, 0, gather(0.01))
    swarm.hub.lost = lambda sender, receiver, message: message[:1] == b"A"
    for peer in (bob, eve):
        peer.publish(contribution_of(peer.peer, 1))
    collecting = swarm.begin(ann, 1, 0, gather())
    swarm.pass_time(0.9)
    assert not collecting.done()
    swarm.pass_time(0.2)
    assert len(collecting.result(10).contributions) == 2


def test_a_peer_that_dies_without_notice_is_waited_for_until_its_heartbeat_expires(
    swarm: MemorySwarm, contribution_of: Any
) -> None:
    ann, bob, eve = trio(swarm)
    bob.publish(contribution_of(bob.peer))
    swarm.hub.kill(eve.peer)
    collecting = swarm.begin(ann, 0, 0, gather(1.0, 600.0))
    swarm.pass_time(9.0)
    assert not collecting.done()
    swarm.pass_time(12.0)
    collected = collecting.result(10)
    assert (collected.closed_by, collected.members) == (ClosedBy.QUORUM, tuple(sorted([ann.peer, bob.peer])))
    assert collected.outcomes["unreachable"] >= 1


@pytest.mark.parametrize("vouched", [True, False], ids=["an anchor", "any other peer"])
def test_a_peer_that_hangs_costs_one_deadline_and_counts_again_once_it_delivers(
    swarm: MemorySwarm, contribution_of: Any, vouched: bool
) -> None:
    ann, bob, eve = trio(swarm, anchors=frozenset({"ann", "bob", "eve"} if vouched else ()))

    def play(round: int, *others: Any) -> Any:
        collecting = swarm.begin(ann, round, 0, gather(1.0, swarm.deadline))
        for peer in others:
            peer.publish(contribution_of(peer.peer, round))
        return collecting

    first = play(1, bob)
    swarm.pass_time(swarm.deadline)
    assert (first.result(10).closed_by, first.result(10).missing) == (ClosedBy.DEADLINE, (eve.peer,))
    for round in (2, 3):  # eve's heartbeats go on, so she is still a member
        collected = play(round, bob).result(10)
        assert (collected.closed_by, collected.standings[eve.peer]) == (ClosedBy.QUORUM, "missed")
        assert collected.missing == ((eve.peer,) if vouched else ())
        assert collected.seconds < 1
        assert eve.peer in collected.members

    rounds = 1 if vouched else 3
    for round in range(4, 4 + rounds):
        eve.publish(contribution_of(eve.peer, round))
        swarm.pass_time(0.1)
        assert len(play(round, bob).result(10).contributions) == 2
    play(4 + rounds, bob).result(10)  # round 3 + rounds is judged when this one closes
    waiting = play(5 + rounds, bob)
    swarm.pass_time(0.1)
    assert not waiting.done()
    eve.publish(contribution_of(eve.peer, 5 + rounds))
    assert len(waiting.result(10).contributions) == 2


def test_when_all_others_die_the_last_peer_is_alone(swarm: MemorySwarm) -> None:
    ann, bob, eve = trio(swarm)
    collecting = swarm.begin(ann, 0, 0, gather(1.0, 600.0))
    for peer in (bob, eve):
        swarm.hub.kill(peer.peer)
    swarm.pass_time(21.0)
    assert collecting.result(10).closed_by is ClosedBy.ISOLATED


def test_members_of_a_checkpoint_count_for_one_lifetime_without_a_heartbeat(swarm: MemorySwarm) -> None:
    ann = swarm.peer("ann", join=False)
    ann.join(expect=["bob", "eve"])
    assert [member.peer for member in ann.membership()] == ["ann", "bob", "eve"]
    swarm.pass_time(16.0)
    assert [member.peer for member in ann.membership()] == ["ann"]


def test_a_restarted_peer_may_publish_the_same_again(swarm: MemorySwarm, contribution_of: Any) -> None:
    ann, bob, _ = trio(swarm)
    bob.publish(contribution_of(bob.peer))
    assert len(ann.collect(0, 0, gather(0.5)).contributions) == 1
    swarm.hub.kill(bob.peer)
    again = swarm.peer("bob", min_replicas=3)
    again.publish(contribution_of("bob"))
    outcomes = ann.collect(0, 0, gather(0.01)).outcomes
    assert outcomes.get("equivocation", 0) == 0
    assert ann.collect(1, 0, gather(0.01, max_staleness=1)).contributions == ()


@pytest.mark.parametrize("count", [4, 16, 40])
def test_in_a_large_pulling_swarm_each_sends_to_a_few_and_all_find_what_they_need(
    swarm: MemorySwarm, contribution_of: Any, count: int
) -> None:
    peers = [swarm.peer(f"peer-{n:02}", inline_bytes=0) for n in range(count)]
    for _ in range(8):
        swarm.pass_time(6.0)
        assert all(len(peer.membership()) == count for peer in peers if swarm.hub.clock.now() > 1_000_007)
    policy = pull(6, 2)
    for peer in peers:
        assert len(peer.membership()) == count
        peer.collect(0, 0, pull(6, 2, quorum=0.01))
    before = [peer._node.transport.traffic.messages_sent for peer in peers]
    for peer in peers:
        peer.publish(contribution_of(peer.peer, 1))
    sent = [peer._node.transport.traffic.messages_sent - was for peer, was in zip(peers, before, strict=True)]
    for peer in peers:
        collected = peer.collect(1, 0, policy)
        assert collected.closed_by is ClosedBy.QUORUM
        assert len(collected.contributions) == 3
    # Its own announcement to its successors, and the empty answers to its predecessors.
    assert max(sent) <= 2 * min(count - 1, 6)


def test_in_a_large_gathering_swarm_announcements_are_gossiped(swarm: MemorySwarm, contribution_of: Any) -> None:
    peers = [swarm.peer(f"peer-{n:02}") for n in range(40)]
    swarm.pass_time(6.0)
    for peer in peers:
        peer.publish(contribution_of(peer.peer, groups=1, rollouts=1))
    collecting = [swarm.begin(peer, 0, 0, gather()) for peer in peers[:3]]
    swarm.pass_time(30.0)
    assert [len(future.result(10).contributions) for future in collecting] == [39, 39, 39]


def test_the_state_of_peers_that_have_left_is_forgotten(swarm: MemorySwarm, contribution_of: Any) -> None:
    ann = swarm.peer("ann")
    for number in range(12):
        visitor = swarm.peer(f"visitor {number}")
        visitor.publish(contribution_of(visitor.peer, number))
        ann.publish(contribution_of(ann.peer, number))
        ann.collect(number, 0, gather(1.0))
        swarm.hub.kill(visitor.peer)
        swarm.pass_time(40.0)
    ann.collect(20, 0, gather(0.01))
    swarm.pass_time(120.0)
    node = ann._node
    discovery = node.discovery
    assert len(discovery._known) <= 4  # our own last few
    assert (discovery._reached, discovery.backoff._until) == (set(), {})
    inbox = node.inbox
    held = [shares.total(counts=counts) for shares in (inbox.places, inbox.kept_bytes) for counts in (True, False)]
    assert held == [0, 0, 0, 0]


class OffClock:
    """The clock of a machine that is wrong by some seconds."""

    def __init__(self, right: Clock, seconds: float) -> None:
        self.right, self.seconds = right, seconds
        self.wait, self.offload, self.set_since = right.wait, right.offload, right.set_since

    def now(self) -> float:
        return self.right.now() + self.seconds


@pytest.mark.parametrize("seconds", [7200.0, -7200.0])
def test_a_peer_whose_clock_is_wrong_by_two_hours_plays_along(
    swarm: MemorySwarm, contribution_of: Any, seconds: float
) -> None:
    ann, bob = swarm.group("ann", "bob")
    right = swarm.hub.clock
    swarm.hub.clock = OffClock(right, seconds)
    cid = swarm.peer("cid", join=False)
    swarm.hub.clock = right
    joining = swarm.pool.submit(cid.join, min_replicas=3, timeout_seconds=10.0)
    swarm.until(joining.done, 60.0)
    joining.result()
    peers = {"ann": ann, "bob": bob, "cid": cid}
    received = []
    for number in range(4):
        for name, peer in peers.items():
            peer.publish(contribution_of(name, number))
        running = [swarm.begin(peer, number, 0, gather(1.0, 5.0)) for peer in peers.values()]
        swarm.until(lambda: all(each.done() for each in running), 60.0)  # noqa: B023
        received.append([len(each.result().contributions) for each in running])
    assert received == [[2, 2, 2]] * 4
