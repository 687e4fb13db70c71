"""The fetcher: gets bodies by their hash, from the author or another holder, checks them and decodes them.

At most four bodies are fetched at once. A body is read no further than the size that its author signed, its hash is
checked before it is decoded, and its header must agree with the announcement. A fault is counted under its reason and
never raised. An entry that cannot be used is marked `failed`; one whose author is offline may be tried again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from hashlib import sha256

from swarmgame.game.state import PeerId
from swarmgame.swarm.body_store import BodyStore
from swarmgame.swarm.clock import Clock
from swarmgame.swarm.codec import DecodedShard, Limits, Malformed, decode_shard
from swarmgame.swarm.inbox import InboxEntry
from swarmgame.swarm.membership import Backoff
from swarmgame.swarm.messages import Rejected, check_shard, parse_index
from swarmgame.swarm.transport import Oversized, Transport, Unreachable, body_seconds

logger = logging.getLogger(__name__)

STREAMS = 4
_OFFLOAD_BYTES = 512 << 10
"""Decoding a smaller body takes less time than handing over the interpreter's lock."""


class Fetcher:
    """Bodies by hash.

    Args:
        run: bodies of another run are refused.
        outcomes: where faults are counted.
    """

    def __init__(
        self,
        run: str,
        transport: Transport,
        store: BodyStore,
        backoff: Backoff,
        clock: Clock,
        limits: Limits,
        outcomes: Counter[str],
    ) -> None:
        self.run = run
        self.transport = transport
        self.store = store
        self.backoff = backoff
        self.clock = clock
        self.limits = limits
        self.outcomes = outcomes
        self._streams = asyncio.Semaphore(STREAMS)

    async def fetch_index(self, entry: InboxEntry, others: Sequence[PeerId] = ()) -> bool:
        """Set `entry.shards`. Return False if that is impossible, for now (author offline) or ever (`entry.failed`)."""
        if entry.shards is None and not entry.failed:
            announcement = entry.announcement
            packed = announcement.index or await self._body(entry, announcement.root, announcement.index_bytes, others)
            if packed is not None:
                self.set_index(entry, packed)
        return entry.shards is not None and not entry.failed

    def set_index(self, entry: InboxEntry, packed: bytes) -> None:
        """Read an index; one that cannot be used makes the entry `failed`."""
        try:
            entry.shards = parse_index(packed, self.limits)
            entry.index = b"" if entry.announcement.index else packed
        except Rejected as error:
            self._fail(entry, error.reason)

    async def fetch_all(self, entry: InboxEntry, others: Sequence[PeerId] = ()) -> bool:
        """Fetch everything that an entry names."""
        if not await self.fetch_index(entry, others):
            return False
        assert entry.shards is not None
        fetched = await asyncio.gather(
            *(self.fetch_shard(entry, position, others) for position in range(len(entry.shards)))
        )
        return all(fetched)

    async def fetch_shard(self, entry: InboxEntry, position: int, others: Sequence[PeerId] = ()) -> bool:
        """Fetch one shard of an entry whose index is known, into `entry.parts`."""
        assert entry.shards is not None
        shard = entry.shards[position]
        if position in entry.parts:
            return True
        if entry.failed:
            return False
        body = await self._body(entry, shard.name, shard.size, others)
        if body is None:
            return False
        try:
            decoded = await self._decoded(body)
        except Malformed as error:
            return self._reject(entry, error)
        return self._keep(entry, position, decoded)

    def decode_stored(self, entry: InboxEntry) -> bool:
        """Decode an entry whose bodies, all small, came with it. Return False if something is left to fetch or is
        wrong.
        """
        if entry.shards is None or entry.failed or sum(shard.size for shard in entry.shards) >= _OFFLOAD_BYTES:
            return False
        for position, shard in enumerate(entry.shards):
            body = self.store.get(shard.name)
            if body is None:
                return False
            try:
                decoded = decode_shard(body, self.limits)
            except Malformed as error:
                return self._reject(entry, error)
            if not self._keep(entry, position, decoded):
                return False
        return True

    def _keep(self, entry: InboxEntry, position: int, decoded: DecodedShard) -> bool:
        assert entry.shards is not None
        try:
            entry.parts[position] = check_shard(decoded, self.run, entry.announcement, entry.shards[position])
        except Malformed as error:
            return self._reject(entry, error)
        return True

    def _reject(self, entry: InboxEntry, error: Malformed) -> bool:
        logger.info("refused a body of %s: %s", entry.announcement.peer, error)
        self._fail(entry, error.reason)
        return False

    async def _decoded(self, body: bytes) -> DecodedShard:
        if len(body) < _OFFLOAD_BYTES:
            return decode_shard(body, self.limits)
        return await self.clock.offload(lambda: decode_shard(body, self.limits))

    async def _body(self, entry: InboxEntry, name: bytes, size: int, others: Sequence[PeerId]) -> bytes | None:
        """Return a body whose hash is right, or None."""
        stored = self.store.get(name)
        if stored is not None:
            return stored
        author = entry.announcement.peer
        async with self._streams:
            for holder in (author, *(other for other in others if other != author)):
                if self.backoff.is_backing_off(holder, self.clock.now()):
                    continue
                try:
                    body = await self.transport.fetch(holder, name, size, body_seconds(size))
                except Unreachable:
                    self.backoff.failed(holder, self.clock.now())
                    self.outcomes["unreachable"] += 1
                    continue
                except Oversized:
                    if holder == author:
                        self._fail(entry, "too-large")
                        return None
                    self.outcomes["too-large"] += 1
                    continue
                if body is None:
                    if holder == author:
                        self.outcomes["not-there"] += 1
                    continue
                if sha256(body).digest() != name:
                    if holder == author:
                        self._fail(entry, "bad-hash")
                        return None
                    self.outcomes["bad-hash"] += 1
                    continue
                self.store.cache(entry.announcement.round, name, body)
                return body
        return None

    def _fail(self, entry: InboxEntry, reason: str) -> None:
        entry.failed = reason
        self.outcomes[reason] += 1
