"""Pull: fetch the chosen shards of a stage, until there are enough or their time is over.

A fetch ends with the stage, and holds one that has enough only for shards that are preferred to those that came. How
long it may hold the stage depends on its author:
anchors until the deadline of the policy; other peers that count as long as the stage would wait for their announcement;
peers that do not count for a tenth of the stage's usual time. An author whose shards did not come in time is left for
the others for some rounds, and the next best shards are fetched instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from swarmgame.game.protocol import CollectPolicy
from swarmgame.game.state import PeerId
from swarmgame.swarm.counted_peers import COUNTING
from swarmgame.swarm.inbox import InboxEntry
from swarmgame.swarm.node import SwarmNode
from swarmgame.swarm.topology import Offer, choose, is_enough

AVOIDED_ROUNDS = 10
"""Rounds in which an author that did not deliver is left for the others."""
SHARE_OF_OTHERS = 0.1
"""Share of a stage's usual time for which it waits for bodies of peers that do not count."""
POLL_SECONDS = 0.25
"""Neither an expired heartbeat nor the caller's stop sets an event."""
ASLEEP_SECONDS = 1.0
"""A wait that takes so much longer than it should was interrupted: the process was stopped, or the machine slept."""
_COUNTED, _NEW, _AVOIDED = range(3)

Stopped = Callable[[], bool]
Fetched = list[tuple[InboxEntry, list[int]]]


@dataclass(frozen=True, slots=True)
class PullTimes:
    """Until when fetches may hold a stage, in seconds of the node's clock, by the standing of the author."""

    anchors: float
    counted: float
    others: float

    def later(self, seconds: float) -> PullTimes:
        return PullTimes(self.anchors + seconds, self.counted + seconds, self.others + seconds)


@dataclass(frozen=True, slots=True)
class Pulled:
    """The result of a stage.

    Args:
        fetched: contributions with the positions of the shards that were fetched.
        late: authors whose shards of this round did not come in the time of peers that count.
    """

    fetched: Fetched
    late: frozenset[PeerId]


class ShardPuller:
    """Fetches shards for the stages of one node."""

    def __init__(self, node: SwarmNode) -> None:
        self.node = node
        self._avoided_until: dict[PeerId, int] = {}
        self._slow_until: dict[PeerId, int] = {}
        """Peers that did not count when they were late: their shards are the last choice until they count."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return the authors that are left for the others, and those that were late, and until which round, for a
        checkpoint.
        """
        return {"avoided": dict(self._avoided_until), "slow": dict(self._slow_until)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back the state of a checkpoint, which has no "slow" if an earlier release has written it."""
        self._avoided_until = dict(state["avoided"])
        self._slow_until = dict(state.get("slow", {}))

    async def pull(
        self, round: int, entries: Iterable[InboxEntry], policy: CollectPolicy, times: PullTimes, stopped: Stopped
    ) -> Pulled:
        """Fetch the chosen shards of these contributions; where one does not come, the next best."""
        node = self.node
        self._avoided_until = {peer: until for peer, until in self._avoided_until.items() if until > round}
        self._slow_until = {peer: until for peer, until in self._slow_until.items() if until > round}
        known: dict[tuple[PeerId, int, int], InboxEntry] = {}
        open_offers: set[Offer] = set()
        for entry in entries:
            entry.consumed = True
            origin = entry.announcement
            known[origin.peer, origin.round, origin.stage] = entry
            open_offers.update(self._offers(entry))
        fetches: dict[asyncio.Task[bool], Offer] = {}
        fetched: list[Offer] = []
        late: set[Offer] = set()
        try:
            while not stopped():
                now = node.clock.now()
                late.update(offer for offer in fetches.values() if self._until(offer.peer, times) <= now)
                open_offers = {offer for offer in open_offers if self._until(offer.peer, times) > now}
                awaited = [offer for offer in fetches.values() if offer not in late]
                if is_enough(policy, fetched, awaited):
                    break
                for offer in choose(open_offers, policy, [*fetched, *awaited]):
                    open_offers.remove(offer)
                    entry = known[offer.peer, offer.round, offer.stage]
                    fetch = asyncio.create_task(node.fetch_shard(entry, offer.position))
                    fetch.add_done_callback(lambda _: node.changed.set())
                    fetches[fetch] = offer
                    awaited.append(offer)
                if not awaited:
                    break
                until = min(self._until(offer.peer, times) for offer in awaited)
                node.changed.clear()
                await node.clock.wait(node.changed, min(POLL_SECONDS, until - now))
                if (asleep := node.clock.now() - now - POLL_SECONDS) > ASLEEP_SECONDS:
                    times = times.later(asleep)
                for fetch in [fetch for fetch in fetches if fetch.done()]:
                    offer = fetches.pop(fetch)
                    if fetch.result():
                        fetched.append(offer)
                        late.discard(offer)
                    else:
                        late.add(offer)
                # A fault in one shard drops the others of its contribution, and the next best take their place.
                fetched = [each for each in fetched if not known[each.peer, each.round, each.stage].failed]
        finally:
            for fetch in fetches:
                fetch.cancel()
        await asyncio.gather(*fetches, return_exceptions=True)
        late = self._avoid(late, round)
        for offer in late:
            known[offer.peer, offer.round, offer.stage].withheld.add(offer.position)
        positions: dict[tuple[PeerId, int, int], list[int]] = {}
        for offer in fetched:
            positions.setdefault((offer.peer, offer.round, offer.stage), []).append(offer.position)
        # A peer that has moved on may no longer have what it published before.
        of_round = frozenset(offer.peer for offer in late if offer.round == round)
        return Pulled([(known[key], sorted(found)) for key, found in positions.items()], of_round)

    def _offers(self, entry: InboxEntry) -> list[Offer]:
        origin = entry.announcement
        members = self.node.members
        rank, share = _COUNTED, ""
        if not members.counted.rules.is_anchor(origin.peer):
            if members.counted.standing(origin.peer) not in COUNTING:
                # Behind one address there may be one host with many keys.
                rank, share = _NEW, members.counted.rules.address(origin.peer) or ""
                if origin.peer in self._slow_until:
                    rank = _AVOIDED
            if origin.peer in self._avoided_until:
                rank = _AVOIDED
        return [
            Offer(origin.peer, origin.round, origin.stage, at, shard, rank, share)
            for at, shard in enumerate(entry.shards or ())
        ]

    def _until(self, peer: PeerId, times: PullTimes) -> float:
        if self.node.members.counted.rules.is_anchor(peer):
            return times.anchors
        return times.counted if self._is_trusted(peer) else times.others

    def _is_trusted(self, peer: PeerId) -> bool:
        """Whether a stage waits for bodies of a peer as for its announcements."""
        counted = self.node.members.counted
        return counted.rules.is_anchor(peer) or (counted.standing(peer) in COUNTING and peer not in self._avoided_until)

    def _avoid(self, late: Collection[Offer], round: int) -> set[Offer]:
        """Leave authors for the others for some rounds; anchors, which may have been restarted, are tried again.

        Returns:
            The offers that are a fault: a tenth of a stage's usual time is too short to blame a peer for.
        """
        counted = self.node.members.counted
        blamed = {offer for offer in late if self._is_trusted(offer.peer)}
        until = round + AVOIDED_ROUNDS
        self._avoided_until |= {offer.peer: until for offer in blamed if not counted.rules.is_anchor(offer.peer)}
        self._slow_until |= {offer.peer: until for offer in late if counted.standing(offer.peer) not in COUNTING}
        return blamed
