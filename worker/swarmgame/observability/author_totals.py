"""Author totals: how much of each other peer was used over rounds, and what was refused and why.

For `/status`, `swarmgame peers` and the report. Invariant: memory is bounded, whatever authors send.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_AUTHORS = 1024
"""Authors with totals; those of whom nothing came for longest are forgotten first."""


@dataclass(frozen=True)
class AuthorTotal:
    """How the rollouts of one author were used.

    Args:
        groups: of it that were trained on.
        influence: mean share of an update that used any; None where no trainer reports it.
        refused: groups and rollouts that were not used, by outcome, the most frequent first.
    """

    author: str
    groups: int = 0
    influence: float | None = None
    refused: tuple[tuple[str, int], ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {"groups": self.groups, "influence": self.influence, "refused": dict(self.refused)}


@dataclass(slots=True)
class _Sums:
    groups: int = 0
    influence: float = 0.0
    updates: int = 0
    refused: Counter[str] = field(default_factory=Counter)


class AuthorTotals:
    """Totals by author, over the rounds that were added."""

    def __init__(self) -> None:
        self._sums: dict[str, _Sums] = {}

    def add(
        self, external: Mapping[str, int], influence: Mapping[str, float], refused: Mapping[str, Mapping[str, int]]
    ) -> None:
        """Add a round: the fields of its report with these names."""
        for author in sorted({*external, *influence, *refused}):
            sums = self._sums.pop(author, None) or _Sums()
            self._sums[author] = sums  # the last place: forgotten last
            sums.groups += external.get(author, 0)
            sums.refused.update(refused.get(author, {}))
            if author in influence:
                sums.influence += influence[author]
                sums.updates += 1
        while len(self._sums) > MAX_AUTHORS:
            del self._sums[next(iter(self._sums))]

    def rows(self, most: int, always: Iterable[str] = ()) -> list[AuthorTotal]:
        """Return the authors with most refusals first, then those most used.

        Args:
            most: number of authors.
            always: authors that are returned beside these, where there are totals of them.
        """
        rows = [self._total(author, sums) for author, sums in self._sums.items()]
        rows.sort(key=lambda row: (-sum(count for _, count in row.refused), -row.groups, row.author))
        named = frozenset(always)
        return [*rows[:most], *(row for row in rows[most:] if row.author in named)]

    def _total(self, author: str, sums: _Sums) -> AuthorTotal:
        influence = sums.influence / sums.updates if sums.updates else None
        refused = sorted(sums.refused.items(), key=lambda pair: (-pair[1], pair[0]))
        return AuthorTotal(author, sums.groups, influence, tuple(refused))
