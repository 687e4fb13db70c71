"""The column of segments: absent without environments, and checked against the columns that it divides."""

from __future__ import annotations

from dataclasses import replace

import msgpack
import pytest
import zstandard

from swarmgame.game.state import Contribution, FinishReason, Group, Prompt, QuestionRef, Rollout, Segment
from swarmgame.swarm.codec import Malformed, decode_shard, encode
from swarmgame.swarm.segment_column import SegmentColumn, column_of

REFERENCE = QuestionRef("words", "v1", 1, 2)
ONE = Rollout("four", (3, 4), (-0.5, -0.25))
TURNS = Rollout(
    "4",
    (5, 6, 7, 8, 9),
    (-0.5, -0.25, -0.125),
    FinishReason.DONE,
    (Segment(2, "7?"), Segment(2, "less"), Segment(1, "4"), Segment(0, "right")),
)


def contribution(*rollouts: Rollout) -> Contribution:
    return Contribution("ann", 0, 0, (Group(Prompt(REFERENCE.id), rollouts),), {REFERENCE.id: REFERENCE})


def plain(data: bytes) -> bytes:
    """Return a shard without compression."""
    return data if data[:1] == b"\x00" else b"\x00" + zstandard.ZstdDecompressor().decompress(data[1:])


def header_of(data: bytes) -> dict[str, object]:
    length = int.from_bytes(plain(data)[5:9], "little")
    return dict(msgpack.unpackb(plain(data)[9 : 9 + length]))


def test_rollouts_of_one_segment_have_no_column() -> None:
    (shard,) = encode(contribution(ONE, ONE), "run")
    assert "segments" not in header_of(shard.data)
    assert column_of([ONE]) is None


def test_turns_come_back_with_log_probabilities_of_the_policy_alone() -> None:
    (shard,) = encode(contribution(ONE, TURNS), "run")
    assert header_of(shard.data)["segments"] == [[], [2, 2, 2, 4, 1, 1, 0, 5]]
    one, turns = decode_shard(shard.data).contribution.groups[0].rollouts
    assert (one, turns) == (ONE, TURNS)
    assert turns.turns == ("7?", "4")
    assert turns.observations == ("less", "right")
    assert turns.trained == (True, True, False, False, True)


def test_rewards_of_an_environment_are_never_sent() -> None:
    (with_rewards,) = encode(contribution(replace(TURNS, turn_rewards=(0.0, 1.0))), "run")
    (without,) = encode(contribution(TURNS), "run")
    assert with_rewards == without


@pytest.mark.parametrize(
    "column",
    [
        [[2, 2, 2, 4, 1, 1]],
        [[], [5, 12]],
        [[], [2, 2, 2, 4, 1]],
        [[], [2, 2, 2, 4, 2, 6]],
        [[], [2, 2, 2, 4, 1, 7]],
        [[], [-1, 2, 5, 4, 1, 6]],
        [[], [2.0, 2, 2, 4, 1, 6]],
        [[], "2"],
        "all",
        [[], [1, 0] * 40],
    ],
)
def test_a_column_that_does_not_fit_is_refused(column: object) -> None:
    with pytest.raises(ValueError, match=r"segments|expected"):
        SegmentColumn(column, [2, 5], [4, 12], most=8)


def test_an_empty_turn_between_others_is_malformed() -> None:
    broken = SegmentColumn([[0, 2, 4, 4, 1, 6]], [5], [12], most=8)
    text, segments = broken.split(0, b"7?less4right")
    with pytest.raises(ValueError, match="without tokens"):
        Rollout(text, (5, 6, 7, 8, 9), (-0.5,), FinishReason.DONE, segments)


def test_a_shard_whose_texts_are_cut_within_a_character_is_malformed() -> None:
    (shard,) = encode(contribution(replace(TURNS, segments=(Segment(2, "é"), *TURNS.segments[1:]))), "run")
    whole = plain(shard.data)
    cut = whole.replace(msgpack.packb([2, 2, 2, 4, 1, 1, 0, 5]), msgpack.packb([2, 1, 2, 5, 1, 1, 0, 5]))
    assert cut != whole
    with pytest.raises(Malformed):
        decode_shard(cut)
