"""A node: one peer in the swarm, over any transport and any clock.

It sends its announcements to other peers, receives and gossips theirs, and fetches what is needed. It runs on one
asyncio loop; `blocking` calls it from an ordinary thread. An announcement comes in one of two ways: pushed by its
author or gossiped; or, if that message was lost or we joined late, on request. A body can be served by every peer that
has it. Nothing that a remote peer sends raises here; it is used, or counted under the reason why it was not.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any

import msgpack

from swarmgame.game.protocol import Claim, CollectPolicy, Exchange
from swarmgame.game.state import Contribution, PeerId
from swarmgame.swarm.body_store import BodyStore
from swarmgame.swarm.clock import Clock
from swarmgame.swarm.counted_peers import COUNTING, Standing
from swarmgame.swarm.discovery import HELLO, Discovery
from swarmgame.swarm.fetcher import Fetcher
from swarmgame.swarm.gate import Gate
from swarmgame.swarm.inbox import Inbox, InboxEntry
from swarmgame.swarm.messages import (
    ANNOUNCEMENT_SECONDS,
    OutboundContribution,
    Rejected,
    Sign,
    Verify,
    check_signature,
    make_outbound,
    read_announcement,
)
from swarmgame.swarm.settings import SwarmSettings
from swarmgame.swarm.streams import Streams
from swarmgame.swarm.topology import FULL_MESH_MEMBERS, fanout, is_full_mesh, predecessors, ring, successors
from swarmgame.swarm.transport import CALL_BYTES, Handlers, Transport

logger = logging.getLogger(__name__)

_ANNOUNCEMENT, _REQUEST = b"A", b"Q"
_ALTERNATIVE_HOLDERS = 3
OTHERS_WAITING = 256
"""Bodies of peers that do not count that are fetched or wait for it."""
OTHERS_GOSSIPED = 64
"""Announcements of peers that do not count that are passed on in a round."""
NEWCOMERS = 5
"""Peers that do not count yet, of those that contributed last, that are sent each announcement and watched."""


class SwarmNode:
    """One peer. `StageBarrier` adds waiting for a stage and choosing what is fetched.

    Args:
        run: name of the run; messages of other runs are refused.
        peer, sign: our identity.
        verify: checks the signatures of other peers.
    """

    def __init__(
        self,
        run: str,
        peer: PeerId,
        sign: Sign,
        verify: Verify,
        transport: Transport,
        clock: Clock,
        settings: SwarmSettings | None = None,
    ) -> None:
        self.run, self.peer = run, peer
        self.sign, self.verify = sign, verify
        self.transport, self.clock = transport, clock
        settings = settings or SwarmSettings()
        self.inbox = Inbox(
            peer,
            settings.admission,
            settings.keep_rounds,
            settings.stages,
            self.counts,
            lambda other: transport.remote_address(other) or "",
        )
        # A banned peer is no member either: no stage waits for it.
        self.settings = replace(
            settings, admission=lambda other: not self.inbox.is_banned(other) and settings.admission(other)
        )
        self.outcomes = self.inbox.outcomes
        self.changed = asyncio.Event()
        self.discovery = Discovery(
            run, peer, sign, verify, transport, clock, self.settings, self.outcomes, self.changed
        )
        self.members = self.discovery.members
        self.store = BodyStore()
        self._streams_of_anchors = Streams(clock)
        self._streams_of_counted = Streams(clock, per_author=2, slow=16)
        self._streams_of_others = Streams(clock, per_author=1, slow=4, most=OTHERS_WAITING)
        self.fetcher = Fetcher(
            run,
            transport,
            self.store,
            self.discovery.backoff,
            clock,
            self.settings.limits,
            self.inbox,
            self._streams_of,
            self.settings.rollout_tokens,
        )
        self.gate = Gate(clock.now, self.counts, self.outcomes)
        self.policy: CollectPolicy | None = None
        self._published: dict[tuple[int, int], OutboundContribution] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._random = random.Random(peer)
        self._started = self._left = False
        self._others_gossiped = 0

    # ── joining and leaving
    async def start(self) -> None:
        """Open the transport, so that other peers can reach this one. Idempotent."""
        if not self._started:
            self._started = True
            await self.transport.start(Handlers(call=self.on_message, body=self.store.get, gate=self.gate))

    def counts(self, peer: PeerId) -> bool:
        """Return whether a peer counts, as far as it is known now."""
        return self.settings.admission(peer) and self.members.counted.standing(peer) in COUNTING

    async def join(self, expect: Sequence[PeerId], min_replicas: int, timeout_seconds: float) -> None:
        """See `CommunicationManager.join`."""
        await self.start()
        await self.discovery.join(expect, min_replicas, timeout_seconds)
        self.spawn(self.discovery.run_heartbeats())

    async def leave(self) -> None:
        """Announce that we leave, and close everything."""
        if self._left:
            return
        self._left = True
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.discovery.leave()
        await self.transport.close()

    def progress(self, round: int, stage: int) -> None:
        """Set our position, and drop what has become too old for every peer."""
        self.members.round, self.members.stage = round, stage
        if self.inbox.round != round:
            self.inbox.move_to(round)
            self._others_gossiped = 0
            self.fetcher.decoding_time.begin_round(self.clock.now())
            oldest = round - self.settings.keep_rounds
            self.store.forget_before(oldest)
            for key in [key for key in self._published if key[0] < oldest]:
                del self._published[key]
            if 0 < self.settings.max_rounds <= round:  # the others wait for nothing else before they leave
                self.spawn(self._say_hello())

    async def _say_hello(self) -> None:
        message = self.discovery.heartbeat().message
        await asyncio.gather(*(self.discovery.hello(peer, message) for peer in self.discovery.receivers()))

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any] | None:
        """Run work in the background, until we leave; None where we have left."""
        if self._left:
            work.close()
            return None
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a background task of the exchange failed", exc_info=error)

    # ── sending
    def prepare(self, contribution: Contribution, claims: Sequence[Claim] = ()) -> OutboundContribution:
        """Encode and sign a contribution. This is the costly part of publishing; safe on any thread.

        Raises:
            ValueError: it is another peer's, or its parts do not agree.
        """
        if contribution.peer != self.peer:
            raise ValueError(f"{self.peer} cannot publish a contribution of {contribution.peer}")
        settings = self.settings
        self.inbox.kept_bytes.note_own(contribution)
        return make_outbound(
            contribution,
            claims,
            run=self.run,
            sign=self.sign,
            now=self.clock.now(),
            shard_bytes=settings.shard_bytes,
            limits=settings.limits,
        )

    async def publish(self, outbound: OutboundContribution) -> None:
        """Serve a contribution, and send its announcement."""
        announcement = outbound.announcement
        key = (announcement.round, announcement.stage)
        if key in self._published and self._published[key].announcement.root != announcement.root:
            raise ValueError(f"another contribution was published already in round {key[0]}, stage {key[1]}")
        self._published[key] = outbound
        for shard in outbound.shards:
            self.store.keep(announcement.round, shard.name, shard.data)
        self.store.keep(announcement.round, announcement.root, outbound.index)
        if self.inbox.round is None or announcement.round > self.inbox.round:
            self.progress(*key)
        message = self.encode_announcement(outbound)
        for peer in self._receivers(*key):
            self.send_announcement(peer, message)

    def send_announcement(self, peer: PeerId, message: bytes) -> None:
        """Send an encoded announcement in the background."""
        self.spawn(self.discovery.call(peer, _ANNOUNCEMENT + message))

    def encode_announcement(self, outbound: OutboundContribution) -> bytes:
        """Encode an announcement for sending. Small bodies travel with it if every peer needs them (GATHER)."""
        small = sum(len(shard.data) for shard in outbound.shards) <= self.settings.inline_bytes
        bodies = [shard.data for shard in outbound.shards] if small and not self._pulls() else []
        packed: bytes = msgpack.packb([outbound.announcement.message, bodies])
        return packed

    def _pulls(self) -> bool:
        return self.policy is not None and self.policy.exchange is Exchange.PULL

    def _receivers(self, round: int, stage: int) -> list[PeerId]:
        """Return the peers to send to: counted ones, and a few that do not count yet, so that they can keep up."""
        now = self.clock.now()
        counted = list(self.members.weights(now))
        newcomers = self.members.newcomers(now)[:NEWCOMERS]
        if is_full_mesh(self.policy, len(counted) + 1):
            return [*counted, *newcomers]
        if self._pulls():
            places = ring(self.run, round, stage, [*counted, self.peer])
            return [*successors(places, self.peer, fanout(self.policy)), *newcomers]
        return [*self._random.sample(counted, min(len(counted), fanout(None))), *newcomers]

    def expected(self, round: int, stage: int) -> list[PeerId]:
        """Return the peers that this stage waits for: all that count, or our predecessors in a large PULL swarm."""
        counted = list(self.members.weights(self.clock.now()))
        if not self._pulls() or is_full_mesh(self.policy, len(counted) + 1):
            return counted
        return predecessors(ring(self.run, round, stage, [*counted, self.peer]), self.peer, fanout(self.policy))

    # ── receiving
    def on_message(self, sender: PeerId, message: bytes) -> bytes:
        """Process a small message. Return the answer, which may be empty."""
        kind, payload = message[:1], message[1:]
        if len(message) > CALL_BYTES:
            self.outcomes["too-large"] += 1
        elif kind == _ANNOUNCEMENT:
            self.on_announcement(payload, sender)
        elif kind == HELLO:
            return self.discovery.on_hello(payload, sender)
        elif kind == _REQUEST and len(payload) == 12:
            outbound = self._published.get((int.from_bytes(payload[:8], "big"), int.from_bytes(payload[8:], "big")))
            return self.encode_announcement(outbound) if outbound else b""
        else:
            self.outcomes["malformed"] += 1
        return b""

    def on_announcement(self, payload: bytes, sender: PeerId, *, requested: bool = False) -> None:
        """Process an encoded announcement, which may come with its bodies.

        Args:
            requested: it is the answer to a request, and so may be old.
        """
        try:
            fields = msgpack.unpackb(payload, max_map_len=0, max_ext_len=0, max_array_len=256)
            message, bodies = fields
            if (
                not isinstance(message, bytes)
                or not isinstance(bodies, list)
                or any(not isinstance(body, bytes) for body in bodies)
            ):
                raise Rejected("malformed")
            announcement, signature = read_announcement(message)
            if announcement.peer == self.peer:
                return
            if refusal := self.inbox.refusal(announcement, sender):
                raise Rejected(refusal)
            if sender != announcement.peer and not self._gossips():
                raise Rejected("second-hand")
            if not self.inbox.is_known(announcement):
                check_signature(announcement, signature, self.run, self.verify)
        except Rejected as error:
            self.outcomes[error.reason] += 1
            return
        except (ValueError, TypeError, RecursionError, OverflowError, msgpack.UnpackException):
            self.outcomes["malformed"] += 1
            return
        if self.discovery.games.excludes(announcement.peer):
            self.outcomes["other-game"] += 1
            return
        if self.members.is_beyond(announcement.round + 1):
            self.outcomes["too-far-ahead"] += 1
            return
        now = self.clock.now()
        if sender == announcement.peer and not requested and self.settings.admission(sender):
            self.discovery.clocks.announced(sender, announcement.expires - ANNOUNCEMENT_SECONDS, now)
        added = self.inbox.add(announcement, self.discovery.clocks.now_of(announcement.peer, now))
        if sender == announcement.peer and self.settings.admission(sender):
            self.discovery.on_contact(sender, announcement.round, announcement.stage)
        is_last = announcement.stage >= self.settings.stages - 1
        self.members.contributed(announcement.peer, announcement.round - (not is_last))
        if added is None:
            return
        entry, new = added
        if entry.shards is None and announcement.index:
            # The index travelled with the announcement.
            self.fetcher.set_index(entry, announcement.index)
        names = {shard.name for shard in entry.shards or ()}
        for body in bodies:
            name = sha256(body).digest()
            if name in names:
                self.store.cache(announcement.round, name, body, counts=entry.kept.counts)
            else:
                self.outcomes["bad-hash"] += 1
        if new:
            self._gossip(payload, sender, counts=entry.kept.counts)
            if not (entry.shards is not None if self._pulls() else self.fetcher.decode_stored(entry)):
                self.spawn(self.fetch_entry(entry))
        self._wake(announcement.peer)

    def _wake(self, peer: PeerId) -> None:
        """Let a waiting stage look again, unless the peer that something is new of makes no difference to it."""
        if not self.members.counted.started or self.counts(peer):
            self.changed.set()

    def _gossips(self) -> bool:
        """Whether others may pass on announcements; in a swarm of half the size of a full mesh none does, whatever the
        size is that it has for them. With one connection a peer could otherwise be any number of authors.
        """
        return not self._pulls() and len(self.members.weights(self.clock.now())) >= FULL_MESH_MEMBERS // 2

    def _gossip(self, payload: bytes, sender: PeerId, *, counts: bool) -> None:
        if self._pulls() or (not counts and self._others_gossiped >= OTHERS_GOSSIPED):
            return
        self._others_gossiped += not counts
        others = [peer for peer in self.members.weights(self.clock.now()) if peer != sender]
        if not is_full_mesh(self.policy, len(others) + 1):
            for peer in self._random.sample(others, min(len(others), fanout(None))):
                self.send_announcement(peer, payload)

    async def fetch_entry(self, entry: InboxEntry) -> None:
        """Fetch what is needed of an entry at once: its index, and in GATHER mode everything."""
        if entry.fetching:
            return
        entry.fetching = True
        try:
            if self._pulls():
                await self.fetcher.fetch_index(entry, self._holders(entry))
            else:
                await self.fetcher.fetch_all(entry, self._holders(entry))
        finally:
            entry.fetching = False
            self._wake(entry.announcement.peer)

    async def fetch_shard(self, entry: InboxEntry, position: int) -> bool:
        """Fetch one shard of an entry."""
        return await self.fetcher.fetch_shard(entry, position, self._holders(entry))

    def _holders(self, entry: InboxEntry) -> list[PeerId]:
        """Return a few other peers that count and may have the bodies of an entry, in case its author is offline."""
        stage = self.inbox.stage(entry.announcement.round, entry.announcement.stage)
        counted = self.members.counted
        active = sorted(
            peer for peer in stage if peer != entry.announcement.peer and counted.standing(peer) in COUNTING
        )
        return self._random.sample(active, min(len(active), _ALTERNATIVE_HOLDERS))

    def _streams_of(self, author: PeerId) -> Streams:
        """Return the places for fetches from a peer: in those of others it holds up no peer that stages wait for."""
        counted = self.members.counted
        standing = counted.standing(author)
        if standing is Standing.ANCHOR:
            return self._streams_of_anchors
        counts = standing in COUNTING or counted.rules.is_anchor(author)
        return self._streams_of_counted if counts else self._streams_of_others

    def request_announcement(self, peer: PeerId, round: int, stage: int) -> None:
        """Request a peer's announcement for a stage, in the background."""
        if not self.discovery.backoff.is_backing_off(peer, self.clock.now()):
            self.spawn(self.fetch_announcement(peer, round, stage))

    async def fetch_announcement(self, peer: PeerId, round: int, stage: int) -> None:
        """Request a peer's announcement for a stage, and process it."""
        answer = await self.discovery.call(peer, _REQUEST + round.to_bytes(8, "big") + stage.to_bytes(4, "big"))
        if answer:
            self.on_announcement(answer, peer, requested=True)
