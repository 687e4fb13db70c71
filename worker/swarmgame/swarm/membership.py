"""Membership: which peers are live, by their last signed message; and which did not answer lately (`Backoff`).

Pure state, driven by the caller's clock. A peer is live from its first signed message until its heartbeat expires or
it announces that it leaves. Peers known from a checkpoint count as live for one lifetime without any message. A peer
that admission refuses is never a member.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from swarmgame.game.protocol import Member
from swarmgame.game.state import PeerId
from swarmgame.swarm.messages import Heartbeat

MAX_LIFETIMES = 4.0
"""A heartbeat counts for at most this many lifetimes; heartbeats of large swarms last longer."""
MAX_MEMBERS = 4096
"""Heartbeats kept; the directory of an open swarm may hold any number of invented peers."""


@dataclass(slots=True)
class _PeerState:
    round: int
    stage: int
    until: float
    heartbeat: Heartbeat | None = None
    left: bool = False


class Membership:
    """The live members, as one peer knows them.

    Args:
        peer: ourselves; always a member.
        admission: whether a peer may take part.
        lifetime: seconds for which a message proves that its sender is live.
    """

    def __init__(self, peer: PeerId, admission: Callable[[PeerId], bool], lifetime: float) -> None:
        self.peer = peer
        self.round, self.stage = 0, 0
        self.admission = admission
        self.lifetime = lifetime
        self._others: dict[PeerId, _PeerState] = {}

    def expect(self, peers: Iterable[PeerId], now: float) -> None:
        """Count peers as live for one lifetime, before any message of theirs."""
        for peer in peers:
            if peer != self.peer and peer not in self._others and self.admission(peer):
                self._others[peer] = _PeerState(0, 0, now + self.lifetime)

    def update(self, heartbeat: Heartbeat, now: float) -> str:
        """Apply a heartbeat. Return the outcome: `accepted`, `duplicate`, `stale` or `not-admitted`."""
        if heartbeat.peer == self.peer:
            return "duplicate"
        known = self._others.get(heartbeat.peer)
        if known and known.heartbeat and heartbeat.expires <= known.heartbeat.expires:
            return "duplicate"
        if heartbeat.expires <= now and not heartbeat.leaving:
            return "stale"
        if not self.admission(heartbeat.peer):
            return "not-admitted"
        if known is None:
            if len(self._others) >= MAX_MEMBERS:
                self.forget(now)
            if len(self._others) >= MAX_MEMBERS:
                return "not-admitted"
            known = self._others[heartbeat.peer] = _PeerState(0, 0, now)
        # Bounded: with a lifetime of its own choice a dead peer would stay a member for ever.
        until = min(heartbeat.expires, now + (MAX_LIFETIMES + 1) * self.lifetime)
        known.heartbeat, known.left = heartbeat, heartbeat.leaving
        known.until = max(known.until, until)
        known.round, known.stage = max((known.round, known.stage), (heartbeat.round, heartbeat.stage))
        return "accepted"

    def touch(self, peer: PeerId, round: int, stage: int, now: float) -> None:
        """Count a direct message of a peer like a heartbeat."""
        if peer == self.peer or not self.admission(peer):
            return
        known = self._others.setdefault(peer, _PeerState(0, 0, now))
        known.until, known.left = max(known.until, now + self.lifetime), False
        known.round, known.stage = max((known.round, known.stage), (round, stage))

    def heartbeat(self, peer: PeerId) -> Heartbeat | None:
        known = self._others.get(peer)
        return known.heartbeat if known else None

    def position(self, peer: PeerId) -> tuple[int, int]:
        """Return the last known round and stage of another peer; (0, 0) for an unknown one."""
        known = self._others.get(peer)
        return (known.round, known.stage) if known else (0, 0)

    def confirmed(self, now: float) -> list[PeerId]:
        """Return the other live peers whose heartbeat has been received, sorted."""
        return sorted(p for p, known in self._others.items() if known.heartbeat is not None and self._live(known, now))

    def others(self, now: float) -> list[PeerId]:
        """Return the other live peers, sorted."""
        return sorted(peer for peer, known in self._others.items() if self._live(known, now) and self.admission(peer))

    def members(self, now: float) -> tuple[Member, ...]:
        """Return the live members, ourselves included, sorted by peer."""
        members = [Member(peer, self._others[peer].round, self._others[peer].stage) for peer in self.others(now)]
        return tuple(sorted([*members, Member(self.peer, self.round, self.stage)], key=lambda member: member.peer))

    def forget(self, now: float) -> None:
        """Drop peers that have been gone for more than a lifetime."""
        gone = [peer for peer, known in self._others.items() if known.until + self.lifetime < now]
        for peer in gone:
            del self._others[peer]

    @staticmethod
    def _live(known: _PeerState, now: float) -> bool:
        return not known.left and known.until > now


class Backoff:
    """Peers that did not answer, and the pause before each is called again: half a second, doubling up to 30 s."""

    FIRST_SECONDS, MAX_SECONDS = 0.5, 30.0

    def __init__(self) -> None:
        self._until: dict[PeerId, tuple[float, float]] = {}

    def failed(self, peer: PeerId, now: float) -> None:
        until, pause = self._until.get(peer, (0.0, self.FIRST_SECONDS / 2))
        if now < until:
            # Several calls were in flight when the peer went away: one failure.
            return
        pause = min(self.MAX_SECONDS, pause * 2)
        self._until[peer] = (now + pause, pause)

    def answered(self, peer: PeerId) -> None:
        self._until.pop(peer, None)

    def forget(self, now: float) -> None:
        """Drop peers that have not been called for twice the longest pause."""
        self._until = {
            peer: (until, pause) for peer, (until, pause) in self._until.items() if now < until + 2 * self.MAX_SECONDS
        }

    def is_backing_off(self, peer: PeerId, now: float) -> bool:
        return now < self._until.get(peer, (0.0, 0.0))[0]
