"""Ranks of a peer agree on what an environment plays, also where only one of them ran out of time."""

from __future__ import annotations

from collections.abc import Sequence

from guessing_games import LocalEpisodes

from swarmgame import Question, QuestionRef
from swarmgame.game.environment import Episodes, Play, Step
from swarmgame.game.ranks import OneRank
from swarmgame.game.state import PeerId
from swarmgame.runtime.ranked_episodes import RankedEpisodes, shared_episodes
from swarmgame.user_code import CodeError

QUESTION = Question(QuestionRef("numbers", "v1", 1, 2), "which?", "2")


class Rank(OneRank):
    """One of two ranks; rank 0's broadcasts are kept for rank 1."""

    size = 2
    sent: list[bytes]

    def __init__(self, rank: int, sent: list[bytes]) -> None:
        self.rank = rank
        self.sent = sent

    def broadcast(self, payload: bytes | None) -> bytes:
        assert (payload is None) == (self.rank == 1)
        if payload is not None:
            self.sent.append(payload)
        return self.sent[-1]


class Slow(LocalEpisodes):
    """Has no time."""

    def play(
        self, plays: Sequence[tuple[Question, Sequence[str]]], *, author: PeerId = "", waiting: int = 1
    ) -> Sequence[Play]:
        return [Play(failure=CodeError("timeout", "no answer", "", ""), is_known=False) for _ in plays]


def both(first: Episodes, second: Episodes) -> list[list[Play]]:
    sent: list[bytes] = []
    plays = [(QUESTION, ["0", "2"]), (QUESTION, [])]
    return [
        list(RankedEpisodes(inner, Rank(rank, sent)).play(plays, author="other"))
        for rank, inner in enumerate((first, second))
    ]


def test_the_plays_of_rank_0_count_on_all_ranks() -> None:
    first, second = both(LocalEpisodes(), Slow())
    assert first == second
    assert first[0].steps == (Step("larger"), Step("Right.", 0.9, True))
    first, second = both(Slow(), LocalEpisodes())
    assert first == second
    assert first[0].failure == CodeError("timeout", "no answer", "", "")
    assert not first[0].is_known


def test_questions_reach_the_episodes_of_the_rank_and_one_rank_needs_no_sharing() -> None:
    inner = LocalEpisodes()
    RankedEpisodes(inner, Rank(1, [])).begin([QUESTION])
    assert inner.questions == {QUESTION.id: QUESTION}
    assert shared_episodes(inner, OneRank()) is inner
