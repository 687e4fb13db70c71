"""Topology, the choice of shards, membership and the body store."""

from __future__ import annotations

import random
from dataclasses import replace
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmgame.game.protocol import CollectPolicy, Exchange
from swarmgame.swarm.body_store import BodyStore
from swarmgame.swarm.identity import Identity
from swarmgame.swarm.membership import Backoff, Membership
from swarmgame.swarm.messages import ShardEntry, make_heartbeat
from swarmgame.swarm.topology import (
    Offer,
    choose,
    fanout,
    is_enough,
    is_full_mesh,
    is_quorum,
    predecessors,
    ring,
    successors,
)


def pull(external: int, cap: int = 0, *, seed: int = 0, prefer_nonzero_advantage: bool = True) -> CollectPolicy:
    return CollectPolicy(
        Exchange.PULL,
        1.0,
        10.0,
        external_groups=external,
        max_per_peer=cap,
        seed=seed,
        prefer_nonzero_advantage=prefer_nonzero_advantage,
    )


def offer(peer: str, position: int = 0, groups: int = 4, spread: int = 0) -> Offer:
    return Offer(
        peer, 0, 0, position, ShardEntry(sha256(f"{peer}{position}".encode()).digest(), 100, groups, spread, 0.5, 10)
    )


@given(count=st.integers(1, 40), fanout=st.integers(1, 12))
def test_each_peer_waits_for_exactly_the_peers_that_send_to_it(count: int, fanout: int) -> None:
    order = ring("run", 3, 1, [f"peer-{n}" for n in range(count)])
    sent = {(peer, other) for peer in order for other in successors(order, peer, fanout)}
    awaited = {(other, peer) for peer in order for other in predecessors(order, peer, fanout)}
    assert sent == awaited
    assert all(len(successors(order, peer, fanout)) == min(fanout, count - 1) for peer in order)


def test_the_ring_is_the_same_on_all_peers_and_new_in_every_stage() -> None:
    members = [f"peer-{n}" for n in range(20)]
    shuffled = random.Random(0).sample(members, 20)
    assert ring("run", 0, 0, members) == ring("run", 0, 0, shuffled)
    assert len({tuple(ring("run", round, stage, members)) for round in range(3) for stage in range(3)}) == 9


def test_no_peer_expires_by_a_pause_of_this_process() -> None:
    members = Membership("me", lambda peer: True, 15.0)
    members.awake(1000.0, 12.5)
    members.touch("other", 0, 0, 1000.0)
    members.awake(4600.0, 12.5)
    assert members.others(4600.0) == ["other"]
    for now in (4605.0, 4610.0, 4614.9, 4615.1):
        members.awake(now, 12.5)
    assert members.others(4614.9) == ["other"]
    assert members.others(4615.1) == []


def test_a_peer_that_is_heard_first_after_a_pause_lives_no_longer_for_it() -> None:
    members = Membership("me", lambda peer: True, 15.0)
    members.awake(1000.0, 12.5)
    members.touch("other", 0, 0, 1000.0)
    members.touch("other", 0, 1, 37000.0)  # a message comes before this process notes the time
    members.awake(37000.0, 12.5)
    assert members.others(37014.0) == ["other"]
    assert members.others(37000.0 + 8 * 15.0) == []


@given(
    shards=st.lists(
        st.tuples(st.sampled_from("abcde"), st.integers(0, 3), st.integers(1, 9), st.integers(0, 9)),
        max_size=20,
        unique_by=lambda s: s[:2],
    ),
    external=st.integers(0, 20),
    cap=st.integers(0, 6),
    seed=st.integers(0, 3),
    order=st.randoms(use_true_random=False),
)
def test_the_choice_does_not_depend_on_the_order_of_arrival_and_keeps_the_cap(
    shards: list[tuple[str, int, int, int]], external: int, cap: int, seed: int, order: random.Random
) -> None:
    offers = [offer(peer, position, groups, min(groups, spread)) for peer, position, groups, spread in shards]
    chosen = choose(offers, pull(external, cap, seed=seed))
    order.shuffle(offers)
    assert choose(offers, pull(external, cap, seed=seed)) == chosen
    # The choice ends when all of it has come, whatever comes first.
    policy, taken = pull(external, cap, seed=seed), list(chosen)
    order.shuffle(taken)
    if is_enough(policy, chosen):
        assert not any(is_enough(policy, taken[:count], taken[count:]) for count in range(len(taken)))
    else:
        worth = {each.peer: 0 for each in offers}
        for each in offers:
            worth[each.peer] = min(cap or external, worth[each.peer] + (each.shard.spread or each.shard.groups))
        assert sum(worth.values()) < external


def test_a_stranger_that_claims_more_spares_no_shard_of_a_peer_that_counts() -> None:
    policy = pull(32, 16)
    counted = offer("counted", groups=32, spread=15)
    strangers = [replace(offer(name, groups=32, spread=16), rank=1) for name in "xy"]
    chosen = choose([counted, *strangers], policy)
    assert {each.peer for each in chosen} == {"counted", "x", "y"}
    assert not is_enough(policy, strangers, [counted])
    assert is_enough(policy, strangers)  # once it is late


def test_one_shard_too_many_is_not_fetched() -> None:
    offers = [offer("a", groups=32, spread=15), offer("b", groups=32, spread=16), offer("c", groups=32, spread=17)]
    assert all({each.peer for each in choose(offers, pull(32, 16, seed=seed))} == {"b", "c"} for seed in range(20))


def test_shards_that_claim_a_nonzero_advantage_come_first_and_the_others_if_there_are_too_few() -> None:
    offers = [offer("a"), offer("b", spread=2), offer("c"), offer("d", spread=4)]
    assert {o.peer for o in choose(offers, pull(6))} == {"b", "d"}
    assert {o.peer for o in choose(offers, pull(6, 4))} == {"b", "d"}
    assert {"b", "d"} < {o.peer for o in choose(offers, pull(9))}
    assert len(choose(offers, pull(100))) == 4
    assert (
        len(
            {
                tuple(o.peer for o in choose(offers, pull(4, seed=seed, prefer_nonzero_advantage=False)))
                for seed in range(20)
            }
        )
        > 1
    )


def test_the_fanout_depends_on_what_a_peer_needs_not_on_the_size_of_the_swarm() -> None:
    assert fanout(None) == fanout(pull(8, 4)) == 5
    assert fanout(pull(16, 2)) == 10
    assert is_full_mesh(pull(8, 4), 6)
    assert not is_full_mesh(pull(8, 4), 7)
    gather = CollectPolicy(Exchange.GATHER, 1.0, 1.0)
    assert is_full_mesh(gather, 32)
    assert not is_full_mesh(gather, 33)


@pytest.mark.parametrize(
    ("quorum", "members", "needed"),
    [
        (0.67, 4, 3),
        (1.0, 4, 4),
        (0.5, 4, 2),
        (0.01, 4, 1),
        (0.1, 30, 3),
        (0.67, 1, 1),
        (0.67, 3, 2),
        (0.67, 6, 4),
        (1.0, 200, 200),
    ],
)
def test_a_quorum_is_rounded_up_and_a_percentage_stands_for_its_fraction(
    quorum: float, members: int, needed: int
) -> None:
    policy = CollectPolicy(Exchange.GATHER, quorum, 1.0)
    assert [count for count in range(1, members + 1) if is_quorum(policy, count, members)] == [
        *range(needed, members + 1)
    ]


# ── membership
def heartbeat(name: str, expires: float, *, round: int = 0, leaving: bool = False):  # type: ignore[no-untyped-def]
    return make_heartbeat("run", name, round, 0, expires, Identity.named(name).sign, leaving=leaving)


def test_a_peer_is_a_member_until_its_heartbeat_expires_or_it_leaves() -> None:
    members = Membership("me", lambda peer: peer != "outsider", lifetime=15)
    assert members.update(heartbeat("ann", 110), 100) == "accepted"
    assert members.update(heartbeat("ann", 110), 100) == "duplicate"
    assert members.update(heartbeat("bob", 111, round=5), 100) == "accepted"
    assert members.update(heartbeat("late", 99), 100) == "stale"
    assert members.update(heartbeat("outsider", 111), 100) == "not-admitted"
    assert [(m.peer, m.round) for m in members.members(100)] == [("ann", 0), ("bob", 5), ("me", 0)]
    assert members.others(110.5) == ["bob"]
    assert members.update(heartbeat("bob", 120, leaving=True), 105) == "accepted"
    assert members.others(105) == ["ann"]
    assert members.update(heartbeat("bob", 121), 106) == "accepted"
    assert members.others(106) == ["ann", "bob"]


def test_what_a_peer_says_itself_counts_although_an_older_heartbeat_expires_later() -> None:
    members = Membership("me", lambda peer: True, lifetime=15)
    members.update(heartbeat("ann", 130, round=5), 100)
    assert members.update(heartbeat("ann", 125, round=6), 110) == "duplicate"
    assert members.members(110)[0].round == 5, "anyone may send an old heartbeat of another peer"
    assert members.update(heartbeat("ann", 125, round=6), 110, direct=True) == "duplicate"
    assert members.members(110)[0].round == 6


def test_a_heartbeat_cannot_claim_an_unlimited_lifetime() -> None:
    members = Membership("me", lambda peer: True, lifetime=15)
    members.update(heartbeat("ann", 1e12), 100)
    assert members.others(174) == ["ann"]
    assert members.others(176) == []


def test_expected_members_count_for_one_lifetime_and_a_message_counts_like_a_heartbeat() -> None:
    members = Membership("me", lambda peer: True, lifetime=15)
    members.expect(["ann", "bob", "me"], 100)
    assert members.others(114) == ["ann", "bob"]
    assert members.confirmed(114) == []
    members.touch("ann", 3, 0, 114)
    assert members.others(116) == ["ann"]
    members.forget(200)
    assert members.members(200)[0].peer == "me"


def test_a_peer_that_does_not_answer_is_called_less_and_less_often_until_it_answers() -> None:
    backoff, now, pauses = Backoff(), 0.0, []
    for _ in range(10):
        backoff.failed("ann", now)
        pause = next(seconds / 4 for seconds in range(1, 200) if not backoff.is_backing_off("ann", now + seconds / 4))
        pauses.append(pause)
        now += pause
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0, 30.0]
    backoff.answered("ann")
    assert not backoff.is_backing_off("ann", now)


def test_bodies_of_peers_that_do_not_count_displace_none_of_those_that_do() -> None:
    store = BodyStore(cache_bytes=100, others_cache_bytes=100)
    store.cache(4, b"counted", bytes(60))
    for number in range(10):
        store.cache(4, b"%d" % number, bytes(60), counts=False)
    assert [store.get(name) is not None for name in (b"counted", b"8", b"9")] == [True, False, True]


def test_the_store_never_drops_own_bodies_for_remote_ones() -> None:
    store = BodyStore(cache_bytes=100)
    store.keep(3, b"own", bytes(1000))
    for name in (b"a", b"b", b"c"):
        store.cache(4, name, bytes(40))
    assert [store.get(name) is not None for name in (b"own", b"a", b"b", b"c")] == [True, False, True, True]
    store.cache(4, b"huge", bytes(101))
    assert store.get(b"huge") is None
    store.forget_before(3)
    assert store.get(b"own") is not None
    store.forget_before(4)
    assert store.get(b"own") is None
    assert store.get(b"c") is not None
    store.forget_before(5)
    assert store.get(b"c") is None
    store.cache(5, b"d", bytes(100))
    assert store.get(b"d") is not None, "all of the space is free again"
