"""The column of segments in a shard: tokens and bytes of text of every segment, of rollouts that have several.

It is absent where every rollout is one segment, so a swarm without environments sends the same bytes as without this
column. The ids, log-probabilities and texts stay in their own columns, segment after segment; log-probabilities are of
the policy's segments only, which are the first, the third and so on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from swarmgame.game.state import Rollout, Segment


def text_of(rollout: Rollout) -> bytes:
    """Return what a rollout has in the column of texts."""
    texts = [segment.text for segment in rollout.segments] if rollout.segments else [rollout.text]
    return "".join(texts).encode(errors="replace")


def column_of(rollouts: Sequence[Rollout]) -> list[list[int]] | None:
    """Return the column, one list a rollout: tokens and bytes of its segments by turns, empty for a single segment.
    None where it is absent.
    """
    if not any(rollout.segments for rollout in rollouts):
        return None
    return [
        [size for segment in rollout.segments for size in (segment.tokens, len(segment.text.encode(errors="replace")))]
        for rollout in rollouts
    ]


class SegmentColumn:
    """A checked column of another peer.

    Args:
        found: from the header; None where it is absent.
        lengths: ids of each rollout.
        texts: bytes of text of each rollout.
        most: segments of a rollout.

    Raises:
        ValueError: it does not agree with the other columns.
    """

    def __init__(self, found: Any, lengths: Sequence[int], texts: Sequence[int], *, most: int) -> None:
        self._lengths = lengths
        self._rows: list[list[int]] | None = None
        if found is None:
            return
        if not isinstance(found, list) or len(found) != len(lengths):
            raise ValueError("segments of another number of rollouts")
        for row, length, text in zip(found, lengths, texts, strict=True):
            if not isinstance(row, list) or len(row) % 2 or len(row) > 2 * most or len(row) == 2:
                raise ValueError("expected the tokens and bytes of several segments")
            if not row:
                continue
            if set(map(type, row)) != {int} or min(row) < 0:
                raise ValueError("expected counts of tokens and bytes")
            if sum(row[::2]) != length or sum(row[1::2]) != text:
                raise ValueError("segments and their rollout do not agree")
        self._rows = found

    def sampled(self) -> list[int]:
        """Return how many ids of each rollout are the policy's."""
        if self._rows is None:
            return list(self._lengths)
        return [sum(row[::4]) if row else length for row, length in zip(self._rows, self._lengths, strict=True)]

    def split(self, rollout: int, text: bytes) -> tuple[str, tuple[Segment, ...]]:
        """Return the text and the segments of a rollout, given its bytes of the column of texts.

        Raises:
            ValueError: a text is not UTF-8.
        """
        row = self._rows[rollout] if self._rows is not None else []
        if not row:
            return text.decode(), ()
        segments, at = [], 0
        for tokens, size in zip(row[::2], row[1::2], strict=True):
            segments.append(Segment(tokens, text[at : at + size].decode()))
            at += size
        return segments[(len(segments) - 1) // 2 * 2].text, tuple(segments)
