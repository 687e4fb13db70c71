"""Strangers with free keys against four peers of one run: what they can stop, and what happens without the defence.

In virtual time: a round takes one second, and a stage waits for 120 seconds at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from paced_swarms import MAX_ROUNDS, PacedPeer, PacedSwarm, making
from swarms import RUN, RoguePeer

from swarmgame.game.protocol import ClosedBy, Exchange, Member
from swarmgame.game.state import Contribution
from swarmgame.swarm.attendance import Attendance
from swarmgame.swarm.codec import encode
from swarmgame.swarm.messages import make_announcement, make_index
from swarmgame.swarm.stage_times import StageTimes

FOUR = ("ann", "bob", "dan", "eve")
SECONDS = 30.0
QUIET = 30
"""Rounds of an undisturbed swarm in that time."""

MakeSwarm = Callable[..., PacedSwarm]


@pytest.fixture
def swarm_of() -> Iterator[MakeSwarm]:
    with making(PacedSwarm) as make:
        yield make


def believe_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take what heartbeats say for granted."""
    for name in ("reached", "next"):
        monkeypatch.setattr(Member, name, property(lambda member: member.round))


@pytest.mark.parametrize("defended", [True, False])
def test_keys_that_claim_round_a_billion_move_no_peer(
    swarm_of: MakeSwarm, monkeypatch: pytest.MonkeyPatch, defended: bool
) -> None:
    swarm = swarm_of(anchors=FOUR) if defended else swarm_of(anchors=None, max_rounds=0)
    if not defended:
        believe_positions(monkeypatch)
    swarm.add(*FOUR)
    swarm.pass_time(5.0)
    swarm.silent_keys(4, round=10**9)
    pace = swarm.pace(SECONDS)
    if defended:
        assert pace >= 0.9 * QUIET
        assert [peer.skipped for peer in swarm.peers] == [0] * 4
        assert {outcome_of(peer, "too-far-ahead") for peer in swarm.peers} == {4}
    else:
        assert min(peer.number for peer in swarm.peers) >= MAX_ROUNDS - 1


def outcome_of(peer: PacedPeer, outcome: str) -> int:
    return peer.node.outcomes[outcome] + sum(each.outcomes.get(outcome, 0) for each in peer.collected)


@pytest.mark.parametrize("keys", [3, 300])
def test_silent_keys_do_not_slow_the_peers_of_a_run(swarm_of: MakeSwarm, keys: int) -> None:
    swarm = swarm_of(anchors=FOUR)
    swarm.add(*FOUR)
    swarm.pass_time(5.0)
    swarm.silent_keys(keys)
    assert swarm.pace(SECONDS) >= 0.9 * QUIET
    assert {by for peer in swarm.peers for by in peer.closed_by} == {ClosedBy.QUORUM}
    assert {peer.standing("key-0") for peer in swarm.peers} == {"probation"}
    assert all(len(peer.collected[-1].members) == 4 + keys for peer in swarm.peers)


def test_silent_keys_stop_peers_that_count_every_heartbeat(swarm_of: MakeSwarm) -> None:
    swarm = swarm_of(anchors=None)
    swarm.add(*FOUR)
    swarm.pass_time(5.0)
    swarm.silent_keys(3)
    assert swarm.pace(SECONDS) <= 1


def test_in_a_swarm_of_strangers_silent_keys_cost_one_deadline_and_new_ones_nothing(swarm_of: MakeSwarm) -> None:
    deadline = 60.0
    swarm = swarm_of(quorum=0.67, deadline=deadline)
    for name in FOUR:
        swarm.add(name)
    swarm.silent_keys(3)  # before the first stage has closed
    swarm.pass_time(deadline + 2.0)
    assert {peer.closed_by[0] for peer in swarm.peers} == {ClosedBy.DEADLINE}
    swarm.silent_keys(300, name="later")
    assert swarm.pace(SECONDS) >= 0.9 * QUIET


@pytest.mark.parametrize("defended", [True, False])
def test_a_counted_stranger_that_withdraws_costs_half_a_round_once(
    swarm_of: MakeSwarm, monkeypatch: pytest.MonkeyPatch, defended: bool
) -> None:
    if not defended:
        monkeypatch.setattr(StageTimes, "usual", lambda times, stage, work: None)
    swarm = swarm_of(anchors=FOUR)
    swarm.add(*FOUR)
    swarm.pass_time(4.5)
    stranger = swarm.add("stranger", plays_until=12)
    swarm.pass_time(9.0)
    honest = swarm.peers[:4]
    assert stranger.number == 12
    assert {peer.standing("stranger") for peer in honest} == {"counted"}
    before = len(honest[0].gaps)
    swarm.pass_time(SECONDS)
    if not defended:
        assert all(peer.finished[-1] < swarm.hub.clock.now() - 0.9 * SECONDS for peer in honest)
        return
    for peer in honest:
        slow = [gap for gap in peer.gaps[before:] if gap > 1.1]
        assert len(slow) == 1
        assert slow[0] <= 1.5 + 0.2 + 0.01
        assert peer.standing("stranger") == "missed"
        assert peer.closed_by.count(ClosedBy.DEADLINE) == 1
    assert min(len(peer.finished) for peer in honest) >= 0.95 * (4.5 + 9.0 + SECONDS)


def test_strangers_that_withdraw_in_turn_cost_no_more_than_a_third_of_the_pace(swarm_of: MakeSwarm) -> None:
    swarm = swarm_of(anchors=FOUR)
    swarm.add(*FOUR)
    swarm.pass_time(4.5)
    for number in range(6):
        swarm.add(f"stranger-{number}", plays_until=14 + number)
    swarm.pass_time(40.0)
    honest = swarm.peers[:4]
    assert min(len(peer.finished) for peer in honest) >= 2 / 3 * 44.5
    assert {peer.standing("stranger-5") for peer in honest} == {"missed"}


def test_an_honest_newcomer_is_waited_for_after_three_rounds(swarm_of: MakeSwarm) -> None:
    swarm = swarm_of(anchors=FOUR)
    swarm.add(*FOUR)
    swarm.pass_time(4.5)
    newcomer = swarm.add("newcomer", work=lambda number: 1.0 if number < 10 else 1.2)
    swarm.pass_time(3.0)
    assert {peer.standing("newcomer") for peer in swarm.peers[:4]} == {"probation"}
    swarm.pass_time(SECONDS)
    assert {peer.standing("newcomer") for peer in swarm.peers[:4]} == {"counted"}
    assert newcomer.skipped == 0
    assert all(1.15 <= gap <= 1.25 for peer in swarm.peers[:4] for gap in peer.gaps[-5:])


@pytest.mark.parametrize("anchors", [FOUR, ()], ids=["one run", "strangers"])
def test_rounds_longer_than_a_heartbeat_lose_no_member(swarm_of: MakeSwarm, anchors: tuple[str, ...]) -> None:
    swarm = swarm_of(anchors=anchors)
    for name in FOUR:
        swarm.add(name, work=lambda number: 25.0 + number % 3)
    swarm.pass_time(300.0)
    for peer in swarm.peers:
        assert set(peer.closed_by) == {ClosedBy.QUORUM}
        assert {len(collected.contributions) for collected in peer.collected} == {3}
    assert min(swarm.rounds()) >= 10


@pytest.mark.parametrize("anchors", [FOUR, ()], ids=["one run", "strangers"])
def test_an_honest_peer_that_was_held_up_skips_ahead_and_counts_again(
    swarm_of: MakeSwarm, anchors: tuple[str, ...]
) -> None:
    swarm = swarm_of(anchors=anchors, quorum=0.67)
    for name in FOUR[:3]:
        swarm.add(name)
    slow = swarm.add(FOUR[3], work=lambda number: 60.0 if number == 5 else 1.0)
    swarm.pass_time(63.0)
    assert [peer.number for peer in swarm.peers] == [63, 63, 63, 5]
    swarm.pass_time(SECONDS)
    others = swarm.peers[:3]
    assert slow.skipped == 1
    assert max(peer.number for peer in others) - slow.number <= 1
    assert {peer.standing(slow.name) for peer in others} == {"anchor" if anchors else "counted"}
    assert {slow.standing(peer.name) for peer in others} == {"anchor" if anchors else "counted"}


@pytest.mark.parametrize("defended", [True, False])
def test_a_stranger_that_announces_and_serves_nothing_never_counts(
    swarm_of: MakeSwarm, monkeypatch: pytest.MonkeyPatch, contribution_of: Callable[..., Contribution], defended: bool
) -> None:
    if not defended:

        async def nothing(attendance: Attendance, entry: object, positions: object) -> None:
            """Fetch no shard."""

        monkeypatch.setattr(Attendance, "_is_proven", lambda attendance, peer: True)
        monkeypatch.setattr(Attendance, "_probe", nothing)
    swarm = swarm_of(anchors=FOUR, exchange=Exchange.PULL, external=0)
    swarm.add(*FOUR)
    swarm.pass_time(4.5)
    transport = swarm.hub.transport("rogue")
    rogue = RoguePeer(swarm.hub.identity("rogue"), "rogue", transport, swarm.hub.thread)
    for _ in range(10):
        swarm.greet(transport, rogue.identity, swarm.peers[0].number)
        for peer in swarm.peers:
            made = contribution_of("rogue", peer.number)
            index = make_index(made, encode(made, RUN))
            announcement = make_announcement(RUN, "rogue", peer.number, 0, index, 2_000_000_000, rogue.identity.sign)
            rogue.send_announcement(peer.name, announcement.message)
        swarm.pass_time(1.0)
    expected = {"missed", "probation"} if defended else {"counted"}
    assert {peer.standing("rogue") for peer in swarm.peers} <= expected


def test_a_heartbeat_of_another_peer_in_a_greeting_is_refused_and_counted(swarm_of: MakeSwarm) -> None:
    swarm = swarm_of(anchors=FOUR)
    swarm.add(*FOUR)
    (carrier,) = swarm.silent_keys(1)
    swarm.greet(carrier, swarm.hub.identity("invented"), 0, peer="invented")
    for peer in swarm.peers:
        assert "invented" not in peer.node.members.others(swarm.hub.clock.now())
        assert outcome_of(peer, "not-its-own") == 1
