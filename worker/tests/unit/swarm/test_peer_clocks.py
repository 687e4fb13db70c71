"""The error of a clock: what more than half of the counted weight agrees on."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmgame.swarm.clock import RealClock
from swarmgame.swarm.peer_clocks import SAMPLES, PeerClocks

NOW = 1_000_000.0


def clocks_of(ahead: dict[str, float], samples: int = SAMPLES) -> PeerClocks:
    clocks = PeerClocks()
    for peer, seconds in ahead.items():
        for number in range(samples):
            clocks.announced(peer, NOW + number + seconds, NOW + number)
    return clocks


def error(ahead: dict[str, float], weights: dict[str, float] | None = None) -> float | None:
    found = clocks_of(ahead).error(weights or dict.fromkeys(ahead, 1.0))
    return None if found is None else found.seconds


@pytest.mark.parametrize(
    ("ahead", "expected"),
    [
        ({}, None),
        ({"a": -20.0}, 20.0),
        ({"a": -20.0, "b": -22.0, "c": -21.0}, 21.0),
        ({"a": 3600.0, "b": 0.1, "c": 0.0}, -0.1),
        ({"a": 3600.0, "b": 3600.0, "c": 0.0, "d": -0.5}, 0.0),
        ({"a": 3600.0, "b": 0.0}, 0.0),
        ({"a": 3600.0, "b": -3600.0, "c": 7200.0}, -3600.0),
    ],
)
def test_the_error_is_the_least_on_which_more_than_half_agree(ahead: dict[str, float], expected: float | None) -> None:
    assert error(ahead) == (expected if expected is None else pytest.approx(expected))


def test_many_light_peers_do_not_outweigh_one_anchor() -> None:
    ahead = {"anchor": 0.0, **{f"liar-{number}": 3600.0 for number in range(20)}}
    weights = {"anchor": 1.0, **{f"liar-{number}": 0.49 * 2 / 20 for number in range(20)}}
    assert error(ahead, weights) == 0.0


def test_a_clock_that_is_not_known_counts_as_ours() -> None:
    assert error({"a": 3600.0}, {"a": 1.0, "b": 1.0}) == 0.0


def test_few_announcements_and_slow_ones_say_nothing() -> None:
    assert clocks_of({"a": 20.0}, samples=2).error({"a": 1.0}) is None
    clocks = clocks_of({"a": 0.0}, samples=2)
    for delay in (40.0, 20.0, 60.0):  # the process was stopped, and reads what came meanwhile
        clocks.announced("a", NOW, NOW + delay)
    found = clocks.error({"a": 1.0})
    assert found is not None
    assert found.seconds == 0.0


@given(st.dictionaries(st.integers(0, 9), st.floats(-1e9, 1e9), min_size=1), st.floats(-1e9, 1e9))
def test_less_than_half_of_the_weight_moves_the_error_no_further_than_honest_clocks_differ(
    honest: dict[int, float], lie: float
) -> None:
    ahead = {f"honest-{number}": seconds for number, seconds in honest.items()}
    liars = {f"liar-{number}": lie for number in range(len(honest) - 1)}
    found = error({**ahead, **liars})
    assert found is not None
    assert min(0.0, *honest.values()) - 1e-6 <= -found <= max(0.0, *honest.values()) + 1e-6


@pytest.mark.parametrize("ahead", [-3600.0, 3600.0])
def test_a_peers_messages_are_judged_by_its_own_clock(ahead: float) -> None:
    clocks = clocks_of({"a": ahead})
    assert clocks.now_of("a", NOW) == NOW + ahead
    assert clocks.now_of("b", NOW) == NOW
    clocks.forget(())
    assert clocks.now_of("a", NOW) == NOW
    clocks.greeted("a", NOW + ahead, NOW)
    assert clocks.now_of("a", NOW) == NOW + min(0.0, ahead)


def test_a_clock_that_is_set_goes_on_evenly_and_says_by_how_much_it_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = RealClock()
    before, wall = clock.now(), time.time
    assert before == pytest.approx(wall(), abs=1.0)
    monkeypatch.setattr(time, "time", lambda: wall() - 3600.0)
    assert 0.0 <= clock.now() - before < 60.0
    assert clock.set_since() == pytest.approx(-3600.0, abs=1.0)
