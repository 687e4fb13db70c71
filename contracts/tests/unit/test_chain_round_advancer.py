"""When a round ends: a table, and events that a reorganisation takes back."""

from __future__ import annotations

import pytest

from swarmgame_chain.abi import ContractEvent
from swarmgame_chain.gateway.round_advancer import RoundAdvancer
from swarmgame_chain.reader import RoundClock, SwarmConfig

CONFIG = SwarmConfig(round_duration=600, min_round_time=10)


def event(name: str, peer: str, round: int = 0) -> ContractEvent:
    return ContractEvent(name, {"peerId": peer, "roundNumber": round}, f"0x{peer}{round}", 0, 1, "0x1")


def advancer(reported: str, quorum: float = 0.67) -> RoundAdvancer:
    """Four peers are registered; those of `reported` have reported in round 0."""
    made = RoundAdvancer(quorum)
    made.read([event("PeerProven", peer) for peer in "abcd"], [], 0)
    made.read([event("RewardSubmitted", peer) for peer in reported], [], 0)
    return made


@pytest.mark.parametrize(
    ("reported", "ahead", "age", "over"),
    [
        ("", "", 60, False),
        ("ab", "", 60, False),
        ("abc", "", 60, True),
        ("abc", "", 9, False),
        ("ab", "ab", 60, False),
        ("ab", "c", 60, True),
        ("", "", 601, False),
        ("a", "", 601, True),
        ("", "d", 601, True),
    ],
)
def test_a_round_ends_by_quorum_or_deadline_and_never_without_a_report(
    reported: str, ahead: str, age: int, over: bool
) -> None:
    assert advancer(reported).is_over(RoundClock(0, 600, age), CONFIG, ahead=frozenset(ahead)) is over


@pytest.mark.parametrize(("age", "over"), [(60, False), (599, False), (601, True)])
def test_a_round_stays_open_for_messages_that_only_it_takes_until_its_deadline(age: int, over: bool) -> None:
    assert advancer("abcd").is_over(RoundClock(0, 600, age), CONFIG, needed=True) is over


def test_a_report_that_a_reorganisation_removed_does_not_count() -> None:
    made = advancer("abc")
    made.read([], [event("RewardSubmitted", "c")], 0)
    assert made.reported(0) == 2


def test_a_peer_without_recent_reports_is_not_live() -> None:
    made = advancer("ab")
    assert made.live(2) == 4
    made.read([event("ReportCommitted", "a", 3)], [], 3)
    assert made.live(3) == 1
