"""PackedNumbers behave as the tuple of their numbers."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmgame.game.packed_numbers import PackedNumbers
from swarmgame.game.state import Rollout

IDS = st.lists(st.integers(0, 2**32 - 1), max_size=20)
HALVES = st.lists(st.floats(-60000, 0, width=16), max_size=20)


def packed(values, kind):
    return PackedNumbers(np.frombuffer(np.array(values, dtype=kind).tobytes(), dtype=kind))


@given(st.one_of(st.tuples(IDS, st.just("<u4")), st.tuples(HALVES, st.just("<f2"))), st.slices(20))
def test_they_behave_as_the_tuple_of_their_numbers(drawn, part):
    values, kind = drawn
    as_tuple, as_packed = tuple(values), packed(values, kind)
    assert as_packed == as_tuple
    assert as_tuple == as_packed
    assert as_packed == packed(values, kind)
    assert (tuple(as_packed), len(as_packed), hash(as_packed), repr(as_packed)) == (
        as_tuple,
        len(values),
        hash(as_tuple),
        repr(as_tuple),
    )
    assert as_packed[part] == as_tuple[part]
    assert [as_packed[at] for at in range(len(values))] == values
    assert {type(each) for each in as_packed} <= {int, float}
    assert np.asarray(as_packed).tolist() == values
    assert copy.deepcopy(as_packed) == as_tuple


def test_other_numbers_and_lists_are_not_equal():
    assert packed([1, 2], "<u4") != (1, 3)
    assert packed([1, 2], "<u4") != (1,)
    assert packed([1, 2], "<u4") != [1, 2]


def test_a_rollout_of_packed_numbers_equals_one_of_tuples():
    ours = Rollout("a", (7, 8), (-1.0, -0.5))
    theirs = Rollout("a", packed([7, 8], "<u4"), packed([-1.0, -0.5], "<f2"))
    assert (ours, hash(ours)) == (theirs, hash(theirs))


def test_a_writable_array_is_refused():
    with pytest.raises(ValueError, match="read-only"):
        PackedNumbers(np.zeros(3))


def test_an_index_out_of_range_is_an_index_error():
    with pytest.raises(IndexError):
        packed([1], "<u4")[1]
