"""Presence: our own heartbeats, those of others, and the calls that find out who answers.

Heartbeats lie in the transport's directory; a newcomer also shows its heartbeat to every peer it learns of, and each
answers with the heartbeats it knows, so that a swarm is acquainted without waiting for the directory. Invariant:
nothing a stranger sends raises here; it is used, or counted under the reason why it was not.
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
from swarmgame.swarm.membership import LONGEST, Backoff, Membership
from swarmgame.swarm.messages import Heartbeat, Rejected, Sign, Verify, beat, parse_heartbeat
from swarmgame.swarm.settings import Settings
from swarmgame.swarm.transports.base import Oversized, Transport, Unreachable

GREETING = b"H"
_ROSTER = 128
"""Heartbeats in the answer to a greeting: at most so many, which always fit a small message."""
_MOST_GREETED = 32
_MOST_KNOWN = 4096
_PARTING_SECONDS = 1.0
_LARGE, _HUGE = 6, 24
_THOROUGH = 4
"""Every so many beats all copies of the directory are read, not only the nearest."""


class Discovery:
    """One peer's view of who is there.

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
        settings: Settings,
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
        self._calm = 1.0

    # ── coming and going
    async def enter(self, expect: Sequence[PeerId], at_least: int, timeout_seconds: float) -> None:
        """Waits until `at_least` members, ourselves included, have really been heard, or the time is over.

        Raises:
            Temporary: more than one is needed and nobody answered at all.
        """
        deadline = self.clock.now() + timeout_seconds
        self.members.expect(expect, self.clock.now())
        reached: set[PeerId] = set()
        greeted: set[PeerId] = set()
        pause = 0.1
        await self.advertise()
        while True:
            if not reached:
                reached.update(await self.transport.bootstrap())
            await self.discover(thorough=True)
            strangers = {*reached, *self.members.others(self.clock.now())} - greeted - {self.peer}
            met = await asyncio.gather(*(self.greet(peer) for peer in sorted(strangers)[:_MOST_GREETED]))
            greeted.update(peer for peer in met if peer is not None)
            heard = self.members.heard(self.clock.now())
            # Those whom a greeting has just told us of want to know us too.
            settled = len(greeted) >= _MOST_GREETED or not set(heard) - greeted - strangers
            if len(heard) + 1 >= at_least and settled:
                return
            if self.clock.now() >= deadline:
                if at_least > 1 and not heard and not reached:
                    raise Temporary(
                        f"no peer of run {self.run!r} answered within {timeout_seconds:g} s; is an initial peer running?"
                    )
                return
            self.changed.clear()
            await self.clock.wait(self.changed, min(pause, deadline - self.clock.now()))
            pause = min(2.0, pause * 1.5)

    async def remain(self) -> None:
        """Sends heartbeats and reads those of others, until cancelled."""
        never = asyncio.Event()
        pause = self._calm
        touching: asyncio.Future[None] = asyncio.ensure_future(asyncio.sleep(0))
        for beats in count(1):
            await self.clock.wait(never, self.settings.heartbeat_seconds * pause * self._random.uniform(0.9, 1.1))
            if touching.done():  # beside everything else: a dead address must not make our heartbeats late
                touching = asyncio.ensure_future(self.transport.touch(self.members.heard(self.clock.now())))
            # We slow down one beat later than our heartbeats say, and others may still beat as in a small swarm.
            pause, self._calm = self._calm, min(self._rest(), 2 * self._calm)
            await self.advertise()
            await self.discover(thorough=beats % _THOROUGH == 0)
            now = self.clock.now()
            self.forget(now)
            if not self.members.heard(now):
                for peer in await self.transport.bootstrap():
                    await self.greet(peer)

    def forget(self, now: float) -> None:
        """Drop what is known of members that are gone, and heartbeats that have expired, so that memory does not grow
        with churn.
        """
        self.members.forget(now)
        self.backoff.forget(now)
        self._reached.intersection_update(self.members.others(now))
        self._known = {message: heartbeat for message, heartbeat in self._known.items() if heartbeat.expires > now}

    async def part(self) -> None:
        """Says goodbye to as many as time allows."""
        goodbye = self.heartbeat(goodbye=True)
        live = self.members.others(self.clock.now())
        listeners = self._random.sample(live, min(len(live), _MOST_GREETED))
        words = [self.call(peer, GREETING + goodbye.message) for peer in listeners]
        partings = [
            asyncio.ensure_future(word) for word in (*words, self.transport.advertise(goodbye.message, goodbye.expires))
        ]
        await asyncio.wait(partings, timeout=_PARTING_SECONDS)
        for parting in partings:
            parting.cancel()
        await asyncio.gather(*partings, return_exceptions=True)

    # ── heartbeats
    def heartbeat(self, *, goodbye: bool = False) -> Heartbeat:
        """Our own, signed now."""
        # A goodbye outlasts the heartbeats before it: directories keep what expires last.
        expires = self.clock.now() + self.lifetime * self._calm + (self.settings.heartbeat_seconds if goodbye else 0.0)
        where = self.members.round, self.members.stage
        return beat(
            self.run, self.peer, *where, expires, self.sign, addresses=self.transport.addresses(), goodbye=goodbye
        )

    def peer_list(self) -> bytes:
        """Our heartbeat and those of the live members we know: the answer to a greeting."""
        known = [self.members.heartbeat(peer) for peer in self.members.heard(self.clock.now())]
        beats = [self.heartbeat().message, *(heartbeat.message for heartbeat in known[: _ROSTER - 1] if heartbeat)]
        packed: bytes = msgpack.packb(beats)
        return packed

    async def advertise(self) -> None:
        heartbeat = self.heartbeat()
        await self.transport.advertise(heartbeat.message, heartbeat.expires)

    async def discover(self, *, thorough: bool) -> None:
        for message in await self.transport.discover(thorough=thorough):
            self.hear(message)

    def _rest(self) -> float:
        """Larger swarms beat less often, and each beat lasts longer in proportion: every beat is read by everyone."""
        others = len(self.members.others(self.clock.now()))
        return 1.0 if others < _LARGE else 2.0 if others < _HUGE else LONGEST

    async def greet(self, peer: PeerId) -> PeerId | None:
        """Shows ourselves to a peer, and hears whom it knows. Returns it when it answered."""
        answer = await self.call(peer, GREETING + self.heartbeat().message)
        if answer is None:
            return None
        try:
            peer_list = msgpack.unpackb(answer, max_map_len=0, max_ext_len=0, max_array_len=_ROSTER)
        except (ValueError, TypeError, RecursionError, OverflowError, msgpack.UnpackException):
            peer_list = None
        if isinstance(peer_list, list):
            for message in peer_list:
                self.hear(message)
        else:
            self.outcomes["malformed"] += 1
        return peer

    def hear(self, message: Any) -> None:
        """Takes in a heartbeat that somebody showed us."""
        heartbeat = self._known.get(message) if isinstance(message, bytes) else None
        if heartbeat is None:
            try:
                if not isinstance(message, bytes):
                    raise Rejected("malformed")
                heartbeat = parse_heartbeat(message, self.run, self.verify)
            except Rejected as error:
                self.outcomes[error.reason] += 1
                return
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[message] = heartbeat
        result = self.members.hear(heartbeat, self.clock.now())
        if result == "accepted":
            self.backoff.answered(heartbeat.peer)
            self.changed.set()
        elif result == "not-admitted":
            self.outcomes[result] += 1

    def spoke(self, peer: PeerId, round: int, stage: int) -> None:
        """A peer has just said something to us itself."""
        self.members.spoke(peer, round, stage, self.clock.now())
        self.backoff.answered(peer)

    # ── calls
    async def call(self, peer: PeerId, message: bytes) -> bytes | None:
        """The answer to a small message, or None (counted) when there is none."""
        now = self.clock.now()
        if self.backoff.leave_alone(peer, now):
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
