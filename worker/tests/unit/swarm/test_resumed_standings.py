"""Which peers count, after a restart from a checkpoint, in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from contributions import make_contribution
from paced_swarms import PacedPeer, PacedSwarm, making
from swarms import RUN, MemorySwarm, RoguePeer

from swarmgame.game.protocol import ClosedBy, CollectPolicy, Exchange
from swarmgame.game.ranks import OneRank
from swarmgame.runtime.checkpoint import CheckpointStore
from swarmgame.runtime.communication import PeerCommunication

MakeSwarm = Callable[..., PacedSwarm]
NAMES = ("ann", "bob", "dan")


@pytest.fixture
def swarm_of() -> Iterator[MakeSwarm]:
    with making(PacedSwarm) as make:
        yield make


def decisions(peer: PacedPeer) -> list[object]:
    """Return what a peer has decided in each round."""
    return [
        (
            each.closed_by,
            each.missing,
            [(one.round, one.peer) for one in each.contributions],
            dict(each.standings),
        )
        for each in peer.collected
    ]


def strangers(swarm: PacedSwarm, *, one_stops: bool) -> PacedPeer:
    """Let three peers without anchors play, and a fourth that soon stops or that comes later. Return the first."""
    for name in NAMES:
        swarm.add(name)
    if one_stops:
        swarm.add("fourth", plays_until=6)
    swarm.pass_time(4.5)
    if not one_stops:
        swarm.add("fourth")
    return swarm.peers[0]


@pytest.mark.parametrize("round", [5, 6, 7, 8, 9])
@pytest.mark.parametrize("one_stops", [True, False], ids=["one stops", "one comes"])
def test_a_peer_that_resumes_decides_as_if_it_had_not_been_interrupted(
    swarm_of: MakeSwarm, one_stops: bool, round: int
) -> None:
    undisturbed = swarm_of()
    expected = strangers(undisturbed, one_stops=one_stops)
    undisturbed.pass_time(16.0)
    swarm = swarm_of()
    peer = strangers(swarm, one_stops=one_stops)
    while len(peer.finished) < round:
        swarm.pass_time(0.1)
    swarm.restart(peer)
    swarm.pass_time(16.0)
    count = min(len(peer.collected), len(expected.collected))
    assert count >= 14
    assert decisions(peer)[:count] == decisions(expected)[:count]
    assert peer.standing("fourth") == ("missed" if one_stops else "counted")


@pytest.mark.parametrize("with_state", [True, False])
def test_keys_that_are_there_at_a_restart_do_not_count_by_that(swarm_of: MakeSwarm, with_state: bool) -> None:
    swarm = swarm_of(quorum=0.67, deadline=60.0)
    for name in NAMES:
        swarm.add(name)
    swarm.pass_time(6.0)
    swarm.silent_keys(5)
    peer = swarm.peers[0]
    before = len(peer.collected)
    swarm.restart(peer, with_state=with_state)
    swarm.pass_time(20.0)
    if with_state:
        assert len(peer.collected) - before >= 18
        assert {each.closed_by for each in peer.collected} == {ClosedBy.QUORUM}
    else:
        assert len(peer.collected) - before <= 2


def test_a_peer_that_was_away_for_long_skips_to_the_others_at_once(swarm_of: MakeSwarm) -> None:
    swarm = swarm_of(quorum=0.67)
    for name in NAMES:
        swarm.add(name)
    swarm.pass_time(6.0)
    peer = swarm.peers[0]
    swarm.restart(peer, away=40.0)
    swarm.pass_time(3.0)
    others = swarm.peers[1:]
    assert peer.skipped == 1
    assert max(other.number for other in others) - peer.number <= 1
    # It played none of the rounds that the others had left behind.
    assert all(one.round >= 40 for each in peer.collected[6:] for one in each.contributions)
    swarm.pass_time(6.0)
    assert {other.standing(peer.name) for other in others} == {"counted"}


def test_a_restarted_peer_leaves_out_a_peer_that_was_banned(swarm_of: MakeSwarm) -> None:
    swarm = swarm_of(anchors=NAMES)
    swarm.add(*NAMES)
    swarm.pass_time(4.5)
    peer = swarm.peers[0]
    rogue = RoguePeer(swarm.hub.identity("liar"), "liar", swarm.hub.transport("liar"), swarm.hub.thread)

    def announce(*sizes: int) -> None:
        for tokens in sizes:
            made = make_contribution("liar", peer.number, groups=1, rollouts=1, tokens=tokens)
            rogue.send_announcement(peer.name, rogue.announcement(made))
        swarm.pass_time(1.0)

    announce(1, 2)
    announce(1, 2)
    assert peer.node.inbox.is_banned("liar")
    state = peer.barrier.state_dict()
    swarm.restart(peer)
    assert peer.node.inbox.is_banned("liar")
    first = len(peer.collected)
    for _ in range(3):
        announce(1)
    assert not any(one.peer == "liar" for each in peer.collected[first:] for one in each.contributions)
    assert sum(each.outcomes.get("banned", 0) for each in peer.collected[first:]) >= 2
    peer.barrier.load_state_dict({name: value for name, value in state.items() if name != "bans"})
    assert not peer.node.inbox.is_banned("liar"), "a checkpoint of an earlier release has none"


def test_a_checkpoint_keeps_which_peers_count(tmp_path: Path) -> None:
    swarm = MemorySwarm()
    try:
        ann, bob = swarm.group("ann", "bob")
        policy = CollectPolicy(Exchange.GATHER, 1.0, 10.0)
        for round in range(5):
            for peer in (ann, bob):
                peer.publish(make_contribution(peer.peer, round))
            for collecting in [swarm.begin(peer, round, 0, policy) for peer in (ann, bob)]:
                swarm.pass_time(0.1)
                collecting.result(10)
        before = PeerCommunication(ann, OneRank(), peer="ann", run=RUN, keep_rounds=2)
        store = CheckpointStore(tmp_path)
        store.save(5, {"communication": before.state_dict()})
        swarm.hub.kill("ann")
        saved = store.load_latest()
        assert saved is not None
        again = swarm.peer("ann", join=False)
        after = PeerCommunication(again, OneRank(), peer="ann", run=RUN, keep_rounds=2)
        after.load_state_dict(saved.state["communication"], saved.next_round)
        after.join(expect=("bob",))
        # Without it the standing would be provisional, as of any peer that was heard first.
        assert again.state_dict()["counted"]["records"]["bob"][0] == "counted"
        assert again.state_dict()["times"] == ann.state_dict()["times"]
    finally:
        swarm.close()


def test_what_a_stop_left_of_a_round_is_not_published_again_and_may_differ_when_it_is_played_again() -> None:
    swarm = MemorySwarm()
    try:
        ann = PeerCommunication(swarm.peer("ann"), OneRank(), peer="ann", run=RUN, keep_rounds=2)
        for round in (4, 5):
            ann.publish(make_contribution("ann", round))
        state = ann.state_dict()
        swarm.hub.kill("ann")
        again = PeerCommunication(swarm.peer("ann", join=False), OneRank(), peer="ann", run=RUN, keep_rounds=2)
        again.load_state_dict(state, 5)
        again.join()
        again.publish(make_contribution("ann", 5, groups=5))
        assert [len(entry["shards"]) > 0 for entry in again.state_dict()["published"]] == [True, True]
        with pytest.raises(ValueError, match="another contribution was published already"):
            again.publish(make_contribution("ann", 4, groups=5))
    finally:
        swarm.close()
