"""Which peers count, and how long a stage waits: tables and properties of pure functions."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from swarmgame.game.present_round import present_round
from swarmgame.game.protocol import CollectPolicy, Exchange, Member
from swarmgame.swarm.counted_peers import COUNTING, OTHERS_SHARE, CountedPeers, CountingRules, Standing
from swarmgame.swarm.stage_times import StageTimes, patience, reached
from swarmgame.swarm.topology import is_quorum

ANCHORS = frozenset({"ann", "bob"})
TWO_THIRDS = CollectPolicy(Exchange.GATHER, 0.67, 1.0)


def judged(counted: CountedPeers, first: int, rounds: int, complete: set[str], expected: set[str]) -> CountedPeers:
    for number in range(first, first + rounds):
        counted = counted.judge(number, complete, expected, number + 1)
    return counted


def newcomer_of(anchors: frozenset[str] | None = ANCHORS, **rules: object) -> CountedPeers:
    live = [*(anchors or ()), "eve"]
    return CountedPeers(CountingRules(anchors, **rules)).start().observe(live, 0)  # type: ignore[arg-type]


def test_a_newcomer_counts_after_three_complete_rounds_until_its_first_miss() -> None:
    counted = newcomer_of()
    for number in range(3):
        assert counted.standing("eve") is Standing.PROBATION
        counted = judged(counted, number, 1, {"ann", "bob", "eve"}, {"ann", "bob"})
    assert counted.standing("eve") is Standing.COUNTED
    missed = judged(counted, 3, 1, {"ann", "bob"}, {"ann", "bob", "eve"})
    assert missed.standing("eve") is Standing.MISSED
    assert "eve" not in missed.weights(["ann", "bob", "eve"])
    assert judged(missed, 4, 2, {"eve"}, set()).standing("eve") is Standing.MISSED
    assert judged(missed, 4, 3, {"eve"}, set()).standing("eve") is Standing.COUNTED


def test_rounds_that_are_not_in_a_row_do_not_add_up() -> None:
    counted = newcomer_of()
    for number in range(0, 30, 3):
        counted = judged(counted, number, 2, {"eve"}, {"eve"})
        counted = judged(counted, number + 2, 1, set(), {"eve"})
        assert counted.standing("eve") is Standing.PROBATION


@pytest.mark.parametrize("away", [1, 2, 7])
def test_a_newcomer_that_is_not_expected_and_stays_away_begins_again(away: int) -> None:
    counted = newcomer_of()
    for number in range(0, 60, 2 + away):
        counted = judged(counted, number, 2, {"ann", "bob", "eve"}, {"ann", "bob"})
        counted = judged(counted, number + 2, away, {"ann", "bob"}, {"ann", "bob"})
        assert (counted.standing("eve"), counted.streak("eve")) == (Standing.PROBATION, 0)
    assert judged(counted, 60, 3, {"eve"}, set()).standing("eve") is Standing.COUNTED


def test_a_peer_that_counts_keeps_its_place_in_rounds_that_did_not_expect_it() -> None:
    counted = judged(newcomer_of(), 0, 3, {"eve"}, set())
    assert judged(counted, 3, 9, {"ann"}, {"ann", "bob"}).standing("eve") is Standing.COUNTED
    provisional = CountedPeers(CountingRules(frozenset())).observe(["eve"], 0).start()
    provisional = judged(judged(provisional, 0, 2, {"eve"}, {"eve"}), 2, 4, set(), set())
    assert (provisional.standing("eve"), provisional.streak("eve")) == (Standing.PROVISIONAL, 2)


@pytest.mark.parametrize("complete", [True, False])
def test_a_round_whose_body_is_on_its_way_counts_when_it_has_come(complete: bool) -> None:
    counted = judged(newcomer_of(), 0, 2, {"eve"}, set())
    counted = counted.judge(2, set(), set(), 3, undecided={"eve"})
    assert (counted.standing("eve"), counted.streak("eve")) == (Standing.PROBATION, 2)
    decided = counted.decide(2, "eve", complete=complete)
    assert decided.standing("eve") is (Standing.COUNTED if complete else Standing.PROBATION)
    assert decided.streak("eve") == (3 if complete else 0)
    assert decided.decide(2, "nobody", complete=True) is decided
    gone = counted.miss(["ann"], 5).decide(2, "ann", complete=True)
    assert gone.standing("ann") is Standing.MISSED, "the round was before its miss"


def test_a_round_before_a_miss_does_not_make_up_for_it() -> None:
    counted = newcomer_of().miss(["ann"], 7)
    assert counted.standing("ann") is Standing.MISSED
    assert counted.judge(6, {"ann"}, {"ann"}, 7).standing("ann") is Standing.MISSED
    assert counted.judge(7, {"ann"}, {"ann"}, 8).standing("ann") is Standing.ANCHOR


def test_an_anchor_misses_by_a_deadline_alone() -> None:
    counted = judged(newcomer_of(), 0, 5, set(), {"ann", "bob"})
    assert counted.weights(["ann", "bob", "eve"]) == {"ann": 1.0, "bob": 1.0}


def test_peers_that_a_list_or_a_chain_admits_count_from_the_start() -> None:
    counted = newcomer_of(None)
    assert counted.weights(["eve", "zoe"]) == {"eve": 1.0, "zoe": 1.0}


def test_a_peer_that_was_gone_has_to_earn_its_place_again() -> None:
    counted = judged(newcomer_of(), 0, 3, {"eve"}, set())
    assert counted.observe(["ann", "bob"], 4).observe(["ann", "bob", "eve"], 5).standing("eve") is Standing.PROBATION


def test_without_anchors_those_that_are_heard_before_the_first_stage_closes_count_provisionally() -> None:
    counted = CountedPeers().observe(["bob", "eve"], 0)
    assert counted.weights(["bob", "eve"]) == {"bob": 1.0, "eve": 1.0}
    later = counted.start().observe(["bob", "eve", "zoe"], 1)
    assert later.standing("zoe") is Standing.PROBATION
    assert judged(later, 0, 3, {"bob", "eve"}, {"bob", "eve"}).standing("bob") is Standing.COUNTED


def test_new_keys_are_adopted_by_a_peer_that_is_alone_less_and_less_often() -> None:
    counted = CountedPeers().start()
    costs = []
    for number in range(200):
        counted = counted.observe([f"key-{number}"], number)
        if counted.weights([f"key-{number}"]):
            costs.append(number)
            counted = counted.miss([f"key-{number}"], number)
    assert costs == [0, 3, 9, 21, 45, 93, 189]


def test_a_peer_that_is_left_alone_tries_those_again_that_missed() -> None:
    counted = CountedPeers().observe(["bob"], 0).start().miss(["bob"], 4)
    assert [bool(counted.observe(["bob"], number).weights(["bob"])) for number in (5, 6, 7)] == [False, False, True]
    again = counted.observe(["bob"], 7)
    assert again.standing("bob") is Standing.PROVISIONAL
    assert judged(again, 7, 3, {"bob"}, {"bob"}).misses == 0
    with_another = CountedPeers().observe(["ann", "bob"], 0).start().miss(["bob"], 4)
    assert with_another.observe(["ann", "bob"], 99).standing("bob") is Standing.MISSED


def test_at_most_four_peers_of_one_address_count_and_anchors_are_exempt() -> None:
    keys = [f"key-{number}" for number in range(9)]
    everywhere = CountingRules(ANCHORS, address=lambda peer: "192.0.2.1")
    live = [*ANCHORS, *keys]
    counted = CountedPeers(everywhere).start().observe(live, 0)
    counted = judged(counted, 0, 5, set(live), set())
    assert counted.weights(live).keys() == {*ANCHORS, *keys[:4]}
    assert {counted.standing(key) for key in keys[4:]} == {Standing.SAME_ADDRESS}
    counted = judged(counted, 5, 1, set(live) - {"key-0"}, {"key-0"})
    assert counted.weights(live).keys() == {*ANCHORS, *keys[1:5]}
    strangers = CountedPeers(CountingRules(address=lambda peer: "192.0.2.1")).observe(keys, 0)
    assert len(strangers.weights(keys)) == 4


class Counting(RuleBasedStateMachine):
    """Peers come, deliver, miss and go in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.counted = CountedPeers(CountingRules(ANCHORS, address=lambda peer: peer[0]))
        self.live = ["ann", "bob"]
        self.counted = self.counted.observe(self.live, 0)
        self.round = 0
        self.streaks: dict[str, int] = {}

    peers = st.sets(st.sampled_from(["ann", "bob", *(f"{letter}{n}" for letter in "xyz" for n in range(7))]))

    @rule(live=peers)
    def observe(self, live: set[str]) -> None:
        self.live = sorted(live)
        self.counted = self.counted.observe(self.live, self.round)
        self.streaks = {peer: streak for peer, streak in self.streaks.items() if peer in live}

    @rule(complete=peers, expected=peers)
    def judge(self, complete: set[str], expected: set[str]) -> None:
        self.round += 1
        counting = {peer for peer in self.live if self.counted.standing(peer) in COUNTING}
        self.counted = self.counted.start().judge(self.round - 1, complete, expected, self.round)
        for peer in self.live:
            if peer in complete:
                self.streaks[peer] = self.streaks.get(peer, 0) + 1
            elif peer in expected or peer not in counting:
                self.streaks[peer] = 0

    @rule(missed=peers)
    def miss(self, missed: set[str]) -> None:
        self.counted = self.counted.miss(missed, self.round)
        for peer in missed:
            if self.counted.standing(peer) is Standing.MISSED:
                assert peer not in self.counted.weights(self.live)

    @invariant()
    def anchors_alone_reach_two_thirds(self) -> None:
        weights = self.counted.weights(self.live)
        anchors = 1 + sum(weight for peer, weight in weights.items() if peer in ANCHORS)
        others = sum(weight for peer, weight in weights.items() if peer not in ANCHORS)
        if ANCHORS & set(self.live):
            assert others <= OTHERS_SHARE * anchors + 1e-9
            assert is_quorum(TWO_THIRDS, anchors, anchors + others)

    @invariant()
    def a_peer_that_did_not_deliver_has_no_weight(self) -> None:
        if not self.counted.started:
            return
        for peer in self.counted.weights(self.live):
            standing = self.counted.standing(peer)
            assert standing in COUNTING
            if standing is Standing.COUNTED:
                assert self.streaks[peer] >= 3

    @invariant()
    def few_peers_of_one_address_count(self) -> None:
        weights = self.counted.weights(self.live)
        for letter in "xyz":
            assert sum(peer[0] == letter for peer in weights) <= 4


TestCounting = Counting.TestCase
TestCounting.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ([], None),
        ([(5, 1.0)], 5),
        ([(5, 1.0), (9, 1.0)], 5),
        ([(5, 1.0), (9, 1.0), (10**9, 1.0)], 9),
        ([(3, 1.0), (5, 1.0), (9, 1.0), (10**9, 1.0)], 5),
        ([(7, 1.0), (10**9, 0.0), (10**9, 0.0), (10**9, 0.0)], 7),
        ([(7, 1.0), (7, 1.0), (99, 0.37), (99, 0.37), (99, 0.37), (99, 0.37)], 7),
        ([(99, 0.49)], None),
    ],
)
def test_the_present_round_is_one_that_half_of_the_weight_has_reached(
    others: list[tuple[int, float]], expected: int | None
) -> None:
    members = [Member(str(index), number, 0, weight) for index, (number, weight) in enumerate(others)]
    assert present_round([*members, Member("me", 0, 0)], "me") == expected


def test_a_position_is_believed_as_far_as_the_peer_has_contributed() -> None:
    assert Member("a", 10**9, 0, contributed=6).reached == 7
    assert Member("a", 7, 1, contributed=7).reached == 7
    assert Member("a", 7, 0, contributed=None).reached == 7
    late = [Member("a", 7, 0, contributed=7), Member("b", 6, 0, contributed=7)]
    assert (present_round(late, "me"), present_round(late, "me", to_enter=True)) == (6, 8)


def test_strangers_are_waited_for_half_as_long_again_as_usual() -> None:
    times = StageTimes()
    for seconds in (1.0, 9.0):
        times = times.add(0, seconds)
        assert times.usual(0, 1.0) is None
    times = times.add(0, 2.0)
    assert (times.usual(0, 1.0), times.usual(0, 10.0), times.usual(1, 1.0)) == (2.0, 10.0, None)
    assert patience(2.0) == pytest.approx(1.5 * 2.0 + 0.2)
    assert StageTimes.restored(times.state_dict()) == times


def test_a_minority_that_becomes_slower_does_not_raise_the_usual_time() -> None:
    weights = {"ann": 1.0, "bob": 1.0, "x": OTHERS_SHARE * 1.5, "y": OTHERS_SHARE * 1.5}
    assert reached({"ann": 11.0, "bob": 12.0, "x": 30.0, "y": 30.0}, weights, 10.0, 30.0) == 12.0
    assert reached({"ann": 11.0}, weights, 10.0, 30.0) == 30.0
    assert reached({}, {}, 10.0, 30.0) == 10.0
    assert reached({"ann": 1.0}, {"ann": 1.0}, 10.0, 30.0) == 10.0
