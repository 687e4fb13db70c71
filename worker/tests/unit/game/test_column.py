"""A column stands where a tuple of numbers stood."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmgame.game.column import Column
from swarmgame.game.state import Rollout

IDS = st.lists(st.integers(0, 2**32 - 1), max_size=20)
HALVES = st.lists(st.floats(-60000, 0, width=16), max_size=20)


def column(values, kind):
    return Column(np.frombuffer(np.array(values, dtype=kind).tobytes(), dtype=kind))


@given(st.one_of(st.tuples(IDS, st.just("<u4")), st.tuples(HALVES, st.just("<f2"))), st.slices(20))
def test_it_is_as_the_tuple_of_its_numbers(drawn, part):
    values, kind = drawn
    as_tuple, as_column = tuple(values), column(values, kind)
    assert as_column == as_tuple
    assert as_tuple == as_column
    assert as_column == column(values, kind)
    assert (tuple(as_column), len(as_column), hash(as_column), repr(as_column)) == (
        as_tuple,
        len(values),
        hash(as_tuple),
        repr(as_tuple),
    )
    assert as_column[part] == as_tuple[part]
    assert [as_column[at] for at in range(len(values))] == values
    assert {type(each) for each in as_column} <= {int, float}
    assert np.asarray(as_column).tolist() == values
    assert copy.deepcopy(as_column) == as_tuple


def test_other_numbers_and_other_things_are_not_equal():
    assert column([1, 2], "<u4") != (1, 3)
    assert column([1, 2], "<u4") != (1,)
    assert column([1, 2], "<u4") != [1, 2]


def test_rollouts_are_equal_whichever_of_the_two_they_hold():
    ours = Rollout("a", (7, 8), (-1.0, -0.5))
    theirs = Rollout("a", column([7, 8], "<u4"), column([-1.0, -0.5], "<f2"))
    assert (ours, hash(ours)) == (theirs, hash(theirs))


def test_memory_that_somebody_could_change_is_refused():
    with pytest.raises(ValueError, match="could be changed"):
        Column(np.zeros(3))


def test_an_index_outside_is_an_index_error():
    with pytest.raises(IndexError):
        column([1], "<u4")[1]
