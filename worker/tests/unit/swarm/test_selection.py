"""Who hears whom, what is fetched, who is there."""

from __future__ import annotations

import random
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmgame.game.protocol import CollectPolicy, Exchange
from swarmgame.swarm.identity import Identity
from swarmgame.swarm.membership import Backoff, Membership
from swarmgame.swarm.messages import ShardEntry, beat
from swarmgame.swarm.store import Store
from swarmgame.swarm.topology import Offer, breadth, choose, circle, listeners, quorum_of, speakers, to_all


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


@given(count=st.integers(1, 40), neighbours=st.integers(1, 12))
def test_everybody_waits_for_exactly_those_who_tell_it(count: int, neighbours: int) -> None:
    ring = circle("run", 3, 1, [f"peer-{n}" for n in range(count)])
    told = {(peer, other) for peer in ring for other in listeners(ring, peer, neighbours)}
    awaited = {(other, peer) for peer in ring for other in speakers(ring, peer, neighbours)}
    assert told == awaited
    assert all(len(listeners(ring, peer, neighbours)) == min(neighbours, count - 1) for peer in ring)


def test_the_circle_is_the_same_for_all_and_new_in_every_stage() -> None:
    members = [f"peer-{n}" for n in range(20)]
    shuffled = random.Random(0).sample(members, 20)
    assert circle("run", 0, 0, members) == circle("run", 0, 0, shuffled)
    assert len({tuple(circle("run", round, stage, members)) for round in range(3) for stage in range(3)}) == 9


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
    # Without its last shard the choice would not have been enough.
    most = cap or external
    worth: dict[str, int] = {}
    for one in chosen[:-1]:
        worth[one.peer] = min(most, worth.get(one.peer, 0) + (one.entry.spread or one.entry.groups))
    assert not chosen or sum(worth.values()) < external


def test_shards_that_claim_a_spread_come_first_and_the_others_when_too_few_do() -> None:
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


def test_what_a_peer_must_hear_depends_on_what_it_wants_not_on_the_swarm() -> None:
    assert breadth(None) == breadth(pull(8, 4)) == 5
    assert breadth(pull(16, 2)) == 10
    assert to_all(pull(8, 4), 6)
    assert not to_all(pull(8, 4), 7)
    gather = CollectPolicy(Exchange.GATHER, 1.0, 1.0)
    assert to_all(gather, 32)
    assert not to_all(gather, 33)


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
    assert quorum_of(CollectPolicy(Exchange.GATHER, quorum, 1.0), members) == needed


# ── membership
def heartbeat(name: str, expires: float, *, round: int = 0, goodbye: bool = False):  # type: ignore[no-untyped-def]
    return beat("run", name, round, 0, expires, Identity.named(name).sign, goodbye=goodbye)


def test_a_peer_is_a_member_until_its_heartbeat_expires_or_it_says_goodbye() -> None:
    members = Membership("me", lambda peer: peer != "stranger", lifetime=15)
    assert members.hear(heartbeat("ann", 110), 100) == "accepted"
    assert members.hear(heartbeat("ann", 110), 100) == "duplicate"
    assert members.hear(heartbeat("bob", 111, round=5), 100) == "accepted"
    assert members.hear(heartbeat("late", 99), 100) == "stale"
    assert members.hear(heartbeat("stranger", 111), 100) == "not-admitted"
    assert [(m.peer, m.round) for m in members.members(100)] == [("ann", 0), ("bob", 5), ("me", 0)]
    assert members.others(110.5) == ["bob"]
    assert members.hear(heartbeat("bob", 120, goodbye=True), 105) == "accepted"
    assert members.others(105) == ["ann"]
    assert members.hear(heartbeat("bob", 121), 106) == "accepted"
    assert members.others(106) == ["ann", "bob"]


def test_nobody_lives_for_ever_by_saying_so() -> None:
    members = Membership("me", lambda peer: True, lifetime=15)
    members.hear(heartbeat("ann", 1e12), 100)
    assert members.others(174) == ["ann"]
    assert members.others(176) == []


def test_expected_members_count_for_one_lifetime_and_a_word_is_as_good_as_a_heartbeat() -> None:
    members = Membership("me", lambda peer: True, lifetime=15)
    members.expect(["ann", "bob", "me"], 100)
    assert members.others(114) == ["ann", "bob"]
    assert members.heard(114) == []
    members.spoke("ann", 3, 0, 114)
    assert members.others(116) == ["ann"]
    members.forget(200)
    assert members.members(200)[0].peer == "me"


def test_a_peer_that_does_not_answer_is_left_alone_ever_longer_until_it_answers() -> None:
    backoff, now, pauses = Backoff(), 0.0, []
    for _ in range(10):
        backoff.failed("ann", now)
        pause = next(seconds / 4 for seconds in range(1, 200) if not backoff.leave_alone("ann", now + seconds / 4))
        pauses.append(pause)
        now += pause
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0, 30.0]
    backoff.answered("ann")
    assert not backoff.leave_alone("ann", now)


def test_the_store_never_drops_our_own_for_those_of_others() -> None:
    store = Store(cache_bytes=100)
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
    assert (store.get(b"c"), store._cached_bytes) == (None, 0)
