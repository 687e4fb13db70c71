"""How a curriculum's level moves, by itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from swarmgame.data.curriculum import CurriculumConfig, CurriculumLevel


def test_nothing_moves_before_the_window_is_full() -> None:
    level = CurriculumLevel(CurriculumConfig(window=4), levels=5)
    for _ in range(3):
        level.add(1.0)
    assert level.level == 0
    level.add(1.0)
    assert level.level == 1


def test_a_move_empties_the_window() -> None:
    level = CurriculumLevel(CurriculumConfig(window=2), levels=5)
    for _ in range(3):
        level.add(1.0)
    assert level.level == 1
    assert level.state_dict() == {"level": 1, "window": [1.0]}


def test_a_window_in_between_slides_on() -> None:
    level = CurriculumLevel(CurriculumConfig(window=2, raise_above=0.7, lower_below=0.2), levels=5)
    for reward in (0.5, 0.5, 1.0):
        level.add(reward)
    assert level.level == 1


def test_thresholds_must_leave_room_between_them() -> None:
    with pytest.raises(ValidationError, match="lowerBelow must be less than raiseAbove"):
        CurriculumConfig(raise_above=0.3, lower_below=0.3)
    with pytest.raises(ValidationError, match="maxLevel must be at least startLevel"):
        CurriculumConfig(start_level=3, max_level=2)


@given(st.lists(st.floats(0, 1), max_size=60), st.integers(1, 6), st.integers(0, 9), st.integers(0, 60))
def test_a_level_stays_on_the_ladder_and_a_resumed_one_goes_the_same_way(
    rewards: list[float], levels: int, start: int, cut: int
) -> None:
    config = CurriculumConfig(window=3, start_level=start)
    complete, half, rest = (CurriculumLevel(config, levels) for _ in range(3))
    for reward in rewards:
        complete.add(reward)
        assert 0 <= complete.level < levels
    for reward in rewards[:cut]:
        half.add(reward)
    rest.load_state_dict(half.state_dict())
    for reward in rewards[cut:]:
        rest.add(reward)
    assert rest.state_dict() == complete.state_dict()
