"""Episodes of a peer with several ranks: rank 0 plays what all of them must agree on.

A play may end because time ran out, which another process need not see. What decides prompts and which groups pass is
therefore played once, and sent to the other ranks; each rank's own rollouts are played by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgpack

from swarmgame.game.environment import Episodes, Play, Step
from swarmgame.game.ranks import Ranks
from swarmgame.game.state import PeerId, Question
from swarmgame.user_code import CodeError


class RankedEpisodes(Episodes):
    """Episodes for loop and data, whose plays are collective calls: every rank makes them with the same arguments.

    Args:
        inner: of this rank.
    """

    def __init__(self, inner: Episodes, ranks: Ranks) -> None:
        super().__init__(
            max_turns=inner.max_turns, max_observation_tokens=inner.max_observation_tokens, role=inner.role
        )
        self.inner = inner
        self._ranks = ranks

    def begin(self, questions: Iterable[Question]) -> None:
        super().begin(questions)
        self.inner.begin(self.questions.values())

    def begin_round(self, number: int) -> None:
        self.inner.begin_round(number)

    def play(
        self, plays: Sequence[tuple[Question, Sequence[str]]], *, author: PeerId = "", waiting: int = 1
    ) -> Sequence[Play]:
        packed = None
        if self._ranks.rank == 0:
            played = self.inner.play(plays, author=author, waiting=waiting)
            packed = msgpack.packb(list(map(_plain, played)), unicode_errors="replace")
        return [_play(each) for each in msgpack.unpackb(self._ranks.broadcast(packed))]

    def take_seconds(self) -> float:
        return self.inner.take_seconds()

    def counters(self) -> Mapping[str, int]:
        return self.inner.counters()

    def close(self) -> None:
        self.inner.close()


def shared_episodes(inner: Episodes, ranks: Ranks) -> Episodes:
    """Return what loop and data play with."""
    return inner if ranks.size == 1 else RankedEpisodes(inner, ranks)


def _plain(play: Play) -> list[Any]:
    failure = play.failure
    error = None if failure is None else [failure.kind, failure.message, failure.where, failure.trace]
    return [[list(step) for step in play.steps], play.first, error, play.is_known]


def _play(plain: Sequence[Any]) -> Play:
    steps, first, error, is_known = plain
    return Play(tuple(Step(*step) for step in steps), first, None if error is None else CodeError(*error), is_known)
