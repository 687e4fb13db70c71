"""The share of an update that rollouts of other peers may have."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmgame.trainer.influence import LEAST_AUTHORS, ROUNDS, OwnSignal, OwnSurprise, scales

amounts = st.floats(0.0, 1e6).map(lambda value: 0.0 if value < 1e-6 else value)


@given(
    st.lists(amounts, max_size=12),
    st.floats(1e-3, 1e6),
    st.sampled_from([0.01, 0.25, 0.5, 0.9, 0.99]),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)
def test_no_author_exceeds_its_share_and_all_together_not_the_bound(
    signals: list[float], own: float, most: float, part: float
) -> None:
    by_author = {str(at): value for at, value in enumerate(signals)}
    found = scales(by_author, own, most, part)
    assert found.keys() == by_author.keys()
    scaled = {peer: by_author[peer] * factor for peer, factor in found.items()}
    others = sum(scaled.values())
    total = own + others
    share = most * max(part, 1 / max(LEAST_AUTHORS, len(by_author)))
    assert all(0 <= factor <= 1 for factor in found.values())
    assert all(value <= share * total * (1 + 1e-9) for value in scaled.values())
    assert others <= most * total * (1 + 1e-9)
    # Nothing is taken away without need: who is scaled down is at its share, or all are at their bound.
    for value, factor in zip(scaled.values(), found.values(), strict=True):
        assert factor > 1 - 1e-9 or value == pytest.approx(share * total) or others == pytest.approx(most * total)


@pytest.mark.parametrize(
    ("groups", "part", "expected"),
    [
        ([3, 3, 2], 0.5, [1.0] * 3),
        ([3, 3, 2], 0.0, [5 / 6, 5 / 6, 1.0]),
        ([4], 0.5, [2 / 3]),
        ([8], 1.0, [1.0]),
        ([8], 0.0, [0.2]),
        ([1] * 8, 0.5, [1.0] * 8),
        ([16, 16], 0.5, [0.25, 0.25]),
        ([0], 0.5, [1.0]),
    ],
    ids=["quickstart", "equal parts", "two peers", "one has all", "or not", "nine peers", "twice ours", "no signal"],
)
def test_honest_peers_keep_their_weight_beside_eight_own_groups(
    groups: list[float], part: float, expected: list[float]
) -> None:
    found = scales({str(at): value for at, value in enumerate(groups)}, 8.0, 0.5, part)
    assert list(found.values()) == pytest.approx(expected)


def test_without_a_bound_nothing_is_scaled_and_without_own_signal_nothing_is_used() -> None:
    assert scales({"a": 9.0, "b": 1e9}, 0.0, 1.0) == {"a": 1.0, "b": 1.0}
    assert scales({"a": 9.0, "b": 1e9}, 0.0, 0.5) == {"a": 0.0, "b": 0.0}


def test_a_round_without_own_signal_is_compared_with_the_rounds_before() -> None:
    own = OwnSignal()
    assert own.reference(0.0, possible=40.0) == 40.0  # no round has had any: what it could be
    assert own.reference(6.0, possible=40.0) == 6.0
    assert own.reference(0.0, possible=40.0) == 2.0
    again = OwnSignal(list(own.recent))
    assert again.reference(0.0, possible=40.0) == own.reference(0.0, possible=40.0) == 1.5
    for _ in range(16):
        own.reference(0.0, possible=40.0)
    assert own.reference(0.0, possible=40.0) == 40.0


def test_the_surprise_of_our_own_tokens_is_weighted_by_advantages_and_forgets() -> None:
    own = OwnSurprise()
    assert own.mean is None
    own.add([(0.0, [-5.0] * 8)])  # an advantage of zero has no gradient
    assert own.mean is None
    own.add([(1.0, [math.log(0.9)] * 2), (3.0, [math.log(0.5)] * 2)])
    assert own.mean == pytest.approx((0.1 + 3 * 0.5) / 4)
    again = OwnSurprise(json.loads(json.dumps([list(each) for each in own.recent])))
    assert again.mean == own.mean
    for _ in range(ROUNDS):
        own.add([(1.0, [0.0])])
    assert own.mean == 0.0
