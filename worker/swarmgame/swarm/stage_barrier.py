"""The stage barrier: wait until a stage closes, then return the contributions of the other peers.

The quorum is counted over the members that count, by their weight, ourselves included; in a large PULL swarm over our
predecessors in the ring, which are new in every stage. Anchors are waited for until the deadline of the policy, any
other peer until a little more than the usual time of the stage. A peer that is waited for in vain stops counting: one
that hangs does not cost every stage its deadline. While it waits the barrier requests missing announcements, with
growing pauses. A contribution is returned once, the result is sorted by (round, peer), and a swarm of one is always
reported as ISOLATED.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from swarmgame.game.present_round import present_round
from swarmgame.game.protocol import ClosedBy, Collected, CollectPolicy, Exchange, Origin
from swarmgame.game.state import Contribution, PeerId
from swarmgame.swarm.attendance import Attendance, is_ready
from swarmgame.swarm.codec import Malformed, merge
from swarmgame.swarm.counted_peers import Standing
from swarmgame.swarm.inbox import InboxEntry
from swarmgame.swarm.node import SwarmNode
from swarmgame.swarm.pull import ASLEEP_SECONDS, POLL_SECONDS, SHARE_OF_OTHERS, PullTimes, ShardPuller, Stopped
from swarmgame.swarm.stage_times import StageTimes, patience, reached
from swarmgame.swarm.topology import is_quorum

_FIRST_REQUEST_SECONDS, _REQUEST_GROWTH, _MAX_REQUEST_SECONDS = 1.0, 1.5, 10.0
_REQUESTS_AT_ONCE = 8
_REQUESTS_OF_A_RESTART = 32
"""Peers of which a peer that resumes requests the last announcements."""
_GRACE = 0.25
"""PULL: share of the deadline that is added to it for fetching the chosen shards."""
_MAX_GRACE_SECONDS = 10.0
_FIRST_FETCH_SECONDS = 1.0
"""PULL: how long bodies of peers that do not count may hold a stage whose usual time is not known yet."""


class StageBarrier:
    """Waits for stages and chooses contributions, for one node."""

    def __init__(self, node: SwarmNode) -> None:
        self.node = node
        self._requested_before = False
        self._bytes = (0, 0)
        self._random = random.Random(node.peer)
        self._attendance = Attendance(node)
        self._puller = ShardPuller(node)
        self._times = StageTimes()
        self._usual: float | None = None
        self._last_closed: float | None = None
        self._missed: set[PeerId] = set()
        self._asleep = 0.0

    async def collect(self, round: int, stage: int, policy: CollectPolicy, stopped: Stopped) -> Collected:
        """See `CommunicationManager.collect`; `stopped` is called on the loop."""
        node = self.node
        started = node.clock.now()
        node.policy = policy
        node.progress(round, stage)
        closed_by = await self._wait(round, stage, policy, stopped, started)
        now = node.clock.now()
        expected = sorted({*node.expected(round, stage), *self._missed, *node.members.missed_anchors(now)})
        node.inbox.close(round, stage)
        if policy.exchange is Exchange.GATHER:
            entries = [entry for entry in self._candidates(round, stage, policy) if entry.complete and not entry.failed]
            fetched = [(entry, sorted(entry.parts)) for entry in entries]
        else:
            candidates = self._candidates(round, stage, policy)
            offered = [each for each in candidates if each.shards is not None and not each.failed]
            pulled = await self._puller.pull(round, offered, policy, self._pull_times(policy, started, now), stopped)
            fetched = pulled.fetched
            self._attendance.miss(self._without_anchors(pulled.late), round)
        ready = {peer for peer, entry in node.inbox.stage(round, stage).items() if is_ready(entry, policy)}
        received = [
            (contribution, _origin(entry, positions), entry.arrival)
            for entry, positions in fetched
            if (contribution := self._merged(entry, positions)) is not None
        ]
        received.sort(key=lambda each: (each[0].round, each[0].peer, each[0].stage))
        if closed_by is not ClosedBy.LAGGING and not stopped():
            self._attendance.close(round, stage, expected, policy, self._usual)
        self._last_closed = node.clock.now()
        traffic = node.transport.traffic
        bytes_sent, bytes_received = traffic.bytes_sent, traffic.bytes_received
        result = Collected(
            contributions=tuple(contribution for contribution, _, _ in received),
            members=tuple(sorted([*node.members.others(now), node.peer])),
            missing=tuple(peer for peer in expected if peer not in ready),
            closed_by=closed_by,
            outcomes=node.inbox.take_outcomes(),
            seconds=node.clock.now() - started,
            bytes_sent=bytes_sent - self._bytes[0],
            bytes_received=bytes_received - self._bytes[1],
            origins=tuple(origin for _, origin, _ in received),
            arrivals=tuple(arrival for _, _, arrival in received),
            standings={peer: str(standing) for peer, standing in node.members.standings(now).items()},
            clock_error=node.discovery.clock_error(),
        )
        self._bytes = (bytes_sent, bytes_received)
        return result

    # ── checkpoint
    def state_dict(self) -> Mapping[str, Any]:
        """Return what decides which peers count and how long they are waited for."""
        return {
            **self._attendance.state_dict(),
            "bans": self.node.inbox.bans(),
            "times": self._times.state_dict(),
            **self._puller.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back the state of a checkpoint, once its members are expected. It has no "bans" if an earlier release
        has written it.
        """
        self._attendance.load_state_dict(state)
        self.node.inbox.restore_bans(state.get("bans", {}))
        self._times = StageTimes.restored(state["times"])
        self._puller.load_state_dict(state)

    async def catch_up(self) -> None:
        """Request the announcements that were lost with the last process: of rounds that are not judged yet, and those
        that show where the others are, since positions alone are not believed.
        """
        node, now = self.node, self.node.clock.now()
        others = node.members.first_counted(node.members.confirmed(now), now)[:_REQUESTS_OF_A_RESTART]
        wanted = {(peer, *stage) for peer in others for stage in self._attendance.open_stages()}
        wanted |= {(peer, round, node.settings.stages - 1) for peer, round in node.members.unproven(now, 0).items()}
        await asyncio.gather(*(node.fetch_announcement(*each) for each in sorted(wanted)))

    # ── waiting
    async def _wait(self, round: int, stage: int, policy: CollectPolicy, stopped: Stopped, started: float) -> ClosedBy:
        node = self.node
        self._missed, self._asleep = set(), 0.0
        deadline = started + policy.deadline_seconds
        began = started if self._last_closed is None else self._last_closed
        self._usual = self._times.usual(stage, started - began)
        until = deadline if self._usual is None else min(deadline, began + patience(self._usual))
        arrivals: dict[PeerId, float] = {}
        # The first wait requests at once: announcements sent before others knew us did not reach us.
        pause = _FIRST_REQUEST_SECONDS
        next_request = started + (pause if self._requested_before else 0.0)
        while True:
            node.changed.clear()
            node.discovery.awake()
            now = node.clock.now()
            weights = node.members.weights(now)
            expected = node.expected(round, stage)
            entries = node.inbox.stage(round, stage)
            missing = [peer for peer in expected if peer not in entries or not is_ready(entries[peer], policy)]
            for peer in expected:
                if peer not in missing:
                    arrivals.setdefault(peer, now)
            if closed_by := self._closed_by(expected, missing, weights, policy):
                self._requested_before = True
                self._note_time(stage, arrivals, {peer: weights[peer] for peer in expected}, started, now)
                return closed_by
            if self._is_lagging(round, policy, now):
                self._requested_before = True
                return ClosedBy.LAGGING
            late = missing if now >= deadline else self._without_anchors(missing) if now >= until else []
            if late:
                self._missed.update(late)
                self._attendance.miss(late, round)
                if now < deadline:
                    continue
            if now >= deadline or stopped():
                self._requested_before = True
                return ClosedBy.DEADLINE
            if now >= next_request:
                self._request_missing(missing, entries, round, stage)
                self._request_proofs(policy, now)
                if self._requested_before:
                    pause = min(_MAX_REQUEST_SECONDS, pause * _REQUEST_GROWTH)
                self._requested_before = True
                next_request = now + pause
            soonest = min(until if now < until else deadline, next_request)
            await node.clock.wait(node.changed, min(soonest - now, POLL_SECONDS))
            asleep = node.clock.now() - now - POLL_SECONDS
            if asleep > ASLEEP_SECONDS:  # this process was stopped: the others are not to blame
                deadline, until = deadline + asleep, until + asleep
                self._asleep += asleep

    def _pull_times(self, policy: CollectPolicy, started: float, now: float) -> PullTimes:
        """Return until when bodies may hold a stage that is over.

        Args:
            started, now: when the wait for announcements began and ended; time in which this process was stopped
                does not count.
        """
        started += self._asleep
        grace = min(_MAX_GRACE_SECONDS, _GRACE * policy.deadline_seconds)
        last = max(started + policy.deadline_seconds, now) + grace
        if self._usual is None:
            return PullTimes(last, last, min(last, now + _FIRST_FETCH_SECONDS))
        others = min(last, now + SHARE_OF_OTHERS * self._usual)
        began = started if self._last_closed is None else self._last_closed + self._asleep
        return PullTimes(last, min(last, max(others, began + patience(self._usual))), others)

    def _closed_by(
        self,
        expected: Sequence[PeerId],
        missing: Sequence[PeerId],
        weights: Mapping[PeerId, float],
        policy: CollectPolicy,
    ) -> ClosedBy | None:
        """Return why the stage is over; None if it is not."""
        if not expected:
            return ClosedBy.ISOLATED if self._is_alone() else ClosedBy.DEADLINE
        weight = 1 + sum(weights[peer] for peer in expected)
        if is_quorum(policy, weight - sum(weights[peer] for peer in missing), weight):
            return ClosedBy.DEADLINE if self._missed else ClosedBy.QUORUM
        return None

    def _is_alone(self) -> bool:
        """Whether no other peer is there that counts or did so lately: one that missed or is banned may come back."""
        node = self.node
        standings = node.members.standings(node.clock.now()).values()
        return not (self._missed or Standing.MISSED in standings or node.inbox.has_banned_counted())

    def _without_anchors(self, peers: Iterable[PeerId]) -> list[PeerId]:
        rules = self.node.members.counted.rules
        return [peer for peer in peers if not rules.is_anchor(peer)]

    def _note_time(
        self, stage: int, arrivals: Mapping[PeerId, float], weights: Mapping[PeerId, float], own: float, now: float
    ) -> None:
        if self._last_closed is not None:
            self._times = self._times.add(stage, reached(arrivals, weights, own, now) - self._last_closed)

    def _is_lagging(self, round: int, policy: CollectPolicy, now: float) -> bool:
        """Whether most others are so far ahead that they neither accept nor serve contributions of this round."""
        present = present_round(self.node.members.members(now), self.node.peer)
        return present is not None and present > round + policy.max_lag

    def _request_proofs(self, policy: CollectPolicy, now: float) -> None:
        """Request an announcement of peers that say they are ahead: positions alone are not believed."""
        unproven = sorted(self.node.members.unproven(now, policy.max_lag).items())
        for peer, round in self._random.sample(unproven, min(len(unproven), _REQUESTS_AT_ONCE)):
            self.node.request_announcement(peer, round, self.node.settings.stages - 1)

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

    # ── results
    def _candidates(self, round: int, stage: int, policy: CollectPolicy) -> list[InboxEntry]:
        inbox = self.node.inbox
        current = [entry for entry in inbox.stage(round, stage).values() if not entry.consumed]
        late = [
            entry
            for entry in inbox.earlier(round, policy.max_staleness)
            if (entry.announcement.round, entry.announcement.stage, entry.announcement.peer) not in policy.collected
        ]
        return [*current, *late]

    def _merged(self, entry: InboxEntry, positions: Sequence[int]) -> Contribution | None:
        """Return the fetched parts of an entry as one contribution, and mark the entry as consumed; None where it has
        failed since, which drops its parts.
        """
        entry.consumed = True
        if entry.failed or any(position not in entry.parts for position in positions):
            return None
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
