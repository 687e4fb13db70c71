"""Rollouts of several turns: segments, masks and what does not fit together."""

from __future__ import annotations

import pytest

from swarmgame import FinishReason, Rollout
from swarmgame.game.rollout import Segment

SEGMENTS = (Segment(2, "5"), Segment(3, "larger"), Segment(1, "7"))
ROLLOUT = Rollout("7", (1, 2, 9, 9, 9, 3), (-1.0, -2.0, -3.0), FinishReason.DONE, SEGMENTS)


def test_turns_observations_ids_and_mask_come_from_the_segments() -> None:
    assert ROLLOUT.turns == ("5", "7")
    assert ROLLOUT.observations == ("larger",)
    assert ROLLOUT.trained == (True, True, False, False, False, True)
    assert [(tuple(ids), text) for ids, text in ROLLOUT.turn_ids] == [((1, 2), "5"), ((3,), "7")]


def test_a_rollout_of_one_turn_has_no_segments() -> None:
    one = Rollout("5", (1, 2), (-1.0, -2.0))
    assert (one.turns, one.observations, one.trained) == (("5",), (), (True, True))
    assert list(one.turn_ids) == [((1, 2), "5")]


@pytest.mark.parametrize(
    ("segments", "text", "said"),
    [
        (SEGMENTS[:1], "5", "one segment is a rollout without segments"),
        ((Segment(2, "5"), Segment(0, "larger"), Segment(4, "7")), "7", "a segment without tokens"),
        ((Segment(2, "5"), Segment(2, "larger"), Segment(1, "7")), "7", "segments of 5 tokens but 6 token ids"),
        (SEGMENTS, "5", "not that of the policy's last turn"),
        ((Segment(2, "5"), Segment(2, "larger"), Segment(2, "7")), "7", "4 token ids of the policy but 3"),
    ],
)
def test_segments_that_do_not_fit_are_refused(segments: tuple[Segment, ...], text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Rollout(text, ROLLOUT.token_ids, ROLLOUT.logprobs, FinishReason.DONE, segments)
