"""A peer that signs two different contributions to one stage."""

from __future__ import annotations

import json

import pytest
from contributions import make_contribution

from swarmgame.game.protocol import CollectPolicy, Exchange
from swarmgame.swarm.attendance import is_ready
from swarmgame.swarm.inbox import BAN_ROUNDS, FORGIVEN_ROUNDS, MAX_BANS, Inbox
from swarmgame.swarm.messages import Announcement, ShardEntry


def announcement(peer: str, round: int, root: bytes = b"1", stage: int = 0) -> Announcement:
    return Announcement(peer, round, stage, 100, root, 1, b"x", b"")


def sign_two(inbox: Inbox, round: int) -> None:
    """Let a peer sign two contributions to one stage."""
    for root in (b"1", b"2"):
        inbox.add(announcement("liar", round, root), 0.0)


def inbox_at(round: int) -> Inbox:
    inbox = Inbox("me", lambda peer: True, keep_rounds=2)
    inbox.move_to(round)
    return inbox


def test_neither_of_the_two_is_used_and_the_first_time_nothing_else_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    inbox = inbox_at(5)
    inbox.add(announcement("liar", 4), 0.0)
    inbox.add(announcement("liar", 5), 0.0)
    inbox.add(announcement("honest", 5), 0.0)
    assert inbox.add(announcement("liar", 5, b"2"), 0.0) is None
    assert inbox.outcomes["equivocation"] == 1
    assert [inbox.stage(round, 0)["liar"].failed for round in (4, 5)] == ["", "equivocation"]
    assert inbox.is_banned("liar")
    inbox.move_to(6)
    assert not inbox.is_banned("liar")
    inbox.add(announcement("liar", 6), 0.0)
    inbox.add(announcement("liar", 7), 0.0)
    inbox.add(announcement("liar", 7, b"2"), 0.0)
    assert [inbox.stage(round, 0)["liar"].failed for round in (6, 7)] == ["equivocation"] * 2
    assert not inbox.stage(5, 0)["honest"].failed
    assert "peer liar has signed two different contributions to round 5, stage 0" in caplog.text


def test_a_peer_that_plays_a_round_again_after_it_was_used_may_go_on_at_once() -> None:
    inbox = inbox_at(5)
    inbox.add(announcement("restarted", 5), 0.0)
    inbox.stage(5, 0)["restarted"].consumed = True
    inbox.move_to(6)
    assert inbox.add(announcement("restarted", 5, b"2"), 0.0) is None
    assert not inbox.is_banned("restarted")
    assert inbox.add(announcement("restarted", 6), 0.0) is not None
    assert inbox.outcomes["equivocation"] == 1


@pytest.mark.parametrize(("quiet", "lasts"), [(FORGIVEN_ROUNDS, BAN_ROUNDS), (FORGIVEN_ROUNDS + 1, 0)])
def test_a_peer_that_has_signed_none_for_long_is_treated_like_one_that_never_did(quiet: int, lasts: int) -> None:
    inbox = inbox_at(5)
    sign_two(inbox, 5)
    then = 6 + quiet
    inbox.move_to(then)
    sign_two(inbox, then)
    inbox.move_to(then + lasts)
    assert inbox.is_banned("liar")
    inbox.move_to(then + lasts + 1)
    assert not inbox.is_banned("liar")


def test_each_ban_lasts_twice_as_long_as_the_one_before() -> None:
    inbox, round, lasted = inbox_at(0), 0, []
    for _ in range(4):
        sign_two(inbox, round)
        first = round
        while inbox.is_banned("liar"):
            round += 1
            inbox.move_to(round)
            if inbox.is_banned("liar"):
                inbox.add(announcement("liar", round), 0.0)
        lasted.append(round - first - 1)
    assert lasted == [0, BAN_ROUNDS, 2 * BAN_ROUNDS, 4 * BAN_ROUNDS]
    assert inbox.outcomes["banned"] == sum(lasted)
    assert inbox.outcomes["equivocation"] == 4
    assert not inbox.is_banned("honest")


def test_nothing_of_the_round_is_accepted_later_either() -> None:
    inbox = inbox_at(5)
    sign_two(inbox, 5)
    inbox.move_to(6)
    for late in (announcement("liar", 5), announcement("liar", 5, b"2"), announcement("liar", 5, b"3", stage=1)):
        assert inbox.refusal(late, "liar") == "banned"
        assert inbox.add(late, 0.0) is None
    assert (inbox.outcomes["equivocation"], inbox.outcomes["banned"]) == (1, 3)
    inbox.add(announcement("liar", 6), 0.0)
    assert not inbox.stage(6, 0)["liar"].failed


def test_a_checkpoint_keeps_the_bans() -> None:
    inbox = inbox_at(5)
    sign_two(inbox, 5)
    inbox.move_to(6)
    sign_two(inbox, 6)
    again = Inbox("me", lambda peer: True, keep_rounds=2)
    again.restore_bans(json.loads(json.dumps(inbox.bans())))
    assert again.is_banned("liar"), "also before the round is known"
    again.move_to(7)
    assert again.add(announcement("liar", 7), 0.0) is None
    again.move_to(6 + BAN_ROUNDS)
    assert again.is_banned("liar")
    again.move_to(7 + BAN_ROUNDS)
    assert not again.is_banned("liar")
    sign_two(again, 7 + BAN_ROUNDS)
    again.move_to(8 + 3 * BAN_ROUNDS - 1)
    assert again.is_banned("liar"), "the next ban lasts twice as long, as without the restart"


def test_what_has_become_too_old_was_not_delivered_by_that() -> None:
    inbox = inbox_at(0)
    policy = CollectPolicy(Exchange.GATHER, 0.67, 60.0, max_staleness=0)
    inbox.add(announcement("late", 0), 0.0)
    inbox.move_to(1)
    assert list(inbox.earlier(1, policy.max_staleness)) == []
    assert list(inbox.earlier(1, policy.max_staleness)) == []
    assert inbox.outcomes["stale"] == 1
    entry = inbox.stage(0, 0)["late"]
    assert not is_ready(entry, policy)
    entry.shards = ()
    assert is_ready(entry, policy), "all of it has come, though too late to be used"


def test_what_came_too_late_was_delivered_when_its_parts_are_gone() -> None:
    """A peer that was away judges rounds of which it has dropped what it could not use any more."""
    inbox = inbox_at(0)
    policy = CollectPolicy(Exchange.GATHER, 0.67, 60.0, max_staleness=0)
    for peer, shards in (("late", 1), ("never", 2)):
        inbox.add(announcement(peer, 0), 0.0)
        entry = inbox.stage(0, 0)[peer]
        entry.shards = (ShardEntry(b"name", 1, 1, 0, 0.0, 1),) * shards
        entry.parts[0] = make_contribution(peer)
    inbox.move_to(1)
    assert list(inbox.earlier(1, policy.max_staleness)) == []
    inbox.move_to(2)
    assert {peer: (len(entry.parts), is_ready(entry, policy)) for peer, entry in inbox.stage(0, 0).items()} == {
        "late": (0, True),
        "never": (0, False),
    }


def test_invented_identities_cannot_fill_the_memory_with_bans() -> None:
    inbox = inbox_at(0)
    for number in range(MAX_BANS + 50):
        for root in (b"1", b"2"):
            inbox.add(announcement(f"peer-{number}", 0, root), 0.0)
    assert sum(inbox.is_banned(f"peer-{number}") for number in range(MAX_BANS + 50)) == MAX_BANS
    assert inbox.is_banned(f"peer-{MAX_BANS + 49}")


# ── what is kept
def test_what_strangers_announced_before_the_first_round_is_known_keeps_no_place() -> None:
    inbox = Inbox("me", lambda peer: True, keep_rounds=2, counts=lambda peer: False)
    for number in range(300):
        inbox.add(announcement(f"peer-{number}", 500), 0.0)
    inbox.add(announcement("newcomer", 8), 0.0)
    assert inbox.places.total(counts=False) == 301
    inbox.move_to(8)
    assert inbox.places.total(counts=False) == 1
    assert list(inbox.stage(8, 0)) == ["newcomer"]


def test_a_fetch_that_fails_after_its_round_is_over_gives_back_nothing_twice() -> None:
    inbox = Inbox("me", lambda peer: True, keep_rounds=2, counts=lambda peer: False)
    added = inbox.add(announcement("slow", 0), 0.0)
    assert added is not None
    entry, _ = added
    assert inbox.keep(entry, 1000)
    entry.index_kept = 1000
    assert inbox.keep(entry, 50)
    inbox.move_to(9)
    inbox.drop_parts(entry)
    assert inbox.kept_bytes.total(counts=False) == 0
