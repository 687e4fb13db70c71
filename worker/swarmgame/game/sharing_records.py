"""Sharing records: what a peer remembers of other peers' groups from round to round, as one part of its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swarmgame.game.author_records import AuthorRecords
from swarmgame.game.copies import SeenRollouts
from swarmgame.game.drift_watch import DriftWatch


class SharingRecords:
    """The rollouts that were seen, the authors' records, and the drift watch.

    Args:
        keep_rounds: number of past rounds from which a contribution may still arrive.
    """

    def __init__(self, keep_rounds: int) -> None:
        self.seen = SeenRollouts(keep_rounds)
        self.authors = AuthorRecords()
        self.drift = DriftWatch()

    def state_dict(self) -> Mapping[str, Any]:
        return {**self.seen.state_dict(), **self.authors.state_dict(), "drift": self.drift.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back a state; an empty one, of a checkpoint of an earlier release, leaves everything empty."""
        if state:
            self.seen.load_state_dict(state)
            self.authors.load_state_dict(state)
            self.drift.load_state_dict(state["drift"])
