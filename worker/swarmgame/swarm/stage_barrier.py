"""The stage barrier: wait until a stage closes, then return the contributions of the other peers.

The quorum is counted over live members, ourselves included; in a large PULL swarm over our predecessors in the ring,
which are new in every stage. A member for which a complete deadline was waited in vain is not waited for again until
its position changes: one that hangs does not cost every stage its deadline. While it waits the barrier requests missing
announcements, with growing pauses. A contribution is returned once, the result is sorted by (round, peer), and a swarm
of one is always reported as ISOLATED.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from statistics import median_low

from swarmgame.game.protocol import ClosedBy, Collected, CollectPolicy, Exchange, Origin
from swarmgame.game.state import Contribution, PeerId
from swarmgame.swarm.codec import Malformed, merge
from swarmgame.swarm.inbox import InboxEntry
from swarmgame.swarm.node import SwarmNode
from swarmgame.swarm.topology import Offer, choose, quorum_of

_FIRST_REQUEST_SECONDS, _REQUEST_GROWTH, _MAX_REQUEST_SECONDS = 1.0, 1.5, 10.0
_REQUESTS_AT_ONCE = 8
POLL_SECONDS = 0.25
"""Neither an expired heartbeat nor the caller's stop sets an event."""
_GRACE = 0.25
"""PULL: share of the deadline that is added to it for fetching the chosen shards."""
_MAX_GRACE_SECONDS = 10.0


Stopped = Callable[[], bool]


class StageBarrier:
    """Waits for stages and chooses contributions, for one node."""

    def __init__(self, node: SwarmNode) -> None:
        self.node = node
        self._requested_before = False
        self._bytes = (0, 0)
        self._hanging: dict[PeerId, tuple[int, int]] = {}
        self._random = random.Random(node.peer)

    async def collect(self, round: int, stage: int, policy: CollectPolicy, stopped: Stopped) -> Collected:
        """See `CommunicationManager.collect`; `stopped` is called on the loop."""
        node = self.node
        started = node.clock.now()
        node.policy = policy
        node.progress(round, stage)
        closed_by = await self._wait(round, stage, policy, stopped, started)
        now = node.clock.now()
        expected = node.expected(round, stage)
        node.inbox.close(round, stage)
        if policy.exchange is Exchange.GATHER:
            entries = [entry for entry in self._candidates(round, stage, policy) if entry.complete and not entry.failed]
            fetched = [(entry, sorted(entry.parts)) for entry in entries]
        else:
            grace = min(_MAX_GRACE_SECONDS, _GRACE * policy.deadline_seconds)
            fetched = await self._pull(
                round, stage, policy, stopped, max(started + policy.deadline_seconds, now) + grace
            )
        ready = {peer for peer, entry in node.inbox.stage(round, stage).items() if self._ready(entry, policy)}
        received = [
            (contribution, _origin(entry, positions))
            for entry, positions in fetched
            if (contribution := self._merged(entry, positions)) is not None
        ]
        received.sort(key=lambda each: (each[0].round, each[0].peer, each[0].stage))
        traffic = node.transport.traffic
        bytes_sent, bytes_received = traffic.bytes_sent, traffic.bytes_received
        result = Collected(
            contributions=tuple(contribution for contribution, _ in received),
            members=tuple(sorted([*node.members.others(now), node.peer])),
            missing=tuple(peer for peer in expected if peer not in ready),
            closed_by=closed_by,
            outcomes=node.inbox.take_outcomes(),
            seconds=node.clock.now() - started,
            bytes_sent=bytes_sent - self._bytes[0],
            bytes_received=bytes_received - self._bytes[1],
            origins=tuple(origin for _, origin in received),
        )
        self._bytes = (bytes_sent, bytes_received)
        return result

    # ── waiting
    async def _wait(self, round: int, stage: int, policy: CollectPolicy, stopped: Stopped, started: float) -> ClosedBy:
        node = self.node
        deadline = started + policy.deadline_seconds
        # The first wait requests at once: announcements sent before others knew us did not reach us.
        pause = _FIRST_REQUEST_SECONDS
        next_request = started + (pause if self._requested_before else 0.0)
        while True:
            node.changed.clear()
            now = node.clock.now()
            expected = node.expected(round, stage)
            entries = node.inbox.stage(round, stage)
            missing = [peer for peer in expected if peer not in entries or not self._ready(entries[peer], policy)]
            if not expected:
                return ClosedBy.ISOLATED
            awaited = [peer for peer in expected if not self._is_hanging(peer)]
            if 1 + len(expected) - len(missing) >= quorum_of(policy, 1 + len(awaited)):
                self._requested_before = True
                return ClosedBy.QUORUM
            if self._is_lagging(round, policy, now):
                self._requested_before = True
                return ClosedBy.LAGGING
            if now >= deadline or stopped():
                if now >= deadline:
                    self._hanging = {peer: node.members.position(peer) for peer in missing}
                self._requested_before = True
                return ClosedBy.DEADLINE
            if now >= next_request:
                self._request_missing(missing, entries, round, stage)
                if self._requested_before:
                    pause = min(_MAX_REQUEST_SECONDS, pause * _REQUEST_GROWTH)
                self._requested_before = True
                next_request = now + pause
            await node.clock.wait(node.changed, min(deadline - now, next_request - now, POLL_SECONDS))

    def _is_hanging(self, peer: PeerId) -> bool:
        """Whether a member is still where it was when a deadline passed without its contribution."""
        return self._hanging.get(peer) == self.node.members.position(peer)

    def _is_lagging(self, round: int, policy: CollectPolicy, now: float) -> bool:
        """Whether most others are so far ahead that they neither accept nor serve contributions of this round."""
        rounds = [member.round for member in self.node.members.members(now) if member.peer != self.node.peer]
        return bool(rounds) and median_low(rounds) > round + policy.max_lag

    def _request_missing(
        self, missing: Sequence[PeerId], entries: dict[PeerId, InboxEntry], round: int, stage: int
    ) -> None:
        node = self.node
        chosen = missing if len(missing) <= _REQUESTS_AT_ONCE else self._random.sample(list(missing), _REQUESTS_AT_ONCE)
        for peer in chosen:
            if peer not in entries:
                node.request_announcement(peer, round, stage)
            elif not entries[peer].failed:
                node.spawn(node.fetch_entry(entries[peer]))

    @staticmethod
    def _ready(entry: InboxEntry, policy: CollectPolicy) -> bool:
        if entry.failed or entry.consumed:
            return not entry.failed
        return entry.complete if policy.exchange is Exchange.GATHER else entry.shards is not None

    # ── choosing
    def _candidates(self, round: int, stage: int, policy: CollectPolicy) -> list[InboxEntry]:
        inbox = self.node.inbox
        current = [entry for entry in inbox.stage(round, stage).values() if not entry.consumed]
        late = [
            entry
            for entry in inbox.earlier(round, policy.max_staleness)
            if (entry.announcement.round, entry.announcement.stage, entry.announcement.peer) not in policy.collected
        ]
        return [*current, *late]

    async def _pull(
        self, round: int, stage: int, policy: CollectPolicy, stopped: Stopped, until: float
    ) -> list[tuple[InboxEntry, list[int]]]:
        """Fetch the chosen shards; if that fails the next best, until there are enough or the time is over."""
        node = self.node
        entries = {}
        offers = []
        for entry in self._candidates(round, stage, policy):
            if entry.shards is not None and not entry.failed:
                origin = entry.announcement
                entry.consumed = True
                entries[origin.peer, origin.round, origin.stage] = entry
                offers += [
                    Offer(origin.peer, origin.round, origin.stage, at, shard) for at, shard in enumerate(entry.shards)
                ]
        fetched: list[Offer] = []
        tried: set[Offer] = set()
        while chosen := choose([offer for offer in offers if offer not in tried], policy, fetched):
            tried.update(chosen)
            fetches = {
                asyncio.ensure_future(
                    node.fetch_shard(entries[offer.peer, offer.round, offer.stage], offer.position)
                ): offer
                for offer in chosen
            }
            pending = set(fetches)
            while pending and not stopped() and node.clock.now() < until:
                node.changed.clear()
                for fetch in pending:
                    fetch.add_done_callback(lambda _: node.changed.set())
                await node.clock.wait(node.changed, min(POLL_SECONDS, until - node.clock.now()))
                pending = {fetch for fetch in pending if not fetch.done()}
            for fetch in pending:
                fetch.cancel()
            await asyncio.gather(*fetches, return_exceptions=True)
            fetched += [offer for fetch, offer in fetches.items() if not fetch.cancelled() and fetch.result()]
            if pending:
                break
        positions: dict[tuple[PeerId, int, int], list[int]] = {}
        for offer in fetched:
            positions.setdefault((offer.peer, offer.round, offer.stage), []).append(offer.position)
        return [(entries[key], sorted(found)) for key, found in positions.items()]

    def _merged(self, entry: InboxEntry, positions: Sequence[int]) -> Contribution | None:
        """Return the fetched parts of an entry as one contribution, and mark the entry as consumed."""
        entry.consumed = True
        try:
            merged = merge([entry.parts[position] for position in positions])
        except Malformed as error:
            self.node.outcomes[error.reason] += 1
            entry.failed = error.reason
            return None
        entry.parts.clear()
        return merged


def _origin(entry: InboxEntry, positions: Sequence[int]) -> Origin:
    assert entry.shards is not None, "its parts were fetched by their names"
    shards = [entry.shards[position] for position in positions]
    return Origin(
        announcement=entry.announcement.message,
        index=entry.index,
        shards=tuple(shard.name for shard in shards),
        groups=tuple(shard.groups for shard in shards),
    )
