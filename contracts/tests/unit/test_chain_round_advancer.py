"""When rounds end: tables over virtual time, and events that a reorganisation takes back."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from swarmgame_chain.abi import ContractEvent
from swarmgame_chain.gateway.round_advancer import MAX_STEP, RoundAdvancer
from swarmgame_chain.messages.base import MAX_ROUNDS_AHEAD, OPENING_WINDOW, REPORT_WINDOW
from swarmgame_chain.reader import RoundClock, SwarmConfig

CONFIG = SwarmConfig(round_duration=600, min_round_time=10)
SHORT = SwarmConfig(round_duration=60, min_round_time=10)
SEALED = SwarmConfig(round_duration=600, min_round_time=10, sealed_reports=True)
NONE: Mapping[str, int] = {}


def event(name: str, peer: str, round: int = 0) -> ContractEvent:
    values = {"peerId": peer} if name == "PeerProven" else {"peerId": peer, "roundNumber": round}
    return ContractEvent(name, values, f"0x{peer}{round}", 0, 1, "0x1")


class Swarm:
    """Four peers that are registered, and a clock."""

    def __init__(self, quorum: float = 0.67, peers: str = "abcd") -> None:
        self.now = 0.0
        self.advancer = RoundAdvancer(quorum, lambda: self.now)
        self.advancer.read([event("PeerProven", peer) for peer in peers], [])

    def report(self, peers: str, round: int = 0, name: str = "RewardSubmitted") -> None:
        self.advancer.read([event(name, peer, round) for peer in peers], [])

    def target(
        self,
        round: int = 0,
        age: int = 60,
        waiting: Mapping[str, int] = NONE,
        last: int | None = None,
        config: SwarmConfig = CONFIG,
    ) -> int:
        return self.advancer.target(RoundClock(round, config.round_duration, age), config, waiting, last)


@pytest.mark.parametrize(
    ("reported", "waiting", "age", "target"),
    [
        ("", {}, 60, 0),
        ("ab", {}, 60, 0),
        ("abc", {}, 60, 1),
        ("abc", {}, 9, 0),
        ("ab", {"a": 1, "b": 1}, 60, 0),
        ("ab", {"c": 1}, 60, 1),
        ("ab", {"c": 0}, 60, 1),
        ("", {}, 601, 0),
        ("a", {}, 601, 1),
        ("", {"d": 3}, 601, 1),
    ],
)
def test_a_round_ends_by_quorum_or_deadline_and_never_without_a_report(
    reported: str, waiting: dict[str, int], age: int, target: int
) -> None:
    swarm = Swarm()
    swarm.report(reported)
    assert swarm.target(age=age, waiting=waiting) == target


def test_rounds_that_a_quorum_has_finished_end_together_up_to_what_the_contract_takes() -> None:
    swarm = Swarm()
    assert swarm.target(waiting={"a": 60, "b": 58, "c": 59}) == 59
    assert swarm.target(waiting={"a": 60, "b": 58, "c": 59}, round=59) == 59
    assert swarm.target(waiting={"a": 600, "b": 580, "c": 590}, round=59) == 59 + MAX_STEP
    assert swarm.target(waiting={}, round=59, config=SEALED) == 59 + OPENING_WINDOW


def test_a_silent_peer_and_registered_keys_count_for_a_short_while_only() -> None:
    swarm = Swarm(quorum=1.0)
    swarm.report("abc")
    assert swarm.target() == 0
    swarm.now = 59.0
    swarm.report("abc", 1)
    assert swarm.target() == 0
    swarm.advancer.read([event("PeerProven", "d")], [])  # to register again is no life
    swarm.now = 61.0
    assert swarm.target() == 2
    assert swarm.advancer.live(CONFIG) == 3


def test_a_hundred_keys_that_are_registered_and_silent_hold_a_swarm_for_a_round_duration_at_most() -> None:
    swarm, round = Swarm(peers="abc"), 0
    keys = [chr(0x4E00 + number) for number in range(100)]
    swarm.advancer.read([event("PeerProven", key) for key in keys], [])
    lag = []
    for second in range(300):
        swarm.now = float(second)
        swarm.report("abc", 5 * second)
        round = swarm.target(round=round, age=59, config=SHORT)
        lag.append(5 * second + 1 - round)
    assert max(lag) <= 5 * 62
    assert lag[-1] == 0


def test_reports_that_wait_are_carried_when_registered_keys_have_held_the_round_for_long() -> None:
    swarm = Swarm(peers="abc" + "".join(chr(0x4E00 + number) for number in range(100)))
    waiting = dict.fromkeys("abc", 149)
    assert swarm.target(waiting=waiting) < 150
    swarm.now = 601.0
    assert swarm.target(round=127, waiting=waiting) == 150


def test_one_key_does_not_run_the_chain_past_the_reports_of_slow_peers() -> None:
    swarm, round = Swarm(), 0
    for second in range(0, 3_000, 10):
        swarm.now = float(second)
        if second % 300 == 290:
            swarm.report("abcd", second // 300)
        swarm.advancer.note_early("x", round + MAX_ROUNDS_AHEAD)
        round = swarm.target(round=round)
        assert round <= second // 300 + REPORT_WINDOW - MAX_STEP
    # The peers are away for 20 minutes.
    swarm.now += 1_200.0
    swarm.advancer.note_early("x", round + MAX_ROUNDS_AHEAD)
    assert swarm.target(round=round) <= 10 + REPORT_WINDOW - MAX_STEP


def test_peers_that_have_left_do_not_hold_the_rounds_of_as_many_that_play_on() -> None:
    swarm, round = Swarm(peers="abcdefghijABCDEFGHIJ"), 0
    for second in range(0, 1_000, 2):
        swarm.now = float(second)
        swarm.report("abcdefghij" if second < 100 else "ABCDEFGHIJ", second // 2)
        round = swarm.target(round=round)
        assert second < 200 or round == second // 2 + 1


def test_a_round_ends_at_its_deadline_where_all_live_peers_wait_far_ahead() -> None:
    swarm = Swarm()
    swarm.report("abcd", 0)
    swarm.now = 60.0
    for peer in "xyz":
        swarm.advancer.note_early(peer, 1 + MAX_ROUNDS_AHEAD)
    assert swarm.target(round=200) == 200
    assert swarm.target(round=1, age=601) > 1


def test_the_first_round_of_sealed_reports_waits_for_peers_that_are_slow_to_begin() -> None:
    swarm = Swarm(peers="ab")
    swarm.target(config=SEALED)
    swarm.now = 300.0
    swarm.report("a", name="ReportCommitted")
    assert swarm.target(config=SEALED) == 0
    assert swarm.target(config=CONFIG) == 1
    swarm.report("b", name="ReportCommitted")
    assert swarm.target(config=SEALED) == 1


def test_three_keys_that_sign_one_old_round_at_a_time_do_not_slow_four_peers() -> None:
    swarm = Swarm()
    for number in range(100):
        swarm.now = 10.0 * number
        swarm.report("abcd", number + 20)
        swarm.report("xyz", number)
        assert swarm.target(round=number + 20) == number + 21


def test_keys_that_register_all_the_time_hold_the_round_for_a_few_rounds_only() -> None:
    swarm, round, lag = Swarm(), 0, []
    for number in range(100):
        swarm.now = 10.0 * number
        swarm.report("abcd", number)
        keys = [chr(0x4E00 + 4 * number + each) for each in range(4)]
        swarm.advancer.read([event("PeerProven", key) for key in keys], [], round)
        round = swarm.target(round=round)
        lag.append(number + 1 - round)
    assert max(lag) <= 7


def test_the_deadline_ends_only_rounds_that_have_a_report_on_chain_or_on_its_way() -> None:
    swarm = Swarm()
    swarm.advancer.note_early("a", MAX_ROUNDS_AHEAD)
    swarm.now = 3_600.0
    assert swarm.target(age=601) == 0
    swarm.report("a")
    swarm.now = 7_200.0
    assert swarm.target(age=601) == 1
    assert swarm.target(round=1, age=601) == 1


def test_rounds_that_the_deadline_ends_do_not_make_peers_live_for_longer() -> None:
    swarm = Swarm()
    for round in range(8):
        swarm.now = 600.0 * round
        swarm.target(round=round, age=601, waiting={"a": round})
    swarm.now += 61.0
    assert swarm.advancer.live(CONFIG) == 0


def test_peers_that_wait_far_ahead_of_the_chain_pull_it_along_and_stay_live() -> None:
    swarm, round = Swarm(), 0
    for second in range(0, 400, 10):
        swarm.now = float(second)
        for peer in "abc":
            swarm.advancer.note_early(peer, 5_000)
        round = swarm.target(round=round)
    assert round == 5_000 + 1


@pytest.mark.parametrize(("age", "target"), [(60, 0), (599, 0), (601, 1)])
def test_a_round_stays_open_for_messages_that_later_ones_refuse_until_its_deadline(age: int, target: int) -> None:
    swarm = Swarm()
    swarm.report("abcd", name="ReportCommitted")
    assert swarm.target(age=age, last=0, config=SEALED) == target


def test_a_report_that_a_reorganisation_removed_does_not_count() -> None:
    swarm = Swarm()
    swarm.report("abc")
    swarm.advancer.read([], [event("RewardSubmitted", "c")])
    assert swarm.advancer.reported(0) == 2
    assert swarm.target() == 0


def test_a_peer_is_live_for_some_rounds_of_the_usual_length() -> None:
    swarm, round = Swarm(quorum=1.0, peers="ab"), 0
    for round in range(10):
        swarm.now = 60.0 * round
        swarm.report("ab", round)
        assert swarm.target(round=round) == round + 1
    swarm.now += 200.0
    assert swarm.advancer.live(CONFIG) == 2
    swarm.now += 101.0
    assert swarm.advancer.live(CONFIG) == 0
