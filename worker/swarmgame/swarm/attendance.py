"""Attendance: what each peer has delivered of the rounds that are over, for one node.

A round is judged when its late contributions can no longer be used, so that a peer that is a little late still counts.
A peer for which a stage waited until its deadline stops counting at once. Newcomers are watched: their announcements
are requested where they did not come, and in PULL mode one of their shards is fetched, since an index is free. Bodies
may come as long after the announcement as a stage waits for a peer that counts; the round is decided when they do.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from swarmgame.game.protocol import CollectPolicy, Exchange
from swarmgame.game.state import PeerId
from swarmgame.seeds import derive_seed
from swarmgame.swarm.counted_peers import COUNTING, CountedPeers, Standing
from swarmgame.swarm.inbox import InboxEntry
from swarmgame.swarm.node import NEWCOMERS, SwarmNode
from swarmgame.swarm.stage_times import patience

logger = logging.getLogger(__name__)

_SUSPICIOUS_ROUNDS = 3
"""Rounds more than a newcomer needs, after which the log says that peers do not come to count."""
_FIRST_PROBE_SECONDS = 10.0
"""How long bodies that are watched may take while the usual time of a stage is not known."""
_POLL_SECONDS = 0.1


def is_ready(entry: InboxEntry, policy: CollectPolicy) -> bool:
    """Whether a contribution is here, as far as a stage needs it."""
    if entry.failed or entry.consumed:
        return not entry.failed
    return entry.complete or entry.came if policy.exchange is Exchange.GATHER else entry.shards is not None


@dataclass
class _OpenRound:
    """A round that is not judged yet: its closed stages, the peers that were expected in one of them, those that had
    delivered when a checkpoint was made, and the newcomers that were watched.
    """

    stages: set[int] = field(default_factory=set)
    expected: set[PeerId] = field(default_factory=set)
    delivered: set[PeerId] = field(default_factory=set)
    watched: set[PeerId] = field(default_factory=set)


class Attendance:
    """Keeps the standings of one node's members."""

    def __init__(self, node: SwarmNode) -> None:
        self.node = node
        self._open: dict[int, _OpenRound] = {}
        self._waiting: dict[PeerId, int] = {}
        self._warned = self._warned_of_address = False
        self._watched: list[PeerId] = []
        self._probing: dict[tuple[int, int, PeerId], asyncio.Task[Any]] = {}
        self._undecided: dict[tuple[int, PeerId], Sequence[InboxEntry]] = {}
        """Judged rounds of newcomers, with the entries of their stages, of which a body is on its way."""
        self._patience = _FIRST_PROBE_SECONDS
        node.fetcher.on_index = self._probe_late

    def miss(self, peers: Iterable[PeerId], round: int) -> None:
        """Stop counting peers for which a stage waited until its deadline."""
        self._set(self.node.members.counted.miss(peers, round))

    def close(
        self, round: int, stage: int, expected: Collection[PeerId], policy: CollectPolicy, usual: float | None = None
    ) -> None:
        """Note that a stage has closed, and judge the rounds that are over.

        Args:
            usual: seconds that this stage usually takes; None while that is not known.
        """
        members = self.node.members
        self._patience = _FIRST_PROBE_SECONDS if usual is None else patience(usual)
        members.counted = members.counted.start()
        entry = self._open.setdefault(round, _OpenRound())
        entry.stages.add(stage)
        entry.expected.update(expected)
        for number in sorted(self._open):
            if number <= round - policy.max_lag:
                judged = self._open.pop(number)
                if number >= round - self.node.settings.keep_rounds:
                    self._judge(number, judged, policy, round)
        self._watch(round, stage, policy)

    def _judge(self, number: int, judged: _OpenRound, policy: CollectPolicy, round: int) -> None:
        complete = self._complete(number, judged, policy)
        undecided = {}
        for peer in {peer for then, _, peer in self._probing if then == number} - complete:
            entries = [self.node.inbox.stage(number, stage).get(peer) for stage in sorted(judged.stages)]
            here = [entry for entry in entries if entry is not None and not entry.failed]
            if len(here) == len(entries) and not self._is_invalid(number, judged, peer, policy):
                undecided[peer] = here
        self._undecided.update({(number, peer): entries for peer, entries in undecided.items()})
        # Those that have failed make room for others; the rest is watched until it counts.
        failed = judged.watched - complete - undecided.keys()
        self._watched = [peer for peer in self._watched if peer not in failed]
        self._set(self.node.members.counted.judge(number, complete, judged.expected, round, undecided.keys()))

    def _set(self, changed: CountedPeers) -> None:
        members = self.node.members
        missed = [
            peer
            for peer, record in changed.records.items()
            if record.standing is Standing.MISSED and members.counted.standing(peer) is not Standing.MISSED
        ]
        self.node.outcomes["missed"] += len(missed)
        members.counted = changed

    def _complete(self, round: int, judged: _OpenRound, policy: CollectPolicy) -> set[PeerId]:
        """Return the peers with usable contributions to all stages of a round."""
        entries = [self.node.inbox.stage(round, stage) for stage in judged.stages]
        peers = set.intersection(*(set(each) for each in entries)) if entries else set()
        delivered = {
            peer
            for peer in peers
            if all(is_ready(each[peer], policy) and not each[peer].withheld for each in entries)
            and (self._is_proven(peer) or any(each[peer].checked for each in entries))
        }
        return {peer for peer in delivered | judged.delivered if not self._is_invalid(round, judged, peer, policy)}

    @staticmethod
    def _is_invalid(round: int, judged: _OpenRound, peer: PeerId, policy: CollectPolicy) -> bool:
        return any((round, stage, peer) in policy.invalid for stage in judged.stages)

    def _is_proven(self, peer: PeerId) -> bool:
        """Whether the index of a contribution is enough for this peer to go on counting."""
        return self.node.members.counted.standing(peer) in COUNTING

    # ── checkpoint
    def state_dict(self) -> Mapping[str, Any]:
        """Return the standings, and the rounds that are not judged yet."""
        policy = self.node.policy
        return {
            "counted": self.node.members.counted.state_dict(),
            "open": [
                [
                    number,
                    sorted(each.stages),
                    sorted(each.expected),
                    sorted(self._complete(number, each, policy)) if policy is not None else [],
                ]
                for number, each in sorted(self._open.items())
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        members = self.node.members
        members.counted = members.counted.restored(state["counted"])
        self._open = {
            number: _OpenRound(set(stages), set(expected), set(delivered))
            for number, stages, expected, delivered in state["open"]
        }

    def open_stages(self) -> list[tuple[int, int]]:
        """Return the closed stages of the rounds that are not judged yet."""
        return [(number, stage) for number, judged in sorted(self._open.items()) for stage in sorted(judged.stages)]

    # ── newcomers
    def _watch(self, round: int, stage: int, policy: CollectPolicy) -> None:
        node = self.node
        newcomers = node.members.newcomers(node.clock.now())
        entries = node.inbox.stage(round, stage)
        node.outcomes["probation"] += sum(peer in entries and is_ready(entries[peer], policy) for peer in newcomers)
        counted = node.members.counted
        kept = {peer for peer in self._watched if counted.standing(peer) is not Standing.SAME_ADDRESS}
        self._watched = sorted(newcomers, key=lambda peer: peer not in kept)[:NEWCOMERS]
        self._open[round].watched.update(self._watched)
        for peer in self._watched:
            if peer not in entries or not counted.is_connected(peer):
                node.request_announcement(peer, round, stage)
            if peer in entries:
                self._begin_probe(entries[peer], policy)
        self._say(newcomers)

    def _probe_late(self, entry: InboxEntry) -> None:
        """Probe a contribution to a stage that has closed before its index came."""
        origin, policy = entry.announcement, self.node.policy
        judged = self._open.get(origin.round)
        if policy is not None and judged and origin.stage in judged.stages and origin.peer in judged.watched:
            self._begin_probe(entry, policy)

    def _begin_probe(self, entry: InboxEntry, policy: CollectPolicy) -> None:
        """Begin to fetch a shard of an entry, or those that did not come."""
        origin = entry.announcement
        key = (origin.round, origin.stage, origin.peer)
        if entry.failed or not entry.shards or entry.complete or key in self._probing:
            return
        positions = entry.withheld
        if not entry.checked and not positions:
            positions = {derive_seed("watch", policy.seed, origin.peer) % len(entry.shards)}
        pulls = policy.exchange is Exchange.PULL
        if pulls and not positions:
            return
        task = self.node.spawn(self._probe(entry, sorted(positions)) if pulls else self._wait_for(entry))
        if task is not None:
            self._probing[key] = task
            task.add_done_callback(lambda _: self._probed(*key))
            self.node.spawn(self._give_up(task))

    async def _probe(self, entry: InboxEntry, positions: Sequence[int]) -> None:
        """Fetch shards."""
        await asyncio.gather(*(self.node.fetch_shard(entry, position) for position in positions))

    async def _wait_for(self, entry: InboxEntry) -> None:
        """Wait for bodies that are fetched in any case (GATHER)."""
        while not entry.complete and not entry.failed and not entry.dropped:
            await self.node.clock.wait(asyncio.Event(), _POLL_SECONDS)

    async def _give_up(self, probe: asyncio.Task[Any]) -> None:
        """End a probe that takes longer than a stage would wait for a peer that counts."""
        ended = asyncio.Event()
        probe.add_done_callback(lambda _: ended.set())
        await self.node.clock.wait(ended, self._patience)
        probe.cancel()

    def _probed(self, round: int, stage: int, peer: PeerId) -> None:
        del self._probing[round, stage, peer]
        if (round, peer) not in self._undecided or any((then, who) == (round, peer) for then, _, who in self._probing):
            return
        entries = self._undecided.pop((round, peer))
        policy = self.node.policy
        usable = policy is not None and all(is_ready(entry, policy) and not entry.withheld for entry in entries)
        complete = usable and any(entry.checked for entry in entries)
        self._set(self.node.members.counted.decide(round, peer, complete=complete))

    def _say(self, newcomers: Collection[PeerId]) -> None:
        """Log once that peers are here for longer than a newcomer needs, and still do not count."""
        self._waiting = {peer: self._waiting.get(peer, 0) + 1 for peer in newcomers}
        counted = self.node.members.counted
        rules = counted.rules
        limit = (rules.probation_rounds + _SUSPICIOUS_ROUNDS) * max(1, self.node.settings.stages)
        long = sorted(peer for peer, stages in self._waiting.items() if stages > limit)
        crowded = [peer for peer in long if counted.standing(peer) is Standing.SAME_ADDRESS]
        if crowded and not self._warned_of_address:
            self._warned_of_address = True
            logger.warning(
                "%d members (%s) deliver and do not count: %d of their remote address do. Where honest peers share an "
                "address, raise communication.countedPerAddress, or name them with --anchor",
                len(crowded),
                _named(crowded),
                rules.per_address,
            )
        late = [peer for peer in long if peer not in crowded]
        if late and not self._warned:
            self._warned = True
            logger.warning(
                "%d of %d members do not count (%s): they have not delivered complete contributions in %d rounds in a "
                "row, so no stage waits for them. A slow peer needs less work or a faster machine; see `standings` in "
                "/status",
                len(late),
                1 + len(self.node.members.others(self.node.clock.now())),
                _named(late),
                rules.probation_rounds,
            )


def _named(peers: Sequence[PeerId]) -> str:
    return ", ".join(f"…{peer[-6:]}" for peer in peers[:3])
