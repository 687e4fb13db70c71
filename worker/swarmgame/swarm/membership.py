"""Membership: who is live, by what each peer last signed; and whom to leave alone for a while.

Pure state, moved by the caller's clock. A peer is live from the first thing it signs until its heartbeat expires or it
says goodbye; peers that a checkpoint knew are live until they have been silent for one lifetime. Invariant: nobody is a
member whom admission refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from swarmgame.game.protocol import Member
from swarmgame.game.state import PeerId
from swarmgame.swarm.messages import Heartbeat

LONGEST = 4.0
"""A heartbeat counts for at most so many lifetimes: those of large swarms last longer."""
MOST_MEMBERS = 4096
"""Heartbeats kept; an open swarm's directory may hold any number of invented peers."""


@dataclass(slots=True)
class _Presence:
    round: int
    stage: int
    until: float
    heartbeat: Heartbeat | None = None
    left: bool = False


class Membership:
    """The live members as one peer sees them.

    Args:
        peer: ourselves; always a member.
        admission: whether a peer may take part.
        lifetime: seconds that one sign of life lasts.
    """

    def __init__(self, peer: PeerId, admission: Callable[[PeerId], bool], lifetime: float) -> None:
        self.peer = peer
        self.round, self.stage = 0, 0
        self.admission = admission
        self.lifetime = lifetime
        self._others: dict[PeerId, _Presence] = {}

    def expect(self, peers: Iterable[PeerId], now: float) -> None:
        """Counts peers as live, unheard, for one lifetime."""
        for peer in peers:
            if peer != self.peer and peer not in self._others and self.admission(peer):
                self._others[peer] = _Presence(0, 0, now + self.lifetime)

    def hear(self, heartbeat: Heartbeat, now: float) -> str:
        """Takes a heartbeat in. Returns what became of it: `accepted`, `duplicate`, `stale` or `not-admitted`."""
        if heartbeat.peer == self.peer:
            return "duplicate"
        known = self._others.get(heartbeat.peer)
        if known and known.heartbeat and heartbeat.expires <= known.heartbeat.expires:
            return "duplicate"
        if heartbeat.expires <= now and not heartbeat.goodbye:
            return "stale"
        if not self.admission(heartbeat.peer):
            return "not-admitted"
        if known is None:
            if len(self._others) >= MOST_MEMBERS:
                self.forget(now)
            if len(self._others) >= MOST_MEMBERS:
                return "not-admitted"
            known = self._others[heartbeat.peer] = _Presence(0, 0, now)
        # A lifetime of their own choosing would let a dead peer stay for ever.
        until = min(heartbeat.expires, now + (LONGEST + 1) * self.lifetime)
        known.heartbeat, known.left = heartbeat, heartbeat.goodbye
        known.until = max(known.until, until)
        known.round, known.stage = max((known.round, known.stage), (heartbeat.round, heartbeat.stage))
        return "accepted"

    def spoke(self, peer: PeerId, round: int, stage: int, now: float) -> None:
        """A peer has just been heard at first hand: as good as a heartbeat."""
        if peer == self.peer or not self.admission(peer):
            return
        known = self._others.setdefault(peer, _Presence(0, 0, now))
        known.until, known.left = max(known.until, now + self.lifetime), False
        known.round, known.stage = max((known.round, known.stage), (round, stage))

    def heartbeat(self, peer: PeerId) -> Heartbeat | None:
        known = self._others.get(peer)
        return known.heartbeat if known else None

    def heard(self, now: float) -> list[PeerId]:
        """Live others that have really been heard, sorted."""
        return sorted(p for p, known in self._others.items() if known.heartbeat is not None and self._live(known, now))

    def others(self, now: float) -> list[PeerId]:
        """Live others, sorted."""
        return sorted(peer for peer, known in self._others.items() if self._live(known, now) and self.admission(peer))

    def members(self, now: float) -> tuple[Member, ...]:
        """Live members, ourselves included, sorted by peer."""
        members = [Member(peer, self._others[peer].round, self._others[peer].stage) for peer in self.others(now)]
        return tuple(sorted([*members, Member(self.peer, self.round, self.stage)], key=lambda member: member.peer))

    def forget(self, now: float) -> None:
        """Drops those gone for more than a lifetime."""
        gone = [peer for peer, known in self._others.items() if known.until + self.lifetime < now]
        for peer in gone:
            del self._others[peer]

    @staticmethod
    def _live(known: _Presence, now: float) -> bool:
        return not known.left and known.until > now


class Backoff:
    """Peers that did not answer, and how long to leave each alone: half a second, doubling, half a minute at most."""

    FIRST, MOST = 0.5, 30.0

    def __init__(self) -> None:
        self._until: dict[PeerId, tuple[float, float]] = {}

    def failed(self, peer: PeerId, now: float) -> None:
        until, pause = self._until.get(peer, (0.0, self.FIRST / 2))
        if now < until:
            # Several calls were under way when it went: one failure.
            return
        pause = min(self.MOST, pause * 2)
        self._until[peer] = (now + pause, pause)

    def answered(self, peer: PeerId) -> None:
        self._until.pop(peer, None)

    def forget(self, now: float) -> None:
        """Drop peers that nothing was asked of since twice the longest pause: they have left, or are begun with anew."""
        self._until = {
            peer: (until, pause) for peer, (until, pause) in self._until.items() if now < until + 2 * self.MOST
        }

    def leave_alone(self, peer: PeerId, now: float) -> bool:
        return now < self._until.get(peer, (0.0, 0.0))[0]
