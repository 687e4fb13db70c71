"""The agent: one peer's part in the swarm, over any transport and any clock.

It tells its announcements to those who listen, hears those of others, fetches what is wanted, and waits for quorum or
deadline on an event. It runs on one asyncio loop; `bridge` lets an ordinary thread call it. Three ways lead to an
announcement: it is pushed; or, when a push was lost or we came late, the member that we wait for is asked; and every
message that refers to a body can be served by anyone who has it.

Invariant: nothing a stranger sends raises here. It is used, or counted under the reason why it was not.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import msgpack

from swarmgame.game.protocol import Claim, CollectPolicy, Exchange
from swarmgame.game.state import Contribution, PeerId
from swarmgame.swarm.clock import Clock
from swarmgame.swarm.codec import Shard, encode
from swarmgame.swarm.discovery import GREETING, Discovery
from swarmgame.swarm.fetcher import Fetcher
from swarmgame.swarm.inbox import Inbox, InboxEntry
from swarmgame.swarm.messages import Announcement, Rejected, Sign, Verify, announce, make_index, parse_announcement
from swarmgame.swarm.settings import Settings
from swarmgame.swarm.store import Store
from swarmgame.swarm.topology import breadth, circle, listeners, speakers, to_all
from swarmgame.swarm.transports.base import CALL_BYTES, Handlers, Transport

logger = logging.getLogger(__name__)

ANNOUNCEMENT_SECONDS = 7 * 86_400
"""Rounds decide what is fresh; this keeps the announcements of an old run from being replayed into a new one of the
same name.
"""
_TELL, _ASK = b"A", b"Q"


@dataclass(frozen=True)
class OutboundContribution:
    """A contribution made ready to be said."""

    announcement: Announcement
    index: bytes
    shards: tuple[Shard, ...]


class SwarmNode:
    """One peer. `StageBarrier` adds the waiting and choosing.

    Args:
        run: name of the run; messages of other runs are refused.
        peer, sign: who we are.
        verify: checks the signatures of others.
    """

    def __init__(
        self,
        run: str,
        peer: PeerId,
        sign: Sign,
        verify: Verify,
        transport: Transport,
        clock: Clock,
        settings: Settings | None = None,
    ) -> None:
        self.run, self.peer = run, peer
        self.sign, self.verify = sign, verify
        self.transport, self.clock = transport, clock
        self.settings = settings or Settings()
        self.mailbox = Inbox(peer, self.settings.admission, self.settings.keep_rounds)
        self.outcomes = self.mailbox.outcomes
        self.changed = asyncio.Event()
        self.presence = Discovery(run, peer, sign, verify, transport, clock, self.settings, self.outcomes, self.changed)
        self.members = self.presence.members
        self.store = Store()
        self.fetcher = Fetcher(
            run, transport, self.store, self.presence.backoff, clock, self.settings.limits, self.outcomes
        )
        self.policy: CollectPolicy | None = None
        self._said: dict[tuple[int, int], OutboundContribution] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._random = random.Random(peer)
        self._left = False

    # ── coming and going
    async def join(self, expect: Sequence[PeerId], at_least: int, timeout_seconds: float) -> None:
        """See `CommunicationManager.join`."""
        await self.transport.start(Handlers(call=self._answer, body=self.store.get))
        await self.presence.enter(expect, at_least, timeout_seconds)
        self.spawn(self.presence.remain())

    async def leave(self) -> None:
        """Says goodbye and closes everything."""
        if self._left:
            return
        self._left = True
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.presence.part()
        await self.transport.close()

    def progress(self, round: int, stage: int) -> None:
        """We are there; forgets what is too old for everyone."""
        self.members.round, self.members.stage = round, stage
        if self.mailbox.round != round:
            self.mailbox.move_to(round)
            oldest = round - self.settings.keep_rounds
            self.store.forget_before(oldest)
            for key in [key for key in self._said if key[0] < oldest]:
                del self._said[key]

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Runs work beside everything else, until we leave."""
        if self._left:
            work.close()
            return
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a background task of the exchange failed", exc_info=error)

    # ── saying
    def prepare(self, contribution: Contribution, claims: Sequence[Claim] = ()) -> OutboundContribution:
        """Encodes and signs; the costly part of saying something, safe on any thread.

        Raises:
            ValueError: it is not ours, or its parts do not agree.
        """
        if contribution.peer != self.peer:
            raise ValueError(f"{self.peer} cannot speak for {contribution.peer}")
        shards = encode(contribution, self.run, shard_bytes=self.settings.shard_bytes, limits=self.settings.limits)
        index = make_index(contribution, shards, claims)
        expires = int(self.clock.now() + ANNOUNCEMENT_SECONDS)
        announcement = announce(self.run, self.peer, contribution.round, contribution.stage, index, expires, self.sign)
        return OutboundContribution(announcement, index, shards)

    async def say(self, parcel: OutboundContribution) -> None:
        """Serves a parcel and tells it to those who listen."""
        announcement = parcel.announcement
        key = (announcement.round, announcement.stage)
        if key in self._said and self._said[key].announcement.root != announcement.root:
            raise ValueError(f"something else was said already in round {key[0]}, stage {key[1]}")
        self._said[key] = parcel
        for shard in parcel.shards:
            self.store.keep(announcement.round, shard.name, shard.data)
        self.store.keep(announcement.round, announcement.root, parcel.index)
        if self.mailbox.round is None or announcement.round > self.mailbox.round:
            self.progress(*key)
        message = self._told(parcel)
        for peer in self._listeners(*key):
            self.spawn(self.presence.call(peer, _TELL + message))

    def _told(self, parcel: OutboundContribution) -> bytes:
        """An announcement as it is told: with its bodies where they are small and everybody wants them."""
        pulled = self.policy is not None and self.policy.exchange is Exchange.PULL
        small = sum(len(shard.data) for shard in parcel.shards) <= self.settings.inline_bytes
        bodies = [shard.data for shard in parcel.shards] if small and not pulled else []
        packed: bytes = msgpack.packb([parcel.announcement.message, bodies])
        return packed

    def _listeners(self, round: int, stage: int) -> list[PeerId]:
        others = self.members.others(self.clock.now())
        if to_all(self.policy, len(others) + 1):
            return others
        if self.policy is not None and self.policy.exchange is Exchange.PULL:
            return listeners(circle(self.run, round, stage, [*others, self.peer]), self.peer, breadth(self.policy))
        return self._random.sample(others, min(len(others), breadth(None)))

    def expected(self, round: int, stage: int) -> list[PeerId]:
        """Those whom this stage waits for: all live members, or in a large pulling swarm those who tell us."""
        others = self.members.others(self.clock.now())
        if self.policy is None or self.policy.exchange is Exchange.GATHER or to_all(self.policy, len(others) + 1):
            return others
        return speakers(circle(self.run, round, stage, [*others, self.peer]), self.peer, breadth(self.policy))

    # ── hearing
    def _answer(self, sender: PeerId, message: bytes) -> bytes:
        kind, payload = message[:1], message[1:]
        if len(message) > CALL_BYTES:
            self.outcomes["too-large"] += 1
        elif kind == _TELL:
            self.hear(payload, sender)
        elif kind == GREETING:
            self.presence.hear(payload)
            return self.presence.peer_list()
        elif kind == _ASK and len(payload) == 12:
            parcel = self._said.get((int.from_bytes(payload[:8], "big"), int.from_bytes(payload[8:], "big")))
            return self._told(parcel) if parcel else b""
        else:
            self.outcomes["malformed"] += 1
        return b""

    def hear(self, payload: bytes, sender: PeerId) -> None:
        """Takes in what a peer told: an announcement, perhaps with its bodies."""
        try:
            fields = msgpack.unpackb(payload, max_map_len=0, max_ext_len=0, max_array_len=256)
            message, bodies = fields
            if (
                not isinstance(message, bytes)
                or not isinstance(bodies, list)
                or any(not isinstance(body, bytes) for body in bodies)
            ):
                raise Rejected("malformed")
            announcement = parse_announcement(message, self.run, self.verify)
        except Rejected as error:
            self.outcomes[error.reason] += 1
            return
        except (ValueError, TypeError, RecursionError, OverflowError, msgpack.UnpackException):
            self.outcomes["malformed"] += 1
            return
        heard = self.mailbox.hear(announcement, self.clock.now())
        if sender == announcement.peer and self.settings.admission(sender):
            self.presence.spoke(sender, announcement.round, announcement.stage)
        if heard is None:
            return
        letter, new = heard
        named = {entry.name for entry in letter.entries or ()} | self._inlined(letter)
        for body in bodies:
            name = sha256(body).digest()
            if name in named:
                self.store.cache(announcement.round, name, body)
            else:
                self.outcomes["bad-hash"] += 1
        if new:
            self._pass_on(payload, sender)
            pulls = self.policy is not None and self.policy.exchange is Exchange.PULL
            if not (letter.entries is not None if pulls else self.fetcher.whole_at_hand(letter)):
                self.spawn(self.open(letter))
        self.changed.set()

    def _inlined(self, letter: InboxEntry) -> set[bytes]:
        if letter.entries is None and letter.announcement.index:
            # No network is needed where the index travelled with the announcement.
            self.fetcher.take_index(letter, letter.announcement.index)
        return {entry.name for entry in letter.entries or ()}

    def _pass_on(self, payload: bytes, sender: PeerId) -> None:
        others = [peer for peer in self.members.others(self.clock.now()) if peer != sender]
        gathers = self.policy is None or self.policy.exchange is Exchange.GATHER
        if gathers and not to_all(self.policy, len(others) + 1):
            for peer in self._random.sample(others, min(len(others), breadth(None))):
                self.spawn(self.presence.call(peer, _TELL + payload))

    async def open(self, letter: InboxEntry) -> None:
        """Fetches what is wanted of a letter as soon as it is here: its index, and where words are gathered everything."""
        holders = self._holders(letter)
        if letter.opening:
            return
        letter.opening = True
        try:
            if self.policy is not None and self.policy.exchange is Exchange.PULL:
                await self.fetcher.index(letter, holders)
            else:
                await self.fetcher.whole(letter, holders)
        finally:
            letter.opening = False
            self.changed.set()

    async def fetch(self, letter: InboxEntry, position: int) -> bool:
        """Fetches one shard of a letter."""
        return await self.fetcher.part(letter, position, self._holders(letter))

    def _holders(self, letter: InboxEntry) -> list[PeerId]:
        """A few others who may have what a letter names, should its author be away."""
        stage = self.mailbox.stage(letter.announcement.round, letter.announcement.stage)
        spoken = sorted(peer for peer in stage if peer != letter.announcement.peer)
        return self._random.sample(spoken, min(len(spoken), 3))

    # ── calling
    def ask(self, peer: PeerId, round: int, stage: int) -> None:
        """Asks a peer what it said in a stage."""
        if not self.presence.backoff.leave_alone(peer, self.clock.now()):
            self.spawn(self._ask(peer, round, stage))

    async def _ask(self, peer: PeerId, round: int, stage: int) -> None:
        answer = await self.presence.call(peer, _ASK + round.to_bytes(8, "big") + stage.to_bytes(4, "big"))
        if answer:
            self.hear(answer, peer)
