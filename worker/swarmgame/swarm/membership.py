"""Membership: which peers are live, by their last signed message; and which did not answer lately (`Backoff`).

Pure state, driven by the caller's clock. A peer is live from its first signed message until its heartbeat expires or
it announces that it leaves. Peers known from a checkpoint are live for one lifetime without any message. A peer that
admission refuses is never a member. Being live gives no weight: `counted_peers` decides which members count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from swarmgame.game.protocol import Member
from swarmgame.game.state import PeerId
from swarmgame.seeds import derive_seed
from swarmgame.swarm.counted_peers import COUNTING, CountedPeers, CountingRules, Standing
from swarmgame.swarm.messages import Heartbeat

MAX_LIFETIMES = 4.0
"""A heartbeat counts for at most this many lifetimes; heartbeats of large swarms last longer."""
MAX_MEMBERS = 4096
"""Peers kept; the directory of an open swarm may hold any number of invented ones."""


@dataclass(slots=True)
class _PeerState:
    round: int
    stage: int
    until: float
    heartbeat: Heartbeat | None = None
    left: bool = False
    contributed: int = -1


class Membership:
    """The live members, as one peer knows them.

    Args:
        peer: ourselves; always a member.
        admission: whether a peer may take part.
        lifetime: seconds for which a message proves that its sender is live.
        rules: which peers count.
        max_rounds: of the game: the largest position that is believed; 0: any is.
    """

    def __init__(
        self,
        peer: PeerId,
        admission: Callable[[PeerId], bool],
        lifetime: float,
        rules: CountingRules | None = None,
        max_rounds: int = 0,
    ) -> None:
        self.peer = peer
        self.round, self.stage = 0, 0
        self.admission = admission
        self.lifetime = lifetime
        self.max_rounds = max_rounds
        self.counted = CountedPeers(rules or CountingRules())
        self._others: dict[PeerId, _PeerState] = {}
        self._awake = 0.0
        self._weighed: tuple[CountedPeers, int, list[PeerId], Mapping[PeerId, float]] = (self.counted, -1, [], {})

    def awake(self, now: float, longest: float) -> None:
        """Note that this process runs. Where it has not for a while, because it was stopped or the machine slept, no
        other peer expires by that: it may have slept too, and could not be heard.

        Args:
            longest: seconds between two calls at most, while the process runs.
        """
        pause = now - self._awake
        if self._awake and pause > longest:
            longest_life = now + (MAX_LIFETIMES + 1) * self.lifetime  # of one that was heard again before this call
            for known in self._others.values():
                known.until = max(known.until, min(known.until + pause, longest_life))
        self._awake = now

    def expect(self, peers: Iterable[PeerId], now: float) -> None:
        """Count peers as live for one lifetime, before any message of theirs."""
        for peer in peers:
            if peer != self.peer and peer not in self._others and self.admission(peer):
                self._others[peer] = _PeerState(0, 0, now + self.lifetime)

    def update(self, heartbeat: Heartbeat, now: float, *, sender_now: float | None = None, direct: bool = False) -> str:
        """Apply a heartbeat. Return the outcome: `accepted`, `duplicate`, `stale` or `not-admitted`.

        Args:
            sender_now: the time by the clock that signed it; None: by ours.
            direct: its author has just sent it, and so is live whatever the clocks show.
        """
        if heartbeat.peer == self.peer:
            return "duplicate"
        known = self._others.get(heartbeat.peer)
        if known and known.heartbeat and heartbeat.expires <= known.heartbeat.expires:
            if direct and not known.left:
                known.until = max(known.until, now + self.lifetime)
                # One that is newer may expire sooner: those of a large swarm live longer.
                position = self._position(heartbeat.round, heartbeat.stage)
                known.round, known.stage = max((known.round, known.stage), position)
            return "duplicate"
        expires = heartbeat.expires + (0.0 if sender_now is None else now - sender_now)
        if direct and not heartbeat.leaving:
            expires = max(expires, now + self.lifetime)
        if expires <= now and not heartbeat.leaving:
            return "stale"
        if not self.admission(heartbeat.peer):
            return "not-admitted"
        known = self._state(heartbeat.peer, now)
        if known is None:
            return "not-admitted"
        # Bounded: with a lifetime of its own choice a dead peer would stay a member for ever.
        until = min(expires, now + (MAX_LIFETIMES + 1) * self.lifetime)
        known.heartbeat, known.left = heartbeat, heartbeat.leaving
        known.until = max(known.until, until)
        known.round, known.stage = max((known.round, known.stage), self._position(heartbeat.round, heartbeat.stage))
        return "accepted"

    def touch(self, peer: PeerId, round: int, stage: int, now: float) -> None:
        """Count a direct message of a peer like a heartbeat."""
        if peer == self.peer or not self.admission(peer):
            return
        known = self._state(peer, now)
        if known is not None:
            known.until, known.left = max(known.until, now + self.lifetime), False
            known.round, known.stage = max((known.round, known.stage), self._position(round, stage))

    def answered(self, peer: PeerId, now: float) -> None:
        """Note that a peer has answered a call, and so is live: heartbeats pass through nodes that anyone may run."""
        known = self._others.get(peer)
        if known is not None and not known.left:
            known.until = max(known.until, now + self.lifetime)

    def contributed(self, peer: PeerId, round: int) -> None:
        """Note that a peer has announced its contributions to all stages up to this round."""
        known = self._others.get(peer)
        if known is not None:
            known.contributed = max(known.contributed, self._position(round, 0)[0])

    def is_beyond(self, round: int) -> bool:
        """Whether a peer claims to be further than the game is long."""
        return bool(self.max_rounds) and round > self.max_rounds

    def _position(self, round: int, stage: int) -> tuple[int, int]:
        return (self.max_rounds, 0) if self.is_beyond(round) else (round, stage)

    def _state(self, peer: PeerId, now: float) -> _PeerState | None:
        """Return the state of a peer, a new one where there is none; None where no other peer can make room."""
        known = self._others.get(peer)
        if known is None:
            if len(self._others) >= MAX_MEMBERS:
                self.forget(now)
            if len(self._others) >= MAX_MEMBERS and not self._make_room():
                return None
            known = self._others[peer] = _PeerState(0, 0, now)
        return known

    def _make_room(self) -> bool:
        """Drop the peer that is known for longest without having contributed anything; or, where all have, the one that
        does not count and has delivered least and longest ago.
        """
        counted = self.counted
        others = {peer: known for peer, known in self._others.items() if not counted.rules.is_anchor(peer)}
        least = next((peer for peer, known in others.items() if known.contributed < 0), None)
        if least is None:
            least = min(
                (peer for peer in others if counted.standing(peer) not in COUNTING),
                key=lambda peer: (counted.streak(peer), others[peer].contributed),
                default=None,
            )
        if least is None:
            return False
        del self._others[least]
        return True

    def remove(self, peer: PeerId) -> None:
        """Drop a peer that is no member after all."""
        self._others.pop(peer, None)

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

    def weights(self, now: float) -> Mapping[PeerId, float]:
        """Return the weights of the other live peers that count, sorted by peer. Our own is 1."""
        live = self.others(now)
        # A stage asks for them at every message. Before its first one ends, a peer may count once it is connected.
        counted, round, then, weights = self._weighed
        if not self.counted.started or counted is not self.counted or (round, then) != (self.round, live):
            self.counted = self.counted.observe(live, self.round)
            weights = self.counted.weights(live)
            self._weighed = self.counted, self.round, live, weights
        return weights

    def standings(self, now: float) -> dict[PeerId, Standing]:
        """Return the standing of the other live peers."""
        return {peer: self.counted.standing(peer) for peer in self.others(now)}

    def missed_anchors(self, now: float) -> list[PeerId]:
        """Return the live anchors that do not count since they missed a deadline."""
        standings = self.standings(now).items()
        return [peer for peer, each in standings if each is Standing.MISSED and self.counted.rules.is_anchor(peer)]

    def newcomers(self, now: float) -> list[PeerId]:
        """Return the live peers that do not count, those that have begun to deliver first. Those for which there is no
        room at their address come last.
        """
        weights = self.weights(now)
        waiting = [peer for peer in self.others(now) if peer not in weights]

        def place(peer: PeerId) -> tuple[bool, int, int, int]:
            # A late peer that delivers has no worse place than one in time that only announces.
            contributed = min(self._others[peer].contributed, self.round - 1)
            crowded = self.counted.standing(peer) is Standing.SAME_ADDRESS
            return crowded, -self.counted.streak(peer), -contributed, derive_seed("newcomers", self.round, peer)

        return sorted(waiting, key=place)

    def first_counted(self, peers: Iterable[PeerId], now: float) -> list[PeerId]:
        """Return peers in their order, those that count first."""
        weights = self.weights(now)
        return sorted(peers, key=lambda peer: peer not in weights)

    def members(self, now: float) -> tuple[Member, ...]:
        """Return the live members, ourselves included, sorted by peer."""
        weights = self.weights(now)
        members = [Member(self.peer, self.round, self.stage)]
        for peer in self.others(now):
            known = self._others[peer]
            # An anchor that missed is not waited for, but where it is still says where the others are: we may be slow.
            weight = 1.0 if self.counted.rules.is_anchor(peer) else weights.get(peer, 0.0)
            # Before the first stage nothing was received yet, and positions are all that is known.
            contributed = known.contributed if self.counted.started else None
            members.append(Member(peer, known.round, known.stage, weight, contributed))
        return tuple(sorted(members, key=lambda member: member.peer))

    def unproven(self, now: float, lag: int) -> dict[PeerId, int]:
        """Return counted peers that say they are more than `lag` rounds ahead, and the round of which they should have
        an announcement that we lack.
        """
        return {
            peer: self._others[peer].round - 1
            for peer in self.weights(now)
            if self._others[peer].round > max(self.round, self._others[peer].contributed + 1) + lag
        }

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
        if len(self._until) > 2 * MAX_MEMBERS:
            del self._until[next(iter(self._until))]

    def answered(self, peer: PeerId) -> None:
        self._until.pop(peer, None)

    def forget(self, now: float) -> None:
        """Drop peers that have not been called for twice the longest pause."""
        self._until = {
            peer: (until, pause) for peer, (until, pause) in self._until.items() if now < until + 2 * self.MAX_SECONDS
        }

    def is_backing_off(self, peer: PeerId, now: float) -> bool:
        return now < self._until.get(peer, (0.0, 0.0))[0]
