"""The contract of the backends: `BackendContract` for all, `ExchangeContract` for those that peers join and leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from archived_games import record
from swarms import RUN, FixedSwarm, MemorySwarm, RoguePeer, Swarm

from swarmgame.archive.rows import contributions_of, round_rows
from swarmgame.archive.signatures import Proof, proof_of
from swarmgame.errors import Temporary
from swarmgame.game.protocol import Claim, ClosedBy, Collected, CollectPolicy, Exchange
from swarmgame.game.state import Contribution
from swarmgame.swarm.blocking import BlockingCommunication
from swarmgame.swarm.codec import encode
from swarmgame.swarm.identity import Identity, verify


def gather(quorum: float = 1.0, deadline: float = 60.0, **more: Any) -> CollectPolicy:
    return CollectPolicy(Exchange.GATHER, quorum, deadline, **more)


def pull(external: int, cap: int = 0, quorum: float = 1.0, deadline: float = 60.0, **more: Any) -> CollectPolicy:
    return CollectPolicy(Exchange.PULL, quorum, deadline, external_groups=external, max_per_peer=cap, **more)


def trio(swarm: FixedSwarm, **settings: object) -> tuple[Any, Any, Any]:
    ann, bob, eve = swarm.group("ann", "bob", "eve", **settings)
    return ann, bob, eve


def collect_all(swarm: FixedSwarm, peers: Sequence[Any], round: int, policy: CollectPolicy) -> list[Collected]:
    """Collect on all peers at once: a fixed group waits for all of them."""
    return [collecting.result(60) for collecting in [swarm.begin(peer, round, 0, policy) for peer in peers]]


def pair_and_rogue(swarm: Swarm, **settings: object) -> tuple[BlockingCommunication, BlockingCommunication, RoguePeer]:
    ann, bob = swarm.group("ann", "bob", **settings)
    return ann, bob, swarm.rogue("mallory")


def wait_for_contribution(swarm: Swarm, receiver: BlockingCommunication, author: BlockingCommunication) -> None:
    """Wait until a peer has all of another's contribution to the first stage, so that a deadline does not race it."""

    def complete() -> bool:
        entry = receiver._node.inbox.stage(0, 0).get(author.peer)
        return entry is not None and entry.complete

    swarm.until(complete)


def proofs(swarm: FixedSwarm, own: Contribution, collected: Collected) -> list[Proof]:
    """Return what is known of the origin of each received contribution, as the archive checks it."""
    found = record(own, collected.contributions, origins=collected.origins)
    parts = list(contributions_of(*round_rows(found)))[1:]
    # Peers in memory have plain names, and their keys are in the hub.
    check = swarm.hub.verify if isinstance(swarm, MemorySwarm) else verify
    return [proof_of(*part, RUN, check) for part in parts]


class BackendContract:
    def test_what_is_published_is_collected_by_all_sorted_by_peer(
        self, swarm: FixedSwarm, contribution_of: Any
    ) -> None:
        peers = trio(swarm)
        for round in range(3):
            published = {peer.peer: contribution_of(peer.peer, round) for peer in peers}
            for peer in peers:
                peer.publish(published[peer.peer])
            for peer, collected in zip(peers, collect_all(swarm, peers, round, gather()), strict=True):
                assert collected.contributions == tuple(
                    published[other] for other in sorted(published) if other != peer.peer
                )
                assert collected.closed_by is ClosedBy.QUORUM
                assert collected.members == tuple(sorted(published))
                assert collected.missing == ()
                assert collected.outcomes["accepted"] == 2
                assert collected.bytes_sent > 0
                assert collected.bytes_received > 0
                assert proofs(swarm, published[peer.peer], collected) == [Proof.SIGNED, Proof.SIGNED]

    def test_a_collect_ends_when_the_caller_is_stopped(self, swarm: FixedSwarm, contribution_of: Any) -> None:
        ann, _, _ = trio(swarm)
        collected = ann.collect(0, 0, gather(1.0, 10_000.0), stopped=lambda: True)
        assert collected.closed_by is ClosedBy.DEADLINE
        assert len(collected.missing) == 2

    def test_a_peer_without_others_is_alone(self, swarm: FixedSwarm, contribution_of: Any) -> None:
        (ann,) = swarm.group("ann")
        ann.publish(contribution_of(ann.peer))
        collected = ann.collect(0, 0, gather())
        assert (collected.closed_by, collected.contributions, collected.members) == (ClosedBy.ISOLATED, (), (ann.peer,))

    def test_another_tokenizer_is_no_reason_to_refuse(self, swarm: FixedSwarm, contribution_of: Any) -> None:
        peers = trio(swarm)
        for peer in peers:
            peer.publish(contribution_of(peer.peer, tokenizer="another"))
        for collected in collect_all(swarm, peers, 0, gather()):
            assert [each.tokenizer for each in collected.contributions] == ["another", "another"]

    def test_publishing_the_same_again_is_harmless_and_something_else_an_error(
        self, swarm: FixedSwarm, contribution_of: Any
    ) -> None:
        peers = trio(swarm)
        for peer in (*peers, *peers):
            peer.publish(contribution_of(peer.peer))
        with pytest.raises(ValueError, match="another contribution was published already"):
            peers[0].publish(replace(contribution_of(peers[0].peer), policy_version=99))
        with pytest.raises(ValueError, match="cannot publish a contribution of"):
            peers[0].publish(contribution_of(peers[1].peer))
        for collected in collect_all(swarm, peers, 0, gather()):
            assert len(collected.contributions) == 2

    def test_a_peer_that_has_left_says_so(self, swarm: FixedSwarm, contribution_of: Any) -> None:
        _, _, eve = trio(swarm)
        eve.leave()
        eve.leave()
        for call in (eve.membership, lambda: eve.collect(0, 0, gather()), lambda: eve.announce_progress(1, 0)):
            with pytest.raises(Temporary, match="has left the swarm"):
                call()

    def test_pulling_takes_no_more_than_needed_and_prefers_nonzero_advantages(
        self, swarm: FixedSwarm, contribution_of: Any
    ) -> None:
        peers = trio(swarm, shard_bytes=1, inline_bytes=0)
        published = {peer.peer: contribution_of(peer.peer, groups=8, tokens=200) for peer in peers}
        for peer in peers:
            peer.publish(
                published[peer.peer], [Claim(0.5, nonzero_advantage=position % 4 == 0) for position in range(8)]
            )
        for peer, collected in zip(peers, collect_all(swarm, peers, 0, pull(4, 2)), strict=True):
            others = sorted(published.keys() - {peer.peer})
            assert [(each.peer, len(each.groups)) for each in collected.contributions] == [(o, 2) for o in others]
            for each in collected.contributions:
                assert each.groups == tuple(published[each.peer].groups[position] for position in (0, 4))
            assert collected.closed_by is ClosedBy.QUORUM
            assert proofs(swarm, published[peer.peer], collected) == [Proof.SIGNED, Proof.SIGNED]

    def test_ten_mebibytes_a_peer_are_exchanged(self, swarm: FixedSwarm, contribution_of: Any) -> None:
        peers = swarm.group("ann", "bob")
        large = {peer.peer: contribution_of(peer.peer, groups=40, rollouts=8, tokens=5_500) for peer in peers}
        shards = encode(large[peers[0].peer], RUN)
        assert sum(len(shard.data) for shard in shards) > 4 << 20
        assert len(shards) >= 10
        for peer in peers:
            peer.publish(large[peer.peer])
        for peer, collected in zip(peers, collect_all(swarm, peers, 0, gather()), strict=True):
            assert collected.contributions == tuple(large[other] for other in large if other != peer.peer)
            assert collected.bytes_received > 4 << 20


class ExchangeContract(BackendContract):
    def test_what_is_collected_does_not_depend_on_the_order_of_arrival(
        self, swarm: Swarm, contribution_of: Any
    ) -> None:
        ann, bob, eve = trio(swarm)
        policy = pull(4, 3, seed=5)
        seen = []
        for round, order in enumerate(((ann, bob), (bob, ann))):
            for peer in order:
                peer.publish(replace(contribution_of(peer.peer), round=round), [Claim(1.0, True)] * 3)
            eve.publish(replace(contribution_of(eve.peer), round=round))
            swarm.pass_time(1.0)
            seen.append(
                [replace(contribution, round=0) for contribution in eve.collect(round, 0, policy).contributions]
            )
        assert seen[0] == seen[1]
        assert {contribution.peer for contribution in seen[0]} == {ann.peer, bob.peer}

    def test_a_stage_closes_when_a_quorum_has_published_and_the_rest_is_missing(
        self, swarm: Swarm, contribution_of: Any
    ) -> None:
        ann, bob, eve = trio(swarm)
        ann.publish(contribution_of(ann.peer))
        collecting = swarm.begin(ann, 0, 0, gather(0.66))
        bob.publish(contribution_of(bob.peer))
        collected = collecting.result(30)
        assert collected.closed_by is ClosedBy.QUORUM
        assert [each.peer for each in collected.contributions] == [bob.peer]
        assert collected.missing == (eve.peer,)

    def test_a_stage_closes_at_its_deadline_with_peers_missing(self, swarm: Swarm, contribution_of: Any) -> None:
        ann, bob, eve = trio(swarm)
        bob.publish(contribution_of(bob.peer))
        wait_for_contribution(swarm, ann, bob)
        collecting = swarm.begin(ann, 0, 0, gather(1.0, swarm.deadline))
        swarm.pass_time(swarm.deadline)
        collected = collecting.result(30)
        assert collected.closed_by is ClosedBy.DEADLINE
        assert [each.peer for each in collected.contributions] == [bob.peer]
        assert collected.missing == (eve.peer,)
        assert collected.seconds >= swarm.deadline

    def test_a_lagging_peer_does_not_wait_for_the_deadline(self, swarm: Swarm, contribution_of: Any) -> None:
        ann, bob, eve = trio(swarm)
        for peer in (bob, eve):
            peer.publish(contribution_of(peer.peer, 3))
        swarm.until(lambda: [member.round for member in ann.membership() if member.peer != ann.peer] == [3, 3])
        assert ann.collect(0, 0, gather(1.0, 10_000.0, max_staleness=2)).closed_by is ClosedBy.LAGGING
        near = swarm.begin(ann, 2, 0, gather(1.0, swarm.deadline, max_staleness=2))
        swarm.pass_time(swarm.deadline)
        assert near.result(30).closed_by is ClosedBy.DEADLINE

    def test_a_late_contribution_is_returned_once_in_a_later_round_and_a_stale_one_never(
        self, swarm: Swarm, contribution_of: Any
    ) -> None:
        ann, bob, eve = trio(swarm)
        for round in range(4):
            bob.publish(contribution_of(bob.peer, round))
        assert len(ann.collect(0, 0, gather(0.5)).contributions) == 1
        eve.publish(contribution_of(eve.peer, 0))
        swarm.until(lambda: ann._node.outcomes["late"] == 1)
        first = ann.collect(1, 0, gather(0.5, max_staleness=1))
        again = ann.collect(2, 0, gather(0.5, max_staleness=2))
        assert [(contribution.round, contribution.peer) for contribution in first.contributions] == [
            (0, eve.peer),
            (1, bob.peer),
        ]
        assert [(contribution.round, contribution.peer) for contribution in again.contributions] == [(2, bob.peer)]

    def test_a_contribution_older_than_the_policy_allows_is_counted_and_dropped(
        self, swarm: Swarm, contribution_of: Any
    ) -> None:
        ann, bob, rogue = pair_and_rogue(swarm)
        bob.publish(contribution_of(bob.peer, 3))
        ann.announce_progress(3, 0)
        rogue.send_announcement(ann.peer, rogue.announcement(contribution_of(rogue.peer, 1)))
        collected = ann.collect(3, 0, gather(0.5, max_staleness=1))
        assert [each.peer for each in collected.contributions] == [bob.peer]
        assert collected.outcomes["stale"] == 1

    def test_announcements_far_ahead_or_far_behind_are_counted_and_dropped(
        self, swarm: Swarm, contribution_of: Any
    ) -> None:
        ann, _, rogue = pair_and_rogue(swarm, keep_rounds=3)
        ann.announce_progress(10, 0)
        for round in (6, 13, 10**9):
            rogue.send_announcement(ann.peer, rogue.announcement(contribution_of(rogue.peer, round)))
        outcomes = ann.collect(10, 0, gather(0.01)).outcomes
        assert (outcomes["stale"], outcomes["ahead"]) == (1, 2)

    def test_publishing_the_same_again_is_harmless_and_a_peer_that_signs_two_contributions_is_banned(
        self, swarm: Swarm, contribution_of: Any
    ) -> None:
        ann, bob, rogue = pair_and_rogue(swarm)
        contribution = contribution_of(rogue.peer)
        for _ in range(3):
            rogue.send_announcement(ann.peer, rogue.announcement(contribution))
        rogue.send_announcement(ann.peer, rogue.announcement(replace(contribution, policy_version=99)))
        bob.publish(contribution_of(bob.peer))
        bob.publish(contribution_of(bob.peer))
        with pytest.raises(ValueError, match="another contribution was published already"):
            bob.publish(replace(contribution_of(bob.peer), policy_version=99))
        collected = ann.collect(0, 0, gather())
        assert {c.peer: c for c in collected.contributions} == {bob.peer: contribution_of(bob.peer)}
        assert collected.outcomes["equivocation"] == 1
        assert collected.outcomes["duplicate"] >= 2
        assert rogue.peer not in collected.members + collected.missing
        rogue.send_announcement(ann.peer, rogue.announcement(contribution_of(rogue.peer, 1)))
        assert ann.collect(1, 0, gather(0.01)).outcomes["banned"] == 1

    def test_garbage_is_counted_under_its_reason_and_the_round_goes_on(
        self, swarm: Swarm, contribution_of: Any
    ) -> None:
        ann, bob, rogue = pair_and_rogue(swarm)
        bob.publish(contribution_of(bob.peer))
        contribution = contribution_of(rogue.peer)
        for message in (
            b"",
            b"?",
            b"A",
            b"H\xc0",
            b"Q123",
            b"A\xc6\x40\x00\x00\x00",
            b"A" + b"\x91" * 5000,
            b"H" + bytes(600),
        ):
            rogue.send(ann.peer, message)
        rogue.send_announcement(ann.peer, rogue.announcement(contribution, signer=Identity.named("another")))
        rogue.send_announcement(ann.peer, rogue.announcement(contribution, run="another run"))
        rogue.send(ann.peer, b"A" + bytes(200_000))
        rogue.send_announcement(ann.peer, rogue.announcement(contribution), [b"a body that no peer announced"])
        collected = ann.collect(0, 0, gather())
        assert {c.peer for c in collected.contributions} == {bob.peer, rogue.peer}
        assert collected.outcomes["malformed"] >= 5
        assert collected.outcomes["bad-signature"] == 2
        assert collected.outcomes["too-large"] == 2
        assert collected.outcomes["bad-hash"] == 1

    @pytest.mark.parametrize("fault", ["bad-hash", "malformed", "too-large", "declared", "another's", "absent"])
    def test_a_body_that_cannot_be_used_is_counted_and_does_no_harm(
        self, swarm: Swarm, contribution_of: Any, fault: str
    ) -> None:
        ann, bob, rogue = pair_and_rogue(swarm)
        contribution = contribution_of(rogue.peer)
        (shard,) = encode(contribution, "contract")
        announcement = {
            "bad-hash": lambda: rogue.announcement_of(contribution, b"x" * 100, name=shard.name),
            "malformed": lambda: rogue.announcement_of(contribution, b"\x00SGR1\xff\xff\x00\x00"),
            "too-large": lambda: rogue.announcement_of(contribution, bytes(10_000), size=100),
            "declared": lambda: rogue.announcement_of(contribution, shard.data, size=1 << 30),
            "another's": lambda: rogue.announcement_of(
                contribution, encode(contribution_of(bob.peer), "contract")[0].data
            ),
            "absent": lambda: rogue.announcement(contribution, serve=False),
        }[fault]()
        reason = {"declared": "too-large", "another's": "malformed", "absent": "not-there"}.get(fault, fault)
        rogue.send_announcement(ann.peer, announcement)
        swarm.until(lambda: ann._node.outcomes[reason] >= 1)
        bob.publish(contribution_of(bob.peer))
        wait_for_contribution(swarm, ann, bob)
        collecting = swarm.begin(ann, 0, 0, gather(1.0, swarm.deadline))
        swarm.pass_time(swarm.deadline)
        collected = collecting.result(30)
        assert [c.peer for c in collected.contributions] == [bob.peer]
        assert rogue.peer in collected.missing
        assert collected.outcomes[reason] >= 1

    def test_a_peer_that_is_not_admitted_is_neither_collected_nor_a_member(
        self, swarm: Swarm, contribution_of: Any
    ) -> None:
        allowed: set[str] = set()
        ann = swarm.peer("ann", admission=lambda peer: peer in allowed)
        bob = swarm.peer("bob")
        allowed.add(bob.peer)
        eve = swarm.peer("eve")
        swarm.until(lambda: len(ann.membership()) == 2 and len(eve.membership()) == 3)
        eve.publish(contribution_of(eve.peer))
        bob.publish(contribution_of(bob.peer))
        collected = ann.collect(0, 0, gather())
        assert [each.peer for each in collected.contributions] == [bob.peer]
        assert eve.peer not in collected.members
        swarm.until(lambda: collected.outcomes.get("not-admitted", 0) + ann._node.outcomes["not-admitted"] >= 1)

    def test_a_late_peer_sees_the_position_of_the_others_and_collects_what_was_published_before(
        self, swarm: Swarm, contribution_of: Any
    ) -> None:
        ann, bob = (swarm.peer(name, min_replicas=count, stages=2) for count, name in enumerate(("ann", "bob"), 1))
        swarm.until(lambda: len(ann.membership()) == 2)
        for peer in (ann, bob):
            peer.announce_progress(41, 1)
            peer.publish(contribution_of(peer.peer, 41, 1))
        late = swarm.peer("late", min_replicas=3, stages=2)
        swarm.until(lambda: {(m.round, m.stage) for m in late.membership() if m.peer != late.peer} == {(41, 1)})
        collected = late.collect(41, 1, gather())
        assert [each.peer for each in collected.contributions] == sorted([ann.peer, bob.peer])

    def test_a_peer_that_leaves_is_no_longer_waited_for(self, swarm: Swarm, contribution_of: Any) -> None:
        ann, bob, eve = trio(swarm)
        bob.publish(contribution_of(bob.peer))
        collecting = swarm.begin(ann, 0, 0, gather(1.0, 600.0))
        eve.leave()
        eve.leave()
        collected = collecting.result(30)
        assert collected.closed_by is ClosedBy.QUORUM
        assert collected.members == tuple(sorted([ann.peer, bob.peer]))
        with pytest.raises(Temporary, match="has left the swarm"):
            eve.membership()

    def test_if_an_author_is_gone_the_next_best_is_pulled(self, swarm: Swarm, contribution_of: Any) -> None:
        ann, bob, rogue = pair_and_rogue(swarm, inline_bytes=0)
        rogue.send_announcement(ann.peer, rogue.announcement(contribution_of(rogue.peer), serve=False))
        bob.publish(contribution_of(bob.peer))
        collected = ann.collect(0, 0, pull(3, 3))
        assert [c.peer for c in collected.contributions] == [bob.peer]
