"""The clocks of other peers: how far each is ahead of ours, by the times that the peer itself signs.

An announcement expires a fixed time after it was signed, and a heartbeat at least one lifetime after. Only messages
that come from their author are compared: those that were passed on may be old. Pure; the caller has the clock.

Invariant: what a peer says of its time is applied to that peer's own messages alone. The error of our clock, on which
more than half of the counted weight must agree, is shown and corrects nothing. So a peer that lies changes at most when
its own heartbeats expire.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping

from swarmgame.game.protocol import ClockError
from swarmgame.game.state import PeerId

SAMPLES = 5
"""Announcements of a peer that are compared; the one that travelled fastest counts."""
_NEEDED = 3
_MAX_PEERS = 4096


class PeerClocks:
    """What is known of other peers' clocks. Seconds are positive where theirs is ahead of ours."""

    def __init__(self) -> None:
        self._announced: dict[PeerId, deque[float]] = {}
        self._greeted: dict[PeerId, float] = {}

    def announced(self, peer: PeerId, signed: float, now: float) -> None:
        """Note when, by its own clock, a peer signed an announcement that it has just sent us."""
        if peer in self._announced or len(self._announced) < _MAX_PEERS:
            self._announced.setdefault(peer, deque(maxlen=SAMPLES)).append(signed - now)

    def greeted(self, peer: PeerId, latest: float, now: float) -> None:
        """Note the latest time that a peer's clock can show, by a heartbeat that it has just sent us."""
        if peer in self._greeted or len(self._greeted) < _MAX_PEERS:
            self._greeted[peer] = latest - now

    def now_of(self, peer: PeerId, now: float) -> float:
        """Return the time by a peer's clock: by its announcements, or else, where a heartbeat shows that it is behind
        ours, the latest time that it can be.
        """
        announced = self._announced.get(peer)
        return now + (max(announced) if announced else min(0.0, self._greeted.get(peer, 0.0)))

    def error(self, weights: Mapping[PeerId, float]) -> ClockError | None:
        """Return how far our clock is ahead of the others'; None where no clock is known.

        Args:
            weights: of the other peers that count. A clock that is not known counts as ours.
        """
        known = {
            peer: max(found)
            for peer in weights
            if (found := self._announced.get(peer)) is not None and len(found) >= _NEEDED
        }
        if not known:
            return None
        half = sum(weights.values()) / 2
        return ClockError(-_common(sorted((known[peer], weights[peer]) for peer in known), half), len(known))

    def forget(self, live: Collection[PeerId]) -> None:
        """Drop what is known of peers that are gone."""
        self._announced = {peer: found for peer, found in self._announced.items() if peer in live}
        self._greeted = {peer: found for peer, found in self._greeted.items() if peer in live}


def _common(ordered: list[tuple[float, float]], half: float) -> float:
    """Return the number nearest to 0 that more than half of the weight reaches or exceeds; 0 without one.

    Args:
        ordered: numbers and weights, ascending.
    """
    for sign in (1, -1):
        reached = 0.0
        for value, weight in ordered[::-sign]:
            if sign * value <= 0:
                break
            reached += weight
            if reached > half:
                return value
    return 0.0
