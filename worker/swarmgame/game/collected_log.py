"""CollectedLog: which contributions were collected, by round and stage, so that none is trained on twice.

A backend forgets what it returned when the process dies. After a restart the other peers publish their recent
contributions again, and without this log they would count as late ones. The log also has the contributions with groups
that could not be used: their authors have not delivered. It is part of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from swarmgame.game.state import PeerId


class CollectedLog:
    """The peers whose contributions were collected, by round and stage.

    Args:
        keep_rounds: number of past rounds from which a contribution may still arrive.
    """

    def __init__(self, keep_rounds: int) -> None:
        self._keep = keep_rounds
        self._collected: dict[tuple[int, int], frozenset[PeerId]] = {}
        self._invalid: frozenset[tuple[int, int, PeerId]] = frozenset()

    def record(self, round: int, stage: int, peers: Iterable[PeerId]) -> None:
        """Add the peers whose contributions to that stage were collected, and drop entries older than `keep_rounds`."""
        self._collected[round, stage] = self._collected.get((round, stage), frozenset()) | frozenset(peers)
        newest = max(when for when, _ in self._collected)
        self._collected = {when: peers for when, peers in self._collected.items() if newest - when[0] <= self._keep}

    @property
    def collected(self) -> frozenset[tuple[int, int, PeerId]]:
        """All entries, as (round, stage, peer)."""
        return frozenset((*when, peer) for when, peers in self._collected.items() for peer in peers)

    def record_invalid(self, round: int, invalid: Iterable[tuple[int, int, PeerId]]) -> None:
        """Add contributions with groups that could not be used, as (round, stage, peer), and drop those that are too
        old to matter in `round`.
        """
        oldest = round - 1 - self._keep
        self._invalid = frozenset(each for each in self._invalid.union(invalid) if each[0] >= oldest)

    @property
    def invalid(self) -> frozenset[tuple[int, int, PeerId]]:
        """The contributions with groups that could not be used."""
        return self._invalid

    def state_dict(self) -> Mapping[str, Any]:
        return {
            "collected": [[*when, sorted(peers)] for when, peers in sorted(self._collected.items())],
            "invalid": sorted(map(list, self._invalid)),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._collected = {(round, stage): frozenset(peers) for round, stage, peers in state["collected"]}
        self._invalid = frozenset((round, stage, peer) for round, stage, peer in state.get("invalid", ()))
