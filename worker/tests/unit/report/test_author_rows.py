"""Who was used how much, and who was refused why."""

from __future__ import annotations

from swarmgame.observability.author_totals import AuthorTotal
from swarmgame.report.tables import AuthorRow, author_rows


class FakePeer:
    """As much of `PeerProgress` as the table reads."""

    def __init__(self, index: int, peer_id: str, *lines: dict[str, object]) -> None:
        self.index, self.last, self.rounds = index, {"peer": peer_id}, dict(enumerate(lines))


class FakeRun:
    def __init__(self, *peers: FakePeer) -> None:
        self.peers = peers


def test_authors_with_most_refusals_come_first_with_their_influence_and_reasons() -> None:
    lines = (
        {
            "external": {"b": 2, "liar": 1},
            "influence": {"b": 0.25, "liar": 0.1},
            "refused": {"liar": {"implausible": 3}},
        },
        {"external": {"b": 1}, "influence": {"b": 0.5}, "refused": {"liar": {"doubtful-author": 1}, "thief": "no"}},
    )
    run = FakeRun(FakePeer(0, "a", *lines), FakePeer(1, "b", {"external": {"a": 4}}, {"refused": None}))
    assert author_rows(run) == [  # type: ignore[arg-type]
        AuthorRow("", AuthorTotal("liar", 1, 0.1, (("implausible", 3), ("doubtful-author", 1)))),
        AuthorRow("peer 0", AuthorTotal("a", 4)),
        AuthorRow("peer 1", AuthorTotal("b", 3, 0.375)),
        AuthorRow("", AuthorTotal("thief")),
    ]
    assert len(author_rows(run, most=2)) == 2  # type: ignore[arg-type]
