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
        self._collected: dict[tuple[int, int], frozenset[PeerId]] = {}

    def record(self, round: int, stage: int, peers: Iterable[PeerId]) -> None:
        """These had spoken in that stage. Forgets what is too old to be heard again."""
        self._collected[round, stage] = self._collected.get((round, stage), frozenset()) | frozenset(peers)
        newest = max(when for when, _ in self._collected)
        self._collected = {when: peers for when, peers in self._collected.items() if newest - when[0] <= self._keep}

    @property
    def collected(self) -> frozenset[tuple[int, int, PeerId]]:
        """All of it, as (round, stage, peer)."""
        return frozenset((*when, peer) for when, peers in self._collected.items() for peer in peers)

    def state_dict(self) -> Mapping[str, Any]:
        return {"collected": [[*when, sorted(peers)] for when, peers in sorted(self._collected.items())]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._collected = {(round, stage): frozenset(peers) for round, stage, peers in state["collected"]}
