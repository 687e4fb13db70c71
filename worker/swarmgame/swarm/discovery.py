"""Discovery: our heartbeats, those of other peers, and the calls that show which peers answer.

Heartbeats are stored in the transport's directory. A new peer also sends its heartbeat (a hello) to every peer that it
learns of, and each answers with the heartbeats that it knows, so that peers find each other without waiting for the
directory. Nothing that a remote peer sends raises here; it is used, or counted under the reason why it was not. The
heartbeat of a hello must be its sender's own: identities are free, connections are not.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import msgpack

from swarmgame.errors import Refused, Temporary
from swarmgame.game.protocol import ClockError
from swarmgame.game.state import PeerId
from swarmgame.swarm.clock import Clock
from swarmgame.swarm.counted_peers import COUNTING, CountingRules
from swarmgame.swarm.key_watch import KeyWatch
from swarmgame.swarm.membership import MAX_LIFETIMES, Backoff, Membership
from swarmgame.swarm.messages import Heartbeat, Rejected, Sign, Verify, make_heartbeat, parse_heartbeat
from swarmgame.swarm.peer_clocks import PeerClocks
from swarmgame.swarm.same_game import SameGame
from swarmgame.swarm.settings import SwarmSettings
from swarmgame.swarm.transport import Oversized, Transport, Unreachable, Unreadable

logger = logging.getLogger(__name__)

HELLO = b"H"
PEER_LIST = 128
"""Most heartbeats in the answer to a hello; so many always fit a small message."""
LIST_SECONDS = 1.0
"""An answer that names some of many members may be so old: to choose them takes milliseconds."""
_MAX_HELLOS = 32
_MAX_KNOWN = 4096
_LEAVE_SECONDS = 1.0
_LARGE, _VERY_LARGE = 6, 24
_THOROUGH = 4
"""Every so many heartbeats all copies of the directory are read, not only the nearest."""


class Discovery:
    """One peer's view of the members.

    Args:
        outcomes: where faults are counted.
        changed: set whenever membership may have changed.
    """

    def __init__(
        self,
        run: str,
        peer: PeerId,
        sign: Sign,
        verify: Verify,
        transport: Transport,
        clock: Clock,
        settings: SwarmSettings,
        outcomes: Counter[str],
        changed: asyncio.Event,
    ) -> None:
        self.run, self.peer = run, peer
        self.sign, self.verify = sign, verify
        self.transport, self.clock, self.settings = transport, clock, settings
        self.outcomes, self.changed = outcomes, changed
        self.lifetime = settings.heartbeat_seconds * settings.lifetimes
        rules = CountingRules(
            settings.anchors, settings.probation_rounds, settings.counted_per_address, transport.remote_address
        )
        self.members = Membership(peer, settings.admission, self.lifetime, rules, settings.max_rounds)
        self.backoff = Backoff()
        self.clocks = PeerClocks()
        self.games = SameGame(run, settings.sources)
        self.key_watch = KeyWatch(secrets.token_bytes(8), settings.heartbeat_seconds / 2)
        self._joining = True
        self._reached: set[PeerId] = set()
        self._known: dict[bytes, Heartbeat] = {}
        self._expired: dict[PeerId, Heartbeat] = {}
        self._random = random.Random(peer)
        self._slowdown = 1.0
        self._packed_list = 0.0, b""

    # ── joining and leaving
    async def join(self, expect: Sequence[PeerId], min_replicas: int, timeout_seconds: float) -> None:
        """Wait until heartbeats of `min_replicas` members, ourselves included, have been received, or the time is over.

        Raises:
            Temporary: more than one is needed and no peer answered at all, or another process has our key.
            Refused: all members play another game.
        """
        deadline = self.clock.now() + timeout_seconds
        self.members.expect(expect, self.clock.now())
        reached: set[PeerId] = set()
        contacted: set[PeerId] = set()
        pause = 0.1
        await self.advertise()
        while True:
            if not reached:
                reached.update(await self.transport.connect_initial_peers())
            await self.discover(thorough=True)
            known = {*reached, *self.members.others(self.clock.now()), *self.games.peers(self.clock.now())}
            if not self._enough(self.members.confirmed(self.clock.now()), min_replicas):
                # Expired by our clock, which may be wrong: a peer that answers is live.
                known |= self._expired.keys()
            unknown = known - contacted - {self.peer}
            first = sorted(unknown, key=lambda peer: self._order_of_hellos(peer, peer in reached))[:_MAX_HELLOS]
            answered = await asyncio.gather(*(self.hello(peer) for peer in first))
            contacted.update(peer for peer in answered if peer is not None)
            confirmed = self.members.confirmed(self.clock.now())
            # Peers that a hello has just named are sent one too.
            settled = len(contacted) >= _MAX_HELLOS or not set(confirmed) - contacted - unknown
            now = self.clock.now()
            if self.key_watch.must_end:
                raise Temporary(self.key_watch.must_end)
            # Of another game, and alive: the last heartbeats of processes that have ended are found, too. A member of
            # our game may answer a moment later.
            others = self.games.first_seen(contacted) if not confirmed else None
            if others is not None and now >= min(deadline, others + self.settings.heartbeat_seconds):
                raise Refused(self.games.refusal(contacted))
            if self._enough(confirmed, min_replicas) and settled and others is None:
                break
            if now >= deadline:
                self._check_found(min_replicas, timeout_seconds, len(confirmed), bool(reached))
                break
            self.changed.clear()
            await self.clock.wait(self.changed, min(pause, deadline - self.clock.now()))
            pause = min(2.0, pause * 1.5)
        self._joining = False
        self._expired.clear()

    def _order_of_hellos(self, peer: PeerId, reached: bool) -> tuple[bool, bool, bool, PeerId]:
        """Return the place of a peer among those that get a hello: dead ones must not take the places of live ones."""
        is_dead = self.backoff.is_backing_off(peer, self.clock.now())
        return not self.members.counted.rules.is_anchor(peer), not reached, is_dead, peer

    def _enough(self, confirmed: Sequence[PeerId], min_replicas: int) -> bool:
        """Whether so many members are there; anchors, where there are as many: any other peer may be invented."""
        anchors = self.settings.anchors
        if anchors is not None and len(anchors - {self.peer}) + 1 >= min_replicas:
            confirmed = [peer for peer in confirmed if peer in anchors]
        return len(confirmed) + 1 >= min_replicas

    def _check_found(self, min_replicas: int, seconds: float, confirmed: int, reached: bool) -> None:
        """Raise `Temporary` where nothing answered, and warn where too few members did."""
        if min_replicas <= confirmed + 1:
            return
        if confirmed:
            logger.warning("%d of %d peers found in %g s: the others join later", confirmed + 1, min_replicas, seconds)
            return
        if not reached:
            raise Temporary(f"no peer of run {self.run!r} answered within {seconds:g} s; is an initial peer running?")
        logger.warning(
            "an initial peer answers, but no member of run %r was found within %g s: peers of another metadata.name or "
            "game.seed do not see each other",
            self.run,
            seconds,
        )

    async def run_heartbeats(self) -> None:
        """Send heartbeats and read those of others, until cancelled."""
        never = asyncio.Event()
        pause = self._slowdown
        pinging: asyncio.Future[None] = asyncio.ensure_future(asyncio.sleep(0))
        for beats in count(1):
            await self.clock.wait(never, self.settings.heartbeat_seconds * pause * self._random.uniform(0.9, 1.1))
            self.awake()
            if pinging.done():  # in the background: a dead address must not delay our heartbeats
                confirmed = self.members.confirmed(self.clock.now())
                pinging = asyncio.ensure_future(self.transport.ping_initial_peer(confirmed))
            # Slow down one heartbeat later than the heartbeats announce: other peers may not have slowed down yet.
            pause, self._slowdown = self._slowdown, min(self._target_slowdown(), 2 * self._slowdown)
            await self.advertise()
            self.awake()
            await self.discover(thorough=beats % _THOROUGH == 0)
            now = self.clock.now()
            self.forget(now)
            if not self.members.confirmed(now):
                for peer in await self.transport.connect_initial_peers():
                    await self.hello(peer)

    def awake(self) -> None:
        """Note that this process runs; called several times a heartbeat, and while a stage waits."""
        self.members.awake(self.clock.now(), 2.5 * self.settings.heartbeat_seconds * self._slowdown)

    def forget(self, now: float) -> None:
        """Drop what is known of members that are gone, and expired heartbeats, so that memory does not grow."""
        self.members.forget(now)
        self.games.forget(now)
        self.backoff.forget(now)
        live = frozenset(self.members.others(now))
        self._reached.intersection_update(live)
        self.clocks.forget(live)
        self._known = {
            message: heartbeat
            for message, heartbeat in self._known.items()
            if heartbeat.expires > self.clocks.now_of(heartbeat.peer, now)
        }

    async def leave(self) -> None:
        """Announce that we leave, to as many peers as time allows; not where another process goes on with our key."""
        if self.key_watch.must_end:
            return
        last = self.heartbeat(leaving=True)
        calls = [self.call(peer, HELLO + last.message) for peer in self.receivers()]
        tasks = [asyncio.ensure_future(task) for task in (*calls, self.transport.advertise(last.message, last.expires))]
        await asyncio.wait(tasks, timeout=_LEAVE_SECONDS)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def receivers(self) -> Sequence[PeerId]:
        """Return the members to tell something at once: all of a small swarm, else some, those that count first."""
        live = self.members.others(self.clock.now())
        return self.members.first_counted(self._random.sample(live, len(live)), self.clock.now())[:_MAX_HELLOS]

    # ── heartbeats
    def heartbeat(self, *, leaving: bool = False) -> Heartbeat:
        """Return our heartbeat, signed now."""
        # The last heartbeat outlives the ones before it: a directory keeps the one that expires last.
        expires = self.clock.now() + self.lifetime * self._slowdown
        expires += self.settings.heartbeat_seconds if leaving else 0.0
        position = self.members.round, self.members.stage
        return make_heartbeat(
            self.run,
            self.peer,
            *position,
            expires,
            self.sign,
            addresses=self.transport.addresses(),
            leaving=leaving,
            process=self.key_watch.process,
            sources=self.settings.sources,
        )

    def peer_list(self) -> bytes:
        """Return our heartbeat and those of the live members that we know: the answer to a hello."""
        now = self.clock.now()
        made, recent = self._packed_list
        if recent and made <= now < made + LIST_SECONDS:
            return recent
        confirmed = self.members.first_counted(self.members.confirmed(now), now)
        known = [self.members.heartbeat(peer) for peer in confirmed]
        beats = [self.heartbeat().message, *(heartbeat.message for heartbeat in known[: PEER_LIST - 1] if heartbeat)]
        packed: bytes = msgpack.packb(beats)
        if len(confirmed) > PEER_LIST:
            self._packed_list = now, packed
        return packed

    async def advertise(self) -> None:
        heartbeat = self.heartbeat()
        await self.transport.advertise(heartbeat.message, heartbeat.expires)

    async def discover(self, *, thorough: bool) -> None:
        for message in await self.transport.discover(thorough=thorough):
            self.on_heartbeat(message)

    def clock_error(self) -> ClockError | None:
        """Return how far this machine's clock is from those of the members that count; None where none is known."""
        found = self.clocks.error(self.members.weights(self.clock.now()))
        return found and replace(found, seconds=found.seconds + self.clock.set_since())

    def _target_slowdown(self) -> float:
        """Large swarms send fewer, longer-lived heartbeats: every heartbeat is read by every peer."""
        others = len(self.members.weights(self.clock.now()))
        return 1.0 if others < _LARGE else 2.0 if others < _VERY_LARGE else MAX_LIFETIMES

    async def hello(self, peer: PeerId, message: bytes = b"") -> PeerId | None:
        """Send our heartbeat, or one that is signed already, to a peer, and read the ones that it answers with. Return
        the peer if it answered.
        """
        answer = await self.call(peer, HELLO + (message or self.heartbeat().message))
        if answer is None:
            return None
        try:
            heartbeats = msgpack.unpackb(answer, max_map_len=0, max_ext_len=0, max_array_len=PEER_LIST)
        except (ValueError, TypeError, RecursionError, OverflowError, msgpack.UnpackException):
            heartbeats = None
        if isinstance(heartbeats, list):
            for message in heartbeats:
                self.on_heartbeat(message, carrier=peer)
        else:
            self.outcomes["malformed"] += 1
        return peer

    def on_hello(self, message: bytes, sender: PeerId) -> bytes:
        """Process a hello. Return the heartbeats that we know, or nothing where it holds another peer's heartbeat."""
        if not self.on_heartbeat(message, sender, carrier=sender):
            return b""
        return self.peer_list()

    def on_heartbeat(self, message: Any, sender: PeerId | None = None, *, carrier: PeerId | None = None) -> bool:
        """Process a heartbeat, whichever way it came. Return False if it is not the sender's own.

        Args:
            sender: of a hello.
            carrier: the peer that has just sent it, its own or another one's.
        """
        heartbeat = self._known.get(message) if isinstance(message, bytes) else None
        if heartbeat is None:
            try:
                if not isinstance(message, bytes):
                    raise Rejected("malformed")
                heartbeat = parse_heartbeat(message, self.run, self.verify)
            except Rejected as error:
                self.outcomes[error.reason] += 1
                return True
            if sender is not None and heartbeat.peer != sender:
                self.outcomes["not-its-own"] += 1
                return False
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known[message] = heartbeat
        elif sender is not None and heartbeat.peer != sender:
            self.outcomes["not-its-own"] += 1
            return False
        self._apply(heartbeat, direct=heartbeat.peer == carrier)
        return True

    def _apply(self, heartbeat: Heartbeat, *, direct: bool) -> None:
        now = self.clock.now()
        if heartbeat.peer == self.peer:
            self._on_own_key(heartbeat, now)
            return
        admitted = self.settings.admission(heartbeat.peer)
        if direct and admitted and not heartbeat.leaving:
            self.clocks.greeted(heartbeat.peer, heartbeat.expires - self.lifetime, now)
        sender_now = self.clocks.now_of(heartbeat.peer, now)
        by_our_clock = replace(heartbeat, expires=heartbeat.expires + now - sender_now)
        if by_our_clock.expires > now and admitted and not self.games.admits(by_our_clock, now):
            self.outcomes["other-game"] += 1
            self.members.remove(heartbeat.peer)
            return
        result = self.members.update(heartbeat, now, sender_now=sender_now, direct=direct)
        if result == "stale":
            self._on_expired(heartbeat, now)
        elif result == "accepted":
            if self.members.is_beyond(heartbeat.round):
                self.outcomes["too-far-ahead"] += 1
            self.backoff.answered(heartbeat.peer)
            counted = self.members.counted
            # A stage that waits looks at every member, so any number of invented ones must not wake it.
            if self._joining or not counted.started or counted.standing(heartbeat.peer) in COUNTING:
                self.changed.set()
        elif result == "not-admitted":
            self.outcomes[result] += 1

    def _on_expired(self, heartbeat: Heartbeat, now: float) -> None:
        if heartbeat.peer in self._expired or heartbeat.peer in self.members.others(now):
            return
        self.outcomes["expired"] += 1
        if self._joining and len(self._expired) < _MAX_HELLOS:
            self._expired[heartbeat.peer] = heartbeat

    def _on_own_key(self, heartbeat: Heartbeat, now: float) -> None:
        if heartbeat.expires <= now:
            return
        warning = self.key_watch.observe(heartbeat, now, joining=self._joining)
        if warning:
            self.outcomes["same-key"] += 1
            logger.warning("%s", warning)
            self.changed.set()

    def on_contact(self, peer: PeerId, round: int, stage: int) -> None:
        """Record that a peer has just sent us a message itself."""
        self.members.touch(peer, round, stage, self.clock.now())
        self.backoff.answered(peer)

    # ── calls
    async def call(self, peer: PeerId, message: bytes) -> bytes | None:
        """Send a small message. Return the answer, or None (counted) if there is none."""
        now = self.clock.now()
        if self.backoff.is_backing_off(peer, now):
            return None
        try:
            heartbeat = self.members.heartbeat(peer) or self._expired.get(peer)
            if peer not in self._reached and heartbeat is not None and heartbeat.addresses:
                await self.transport.connect(peer, heartbeat.addresses, self.settings.call_seconds)
            self._reached.add(peer)
            answer = await self.transport.call(peer, message, self.settings.call_seconds)
        except Unreachable:
            self._reached.discard(peer)
            self.backoff.failed(peer, now)
            self.outcomes["unreachable"] += 1
            return None
        except (Oversized, Unreadable) as error:
            self.outcomes["too-large" if isinstance(error, Oversized) else "malformed"] += 1
            return None
        self.backoff.answered(peer)
        self.members.answered(peer, self.clock.now())
        return answer
