"""Discovery: our heartbeats, those of other peers, and the calls that show which peers answer.

Heartbeats are stored in the transport's directory. A new peer also sends its heartbeat (a hello) to every peer that it
learns of, and each answers with the heartbeats that it knows, so that peers find each other without waiting for the
directory. Nothing that a remote peer sends raises here; it is used, or counted under the reason why it was not.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from itertools import count
from typing import Any

import msgpack

from swarmgame.errors import Temporary
from swarmgame.game.state import PeerId
from swarmgame.swarm.clock import Clock
from swarmgame.swarm.membership import MAX_LIFETIMES, Backoff, Membership
from swarmgame.swarm.messages import Heartbeat, Rejected, Sign, Verify, make_heartbeat, parse_heartbeat
from swarmgame.swarm.settings import SwarmSettings
from swarmgame.swarm.transport import Oversized, Transport, Unreachable

HELLO = b"H"
PEER_LIST = 128
"""Most heartbeats in the answer to a hello; so many always fit a small message."""
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
        self.members = Membership(peer, settings.admission, self.lifetime)
        self.backoff = Backoff()
        self._reached: set[PeerId] = set()
        self._known: dict[bytes, Heartbeat] = {}
        self._random = random.Random(peer)
        self._slowdown = 1.0

    # ── joining and leaving
    async def join(self, expect: Sequence[PeerId], min_replicas: int, timeout_seconds: float) -> None:
        """Wait until heartbeats of `min_replicas` members, ourselves included, have been received, or the time is over.

        Raises:
            Temporary: more than one is needed and no peer answered at all.
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
            unknown = {*reached, *self.members.others(self.clock.now())} - contacted - {self.peer}
            answered = await asyncio.gather(*(self.hello(peer) for peer in sorted(unknown)[:_MAX_HELLOS]))
            contacted.update(peer for peer in answered if peer is not None)
            confirmed = self.members.confirmed(self.clock.now())
            # Peers that a hello has just named are sent one too.
            settled = len(contacted) >= _MAX_HELLOS or not set(confirmed) - contacted - unknown
            if len(confirmed) + 1 >= min_replicas and settled:
                return
            if self.clock.now() >= deadline:
                if min_replicas > 1 and not confirmed and not reached:
                    raise Temporary(
                        f"no peer of run {self.run!r} answered within {timeout_seconds:g} s; "
                        "is an initial peer running?"
                    )
                return
            self.changed.clear()
            await self.clock.wait(self.changed, min(pause, deadline - self.clock.now()))
            pause = min(2.0, pause * 1.5)

    async def run_heartbeats(self) -> None:
        """Send heartbeats and read those of others, until cancelled."""
        never = asyncio.Event()
        pause = self._slowdown
        pinging: asyncio.Future[None] = asyncio.ensure_future(asyncio.sleep(0))
        for beats in count(1):
            await self.clock.wait(never, self.settings.heartbeat_seconds * pause * self._random.uniform(0.9, 1.1))
            if pinging.done():  # in the background: a dead address must not delay our heartbeats
                confirmed = self.members.confirmed(self.clock.now())
                pinging = asyncio.ensure_future(self.transport.ping_initial_peer(confirmed))
            # Slow down one heartbeat later than the heartbeats announce: other peers may not have slowed down yet.
            pause, self._slowdown = self._slowdown, min(self._target_slowdown(), 2 * self._slowdown)
            await self.advertise()
            await self.discover(thorough=beats % _THOROUGH == 0)
            now = self.clock.now()
            self.forget(now)
            if not self.members.confirmed(now):
                for peer in await self.transport.connect_initial_peers():
                    await self.hello(peer)

    def forget(self, now: float) -> None:
        """Drop what is known of members that are gone, and expired heartbeats, so that memory does not grow."""
        self.members.forget(now)
        self.backoff.forget(now)
        self._reached.intersection_update(self.members.others(now))
        self._known = {message: heartbeat for message, heartbeat in self._known.items() if heartbeat.expires > now}

    async def leave(self) -> None:
        """Announce that we leave, to as many peers as time allows."""
        last = self.heartbeat(leaving=True)
        live = self.members.others(self.clock.now())
        receivers = self._random.sample(live, min(len(live), _MAX_HELLOS))
        calls = [self.call(peer, HELLO + last.message) for peer in receivers]
        tasks = [asyncio.ensure_future(task) for task in (*calls, self.transport.advertise(last.message, last.expires))]
        await asyncio.wait(tasks, timeout=_LEAVE_SECONDS)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ── heartbeats
    def heartbeat(self, *, leaving: bool = False) -> Heartbeat:
        """Return our heartbeat, signed now."""
        # The last heartbeat outlives the ones before it: a directory keeps the one that expires last.
        expires = self.clock.now() + self.lifetime * self._slowdown
        expires += self.settings.heartbeat_seconds if leaving else 0.0
        position = self.members.round, self.members.stage
        return make_heartbeat(
            self.run, self.peer, *position, expires, self.sign, addresses=self.transport.addresses(), leaving=leaving
        )

    def peer_list(self) -> bytes:
        """Return our heartbeat and those of the live members that we know: the answer to a hello."""
        known = [self.members.heartbeat(peer) for peer in self.members.confirmed(self.clock.now())]
        beats = [self.heartbeat().message, *(heartbeat.message for heartbeat in known[: PEER_LIST - 1] if heartbeat)]
        packed: bytes = msgpack.packb(beats)
        return packed

    async def advertise(self) -> None:
        heartbeat = self.heartbeat()
        await self.transport.advertise(heartbeat.message, heartbeat.expires)

    async def discover(self, *, thorough: bool) -> None:
        for message in await self.transport.discover(thorough=thorough):
            self.on_heartbeat(message)

    def _target_slowdown(self) -> float:
        """Large swarms send fewer, longer-lived heartbeats: every heartbeat is read by every peer."""
        others = len(self.members.others(self.clock.now()))
        return 1.0 if others < _LARGE else 2.0 if others < _VERY_LARGE else MAX_LIFETIMES

    async def hello(self, peer: PeerId) -> PeerId | None:
        """Send our heartbeat to a peer and read the ones that it answers with. Return the peer if it answered."""
        answer = await self.call(peer, HELLO + self.heartbeat().message)
        if answer is None:
            return None
        try:
            heartbeats = msgpack.unpackb(answer, max_map_len=0, max_ext_len=0, max_array_len=PEER_LIST)
        except (ValueError, TypeError, RecursionError, OverflowError, msgpack.UnpackException):
            heartbeats = None
        if isinstance(heartbeats, list):
            for message in heartbeats:
                self.on_heartbeat(message)
        else:
            self.outcomes["malformed"] += 1
        return peer

    def on_heartbeat(self, message: Any) -> None:
        """Process a heartbeat, whichever way it came."""
        heartbeat = self._known.get(message) if isinstance(message, bytes) else None
        if heartbeat is None:
            try:
                if not isinstance(message, bytes):
                    raise Rejected("malformed")
                heartbeat = parse_heartbeat(message, self.run, self.verify)
            except Rejected as error:
                self.outcomes[error.reason] += 1
                return
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known[message] = heartbeat
        result = self.members.update(heartbeat, self.clock.now())
        if result == "accepted":
            self.backoff.answered(heartbeat.peer)
            self.changed.set()
        elif result == "not-admitted":
            self.outcomes[result] += 1

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
            heartbeat = self.members.heartbeat(peer)
            if peer not in self._reached and heartbeat is not None and heartbeat.addresses:
                await self.transport.connect(peer, heartbeat.addresses, self.settings.call_seconds)
            self._reached.add(peer)
            answer = await self.transport.call(peer, message, self.settings.call_seconds)
        except Unreachable:
            self._reached.discard(peer)
            self.backoff.failed(peer, now)
            self.outcomes["unreachable"] += 1
            return None
        except Oversized:
            self.outcomes["too-large"] += 1
            return None
        self.backoff.answered(peer)
        return answer
