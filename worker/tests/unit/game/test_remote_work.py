"""How much of a round the contributions of other peers may take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from contributions import make_contribution

from swarmgame.game.protocol import ClosedBy, Collected, Origin
from swarmgame.game.remote_work import (
    BEYOND_BUDGET,
    CONTRIBUTIONS,
    KNOWN,
    SHARE,
    SWARM_SHARE,
    UNKNOWN_ROLLOUTS,
    RemoteWork,
)
from swarmgame.game.state import Contribution

OWN = make_contribution("me", groups=4, rollouts=5)
"""Twenty rollouts."""
QUIET = {"data": 0.5, "generate": 6.0, "train": 3.5, "listen": 0.0, "rewards": 0.0}
"""A round with ten seconds of our own work."""


def of(peer: str, rollouts: int = 20, round: int = 0) -> Contribution:
    return make_contribution(peer, round, groups=1, rollouts=rollouts)


def collected(contributions: Sequence[Contribution], standings: Mapping[str, str]) -> Collected:
    origins = tuple(Origin(each.peer.encode(), b"", (), ()) for each in contributions)
    return Collected(
        tuple(contributions),
        (),
        (),
        ClosedBy.QUORUM,
        {"accepted": 3},
        origins=origins,
        standings=standings,
        arrivals=tuple(range(100, 100 + len(contributions))),
    )


def bounded(
    work: RemoteWork, contributions: Sequence[Contribution], standings: Mapping[str, str], **more: int
) -> set[str]:
    found = work.bounded(collected(contributions, standings), OWN, **{"round": 0, "stages": 1} | more)
    assert [origin.announcement.decode() for origin in found.origins] == [each.peer for each in found.contributions]
    arrived = {id(each): 100 + at for at, each in enumerate(contributions)}
    assert list(found.arrivals) == [arrived[id(each)] for each in found.contributions]
    assert found.outcomes.get(BEYOND_BUDGET, 0) == len(contributions) - len(found.contributions)
    return {each.peer for each in found.contributions}


def measured(work: RemoteWork, seconds_per_rollout: float, rollouts: int = 100) -> RemoteWork:
    """Note rounds in which verifying took so long."""
    standings = {"friend": "anchor"}
    for _ in range(KNOWN):
        work.bounded(collected([of("friend", rollouts)], standings), OWN, round=0, stages=1)
        work.round_finished(20, QUIET | {"listen": seconds_per_rollout * rollouts})
    return work


def test_peers_that_are_vouched_for_are_used_whatever_they_send() -> None:
    work = measured(RemoteWork(), 10.0)
    friends = [of(f"friend-{number}", 400) for number in range(30)]
    assert len(bounded(work, friends, {each.peer: "anchor" for each in friends})) == 30


def test_every_peer_of_a_fixed_set_is_vouched_for() -> None:
    sent = [of(f"p{number}", 400) for number in range(9)]
    assert len(bounded(measured(RemoteWork(closed=True), 10.0), sent, {})) == 9
    assert len(bounded(measured(RemoteWork(), 10.0), sent, {})) == 0, "strangers without a standing are bounded"


@pytest.mark.parametrize("size", [CONTRIBUTIONS * 20, CONTRIBUTIONS * 20 + 1])
def test_four_times_our_own_contribution_fits_and_one_rollout_more_does_not(size: int) -> None:
    standings = {"friend": "anchor", "stranger": "probation"}
    assert bounded(RemoteWork(), [of("stranger", size)], standings) == ({"stranger"} if size == 80 else set())


def test_a_group_without_rollouts_counts_as_one() -> None:
    empty = make_contribution("stranger", groups=CONTRIBUTIONS * 20 + 1, rollouts=0)
    standings = {"friend": "anchor", "stranger": "probation"}
    assert bounded(RemoteWork(), [empty], standings) == set()
    fewer = replace(empty, groups=empty.groups[:-1])
    assert bounded(RemoteWork(), [fewer], standings) == {"stranger"}


def test_strangers_together_have_what_a_quarter_of_our_own_work_verifies() -> None:
    strangers = [of(f"stranger-{number}") for number in range(50)]
    standings = {each.peer: "probation" for each in strangers} | {"friend": "anchor"}
    for cost, fit in ((0.005, SHARE * 10.0 / 0.005 // 20), (0.1, CONTRIBUTIONS), (10.0, CONTRIBUTIONS)):
        assert len(bounded(measured(RemoteWork(), cost), strangers, standings)) == fit
    work = measured(RemoteWork(), 0.005)
    assert len(bounded(work, strangers, standings, stages=5)) == SHARE * 10.0 / 5 / 0.005 // 20


def test_before_times_are_known_strangers_have_four_contributions_and_the_swarm_any_number() -> None:
    peers = [of(f"peer-{number}") for number in range(50)]
    assert len(bounded(RemoteWork(), peers, {each.peer: "probation" for each in peers})) == CONTRIBUTIONS
    assert len(bounded(RemoteWork(), peers, {each.peer: "provisional" for each in peers})) == 50


def test_where_nobody_is_vouched_for_the_swarm_has_as_much_time_as_our_own_work() -> None:
    peers = [of(f"peer-{number}") for number in range(50)]
    work = measured(RemoteWork(), 0.02)
    assert len(bounded(work, peers, {each.peer: "counted" for each in peers})) == SWARM_SHARE * 10.0 / 0.02 // 20


def test_peers_that_count_come_before_strangers_and_strangers_in_turn() -> None:
    counted, strangers = [of("zed")], [of(f"stranger-{number}") for number in range(20)]
    standings = {each.peer: "probation" for each in strangers} | {"zed": "counted", "friend": "anchor"}
    work = measured(RemoteWork(), 10.0)
    used = [bounded(work, [*strangers, *counted], standings, round=round) for round in range(30)]
    assert all("zed" in each and len(each) == CONTRIBUTIONS for each in used)
    assert set.union(*used) == set(standings) - {"friend"}


def test_a_larger_contribution_that_does_not_fit_leaves_room_for_smaller_ones() -> None:
    standings = {"large": "counted", "small": "probation", "friend": "anchor"}
    assert bounded(RemoteWork(), [of("large", 81), of("small")], standings) == {"small"}


def test_late_contributions_of_one_author_count_together() -> None:
    sent = [of("stranger", 30, round) for round in range(3)]
    found = RemoteWork().bounded(collected(sent, {"stranger": "probation", "f": "anchor"}), OWN, round=2, stages=1)
    assert [each.round for each in found.contributions] == [1, 2], "the newest first"


NONE = replace(OWN, groups=(), references={})


@pytest.mark.parametrize("own", [None, NONE])
def test_a_stage_without_own_rollouts_is_bounded_by_our_last_ones(own: Contribution | None) -> None:
    work = RemoteWork()
    standings = {"friend": "anchor"} | {f"stranger-{number}": "probation" for number in range(9)}
    sent = [of(f"stranger-{number}") for number in range(9)]
    assert len(bounded(work, sent, standings)) == CONTRIBUTIONS
    assert len(work.bounded(collected(sent, standings), own, round=1, stages=1).contributions) == CONTRIBUTIONS
    large = collected([of("stranger-0", 81)], standings)
    assert not work.bounded(large, own, round=1, stages=1).contributions


@pytest.mark.parametrize("own", [None, NONE])
def test_before_any_own_rollouts_the_median_of_those_that_count_is_the_measure(own: Contribution | None) -> None:
    standings = {f"peer-{number}": "counted" for number in range(9)} | {"stranger": "probation"}
    sent = [of(f"peer-{number}") for number in range(9)]
    honest = collected(sent, standings)
    assert RemoteWork().bounded(honest, own, round=0, stages=1) is honest
    flood = collected([*sent[:3], of("peer-8", 8000), of("stranger", 81)], standings)
    kept = RemoteWork().bounded(flood, own, round=0, stages=1).contributions
    assert [each.peer for each in kept] == ["peer-0", "peer-1", "peer-2"]


def test_peers_that_sample_nothing_in_a_stage_are_no_measure_of_it() -> None:
    """Of nine peers that count, two have the role that answers."""
    standings = {f"peer-{number}": "counted" for number in range(9)} | {"stranger": "probation"}
    silent = [replace(of(f"peer-{number}"), groups=(), references={}) for number in range(2, 9)]
    sent = collected([of("peer-0"), of("peer-1"), *silent, of("stranger", 80)], standings)
    assert RemoteWork().bounded(sent, None, round=0, stages=1) is sent
    assert RemoteWork().bounded(collected(silent, standings), None, round=0, stages=1).contributions == tuple(silent)


def test_where_nothing_is_known_strangers_have_a_few_small_contributions() -> None:
    sent = collected([of(f"stranger-{number}", UNKNOWN_ROLLOUTS) for number in range(20)], {})
    assert len(RemoteWork().bounded(sent, None, round=0, stages=1).contributions) == CONTRIBUTIONS


def test_scoring_has_a_quarter_of_our_own_work_or_four_times_that_of_our_own_answers() -> None:
    work = RemoteWork()
    assert work.scoring_seconds() is None
    work.scored_own(0.1)
    measured(work, 0.001)
    assert work.scoring_seconds() == pytest.approx(SHARE * 10.0)
    work.scored_own(0.5)
    work.scored_own(1.0)
    work.round_finished(20, QUIET)
    assert work.scoring_seconds() == pytest.approx(CONTRIBUTIONS * 1.5)


def test_it_is_said_once() -> None:
    said: list[str] = []
    work = RemoteWork(said.append)
    for _ in range(3):
        bounded(work, [of("stranger", 8000)], {"stranger": "probation", "friend": "anchor"})
    (text,) = said
    assert "1 of 1 contributions" in text
    assert "admission Allowlist" in text
