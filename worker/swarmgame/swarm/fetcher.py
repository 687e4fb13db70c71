"""The fetcher: gets bodies by their hash, from the author or from whoever has them, checks them, decodes them.

Four bodies at once, whatever their number. A body is read no further than the size that its author signed, its hash is
checked before it is decoded, and its header must say what the announcement said. Invariant: a fault is counted under
its reason and never raised: a letter that cannot be used is marked `failed`, one whose author is away may be tried
again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from hashlib import sha256

from swarmgame.game.state import PeerId
from swarmgame.swarm.clock import Clock
from swarmgame.swarm.codec import DecodedShard, Limits, Malformed, decode_shard
from swarmgame.swarm.inbox import InboxEntry
from swarmgame.swarm.membership import Backoff
from swarmgame.swarm.messages import Rejected, parse_index
from swarmgame.swarm.store import Store
from swarmgame.swarm.transports.base import Oversized, Transport, Unreachable, body_seconds

logger = logging.getLogger(__name__)

STREAMS = 4
CONTRIBUTION_BYTES = 256 << 20
"""The most that one peer may say in one stage."""
_OFFLOAD_BYTES = 512 << 10
"""Below, a decode takes less than the handing over of the interpreter's lock would."""


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
        store: Store,
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

    async def index(self, letter: InboxEntry, others: Sequence[PeerId] = ()) -> bool:
        """Makes `letter.entries` known. False when that is impossible, now (author away) or ever (`letter.failed`)."""
        if letter.entries is None and not letter.failed:
            announcement = letter.announcement
            packed = announcement.index or await self._body(letter, announcement.root, announcement.index_bytes, others)
            if packed is not None:
                self.take_index(letter, packed)
        return letter.entries is not None and not letter.failed

    def take_index(self, letter: InboxEntry, packed: bytes) -> None:
        """Reads an index that is here already; one that cannot be used makes the letter `failed`."""
        try:
            entries = parse_index(packed)
        except Rejected as error:
            self._fail(letter, error.reason)
            return
        sizes = [entry.size for entry in entries]
        if max(sizes, default=0) > self.limits.shard_bytes or sum(sizes) > CONTRIBUTION_BYTES:
            self._fail(letter, "too-large")
        else:
            letter.entries = entries

    async def whole(self, letter: InboxEntry, others: Sequence[PeerId] = ()) -> bool:
        """Fetches everything that a letter names."""
        if not await self.index(letter, others):
            return False
        assert letter.entries is not None
        fetched = await asyncio.gather(
            *(self.part(letter, position, others) for position in range(len(letter.entries)))
        )
        return all(fetched)

    async def part(self, letter: InboxEntry, position: int, others: Sequence[PeerId] = ()) -> bool:
        """Fetches one shard of a letter whose entries are known, into `letter.parts`."""
        assert letter.entries is not None
        entry = letter.entries[position]
        if position in letter.parts:
            return True
        if letter.failed:
            return False
        body = await self._body(letter, entry.name, entry.size, others)
        if body is None:
            return False
        try:
            decoded = await self._decoded(body)
        except Malformed as error:
            return self._refused(letter, error)
        return self._keep(letter, position, decoded)

    def whole_at_hand(self, letter: InboxEntry) -> bool:
        """Reads a letter whose bodies, all small, have come with it. False when something is left to fetch, or went
        wrong.
        """
        if letter.entries is None or letter.failed or sum(entry.size for entry in letter.entries) >= _OFFLOAD_BYTES:
            return False
        for position, entry in enumerate(letter.entries):
            body = self.store.get(entry.name)
            if body is None:
                return False
            try:
                decoded = decode_shard(body, self.limits)
            except Malformed as error:
                return self._refused(letter, error)
            if not self._keep(letter, position, decoded):
                return False
        return True

    def _keep(self, letter: InboxEntry, position: int, decoded: DecodedShard) -> bool:
        assert letter.entries is not None
        part, said = decoded.contribution, letter.announcement
        where = (decoded.run, part.peer, part.round, part.stage, len(part.groups))
        if where != (self.run, said.peer, said.round, said.stage, letter.entries[position].groups):
            return self._refused(letter, Malformed("malformed", "the body is not what was announced"))
        letter.parts[position] = part
        return True

    def _refused(self, letter: InboxEntry, error: Malformed) -> bool:
        logger.info("a body of %s is refused: %s", letter.announcement.peer, error)
        self._fail(letter, error.reason)
        return False

    async def _decoded(self, body: bytes) -> DecodedShard:
        if len(body) < _OFFLOAD_BYTES:
            return decode_shard(body, self.limits)
        return await self.clock.offload(lambda: decode_shard(body, self.limits))

    async def _body(self, letter: InboxEntry, name: bytes, size: int, others: Sequence[PeerId]) -> bytes | None:
        """A body whose hash is right, or None."""
        known = self.store.get(name)
        if known is not None:
            return known
        author = letter.announcement.peer
        async with self._streams:
            for holder in (author, *(other for other in others if other != author)):
                if self.backoff.leave_alone(holder, self.clock.now()):
                    continue
                try:
                    body = await self.transport.fetch(holder, name, size, body_seconds(size))
                except Unreachable:
                    self.backoff.failed(holder, self.clock.now())
                    self.outcomes["unreachable"] += 1
                    continue
                except Oversized:
                    if holder == author:
                        self._fail(letter, "too-large")
                        return None
                    self.outcomes["too-large"] += 1
                    continue
                if body is None:
                    if holder == author:
                        self.outcomes["not-there"] += 1
                    continue
                if sha256(body).digest() != name:
                    if holder == author:
                        self._fail(letter, "bad-hash")
                        return None
                    self.outcomes["bad-hash"] += 1
                    continue
                self.store.cache(letter.announcement.round, name, body)
                return body
        return None

    def _fail(self, letter: InboxEntry, reason: str) -> None:
        letter.failed = reason
        self.outcomes[reason] += 1
