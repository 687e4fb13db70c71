"""Ledger: whose words of which stage were there when it closed, so that nobody's words are learnt from twice.

A backend forgets what it handed out when the process dies; after a restart its peers say again what they said lately,
and rounds that were learnt from already would come in as late ones. The ledger travels in the checkpoint and says what
is old.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from swarmgame.game.state import PeerId


class CollectedLog:
    """Who had spoken, by round and stage.

    Args:
        keep_rounds: how many rounds back a contribution may still be heard.
    """

    def __init__(self, keep_rounds: int) -> None:
        self._keep = keep_rounds
        self._spoken: dict[tuple[int, int], frozenset[PeerId]] = {}

    def note(self, round: int, stage: int, peers: Iterable[PeerId]) -> None:
        """These had spoken in that stage. Forgets what is too old to be heard again."""
        self._spoken[round, stage] = self._spoken.get((round, stage), frozenset()) | frozenset(peers)
        newest = max(when for when, _ in self._spoken)
        self._spoken = {when: peers for when, peers in self._spoken.items() if newest - when[0] <= self._keep}

    @property
    def heard(self) -> frozenset[tuple[int, int, PeerId]]:
        """All of it, as (round, stage, peer)."""
        return frozenset((*when, peer) for when, peers in self._spoken.items() for peer in peers)

    def state_dict(self) -> Mapping[str, Any]:
        return {"spoken": [[*when, sorted(peers)] for when, peers in sorted(self._spoken.items())]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._spoken = {(round, stage): frozenset(peers) for round, stage, peers in state["spoken"]}
