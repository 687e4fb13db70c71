"""The fetcher: gets bodies by their hash, from the author or another holder, checks them and decodes them.

A few bodies are fetched at once (`streams`). A body is read no further than the size that its author signed, its hash
is checked before it is decoded, it is expanded no further than the memory that its author may have (see `memory`), and
its header must agree with the announcement. A fault is counted under its reason and never raised. An entry that cannot
be used is marked `failed`; one whose author is offline may be tried again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256

from swarmgame.game.state import Contribution, PeerId
from swarmgame.swarm.body_store import BodyStore
from swarmgame.swarm.clock import Clock
from swarmgame.swarm.codec import DecodedShard, Limits, Malformed, decode_shard
from swarmgame.swarm.decoding_time import DecodingTime
from swarmgame.swarm.inbox import Inbox, InboxEntry
from swarmgame.swarm.membership import Backoff
from swarmgame.swarm.memory import decoded_bytes, index_bytes
from swarmgame.swarm.messages import Rejected, check_shard, parse_index
from swarmgame.swarm.streams import Crowded, Streams, TooSlow
from swarmgame.swarm.transport import Oversized, Transport, Unreachable, body_seconds

logger = logging.getLogger(__name__)

_OFFLOAD_BYTES = 512 << 10
"""Decoding a smaller body takes less time than handing over the interpreter's lock."""


class Fetcher:
    """Bodies by hash.

    Args:
        run: bodies of another run are refused.
        inbox: holds the entries, the memory of each author, and the counts of faults.
        streams_of: the places for fetches from an author.
        rollout_tokens: most ids of a rollout; 0: not known, and not bounded.
    """

    def __init__(
        self,
        run: str,
        transport: Transport,
        store: BodyStore,
        backoff: Backoff,
        clock: Clock,
        limits: Limits,
        inbox: Inbox,
        streams_of: Callable[[PeerId], Streams],
        rollout_tokens: int = 0,
    ) -> None:
        self.run = run
        self.transport = transport
        self.store = store
        self.backoff = backoff
        self.clock = clock
        self.limits = limits
        self.inbox = inbox
        self.outcomes = inbox.outcomes
        self.streams_of = streams_of
        self.rollout_tokens = rollout_tokens
        self.decoding_time = DecodingTime()
        self.on_index: Callable[[InboxEntry], None] = lambda entry: None
        """Called when the index of an entry is here."""

    async def fetch_index(self, entry: InboxEntry, others: Sequence[PeerId] = ()) -> bool:
        """Set `entry.shards`. Return False if that is impossible, for now (author offline) or ever (`entry.failed`)."""
        if entry.shards is None and not entry.failed:
            announcement = entry.announcement
            if not self._has_room(entry, announcement.index_bytes):
                return False
            packed = announcement.index or await self._body(entry, announcement.root, announcement.index_bytes, others)
            if packed is not None:
                self.set_index(entry, packed)
        return entry.shards is not None and not entry.failed

    def set_index(self, entry: InboxEntry, packed: bytes) -> None:
        """Read an index; one that cannot be used makes the entry `failed`."""
        try:
            shards = parse_index(packed, self.limits)
        except Rejected as error:
            self._fail(entry, error.reason)
            return
        size = index_bytes(len(packed), len(shards))
        if not self.inbox.keep(entry, size):
            self._fail(entry, "no-room")
            return
        entry.shards, entry.index_kept = shards, size
        entry.index = b"" if entry.announcement.index else packed
        self.on_index(entry)

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
        if entry.failed or not self._has_room(entry, shard.size):
            return False
        body = await self._body(entry, shard.name, shard.size, others)
        if body is None:
            entry.withheld.add(position)
            return False
        if not self._has_time(entry):
            return False
        try:
            if len(body) < _OFFLOAD_BYTES:
                decoded = self._decode(entry, body)
            else:
                decoded = await self.clock.offload(lambda: self._decode(entry, body))
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
            if body is None or not self._has_time(entry):
                return False
            try:
                decoded = self._decode(entry, body)
            except Malformed as error:
                return self._reject(entry, error)
            if not self._keep(entry, position, decoded):
                return False
        return True

    def _keep(self, entry: InboxEntry, position: int, decoded: DecodedShard) -> bool:
        assert entry.shards is not None
        if entry.failed:
            return False
        try:
            part = check_shard(decoded, self.run, entry.announcement, entry.shards[position])
            self._check_tokens(part)
            if position not in entry.parts and not entry.dropped:
                if not self.inbox.keep(entry, decoded_bytes(part, decoded.size)):
                    raise Malformed("no-room", "more memory than its author may have")
                entry.parts[position] = part
        except Malformed as error:
            return self._reject(entry, error)
        entry.checked += 1
        entry.withheld.discard(position)
        return True

    def _check_tokens(self, part: Contribution) -> None:
        longest = max((len(rollout.token_ids) for group in part.groups for rollout in group.rollouts), default=0)
        if self.rollout_tokens and longest > self.rollout_tokens:
            raise Malformed("too-many-tokens", f"a rollout of {longest} tokens, {self.rollout_tokens} at most")

    def _has_room(self, entry: InboxEntry, size: int) -> bool:
        """Return whether the author of an entry may have so much more memory; if not, the entry fails."""
        if size > self.inbox.kept_bytes.room(entry.kept):
            self._fail(entry, "no-room")
            return False
        return True

    def _has_time(self, entry: InboxEntry) -> bool:
        """Return whether there is time to decode a body of this author; if not, the entry fails."""
        if not entry.kept.counts and self.decoding_time.is_over:
            self._fail(entry, "beyond-budget")
            return False
        return True

    def _decode(self, entry: InboxEntry, body: bytes) -> DecodedShard:
        """Decode a body, which is not expanded beyond the memory that its author may have."""
        room = self.inbox.kept_bytes.room(entry.kept)
        limits = replace(self.limits, expanded_bytes=min(room, self.limits.expanded_bytes))
        with self.decoding_time.measured(counts=entry.kept.counts):
            return decode_shard(body, limits)

    def _reject(self, entry: InboxEntry, error: Malformed) -> bool:
        logger.debug("refused a body of %s: %s", entry.announcement.peer, error)
        self._fail(entry, error.reason)
        return False

    async def _body(self, entry: InboxEntry, name: bytes, size: int, others: Sequence[PeerId]) -> bytes | None:
        """Return a body whose hash is right, or None."""
        stored = self.store.get(name)
        if stored is not None:
            return stored
        author = entry.announcement.peer
        try:
            return await self.streams_of(author).run(author, lambda: self._body_of(entry, name, size, others))
        except TooSlow:
            self.outcomes["too-slow"] += 1
            return None
        except Crowded:
            self.outcomes["no-stream"] += 1
            return None

    async def _body_of(self, entry: InboxEntry, name: bytes, size: int, others: Sequence[PeerId]) -> bytes | None:
        if entry.dropped or entry.failed:
            return None
        author = entry.announcement.peer
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
            self.store.cache(entry.announcement.round, name, body, counts=entry.kept.counts)
            return body
        return None

    def _fail(self, entry: InboxEntry, reason: str) -> None:
        entry.failed = reason
        self.inbox.drop_parts(entry)
        self.outcomes[reason] += 1
