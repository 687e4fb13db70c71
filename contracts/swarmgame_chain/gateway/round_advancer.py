"""When rounds on chain are over: a quorum of the live peers has finished them, or the deadline of one has passed and at
least one peer has a report of it on chain or on its way.

A peer is live while it finishes new rounds. The time that this may take follows the swarm's own pace. A registration is
no promise to report, so a new peer counts for a short while only, and one that is far behind most live peers does not
count. A swarm may be faster than its chain, so several rounds end in one step. Rounds do not run away from most of the
peers that were seen lately: anyone may sign messages of later rounds. Rounds that no peer has finished stay open, so
that an idle swarm finds the chain's round where it was; anyone may still end one after its deadline.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import median_low

from swarmgame_chain.abi import ContractEvent
from swarmgame_chain.messages.base import OPENING_WINDOW, REPORT_WINDOW
from swarmgame_chain.reader import RoundClock, SwarmConfig

EVENTS = ("PeerProven", "RewardSubmitted", "ReportCommitted")
"""The events that it reads."""
MAX_STEP = 128
"""Rounds that the contract ends in one step; `OPENING_WINDOW` in a swarm with sealed reports."""
LEAST_SECONDS = 15.0
"""A peer is live for at least as long after it has finished a round, or was seen registered."""
LIVE_ROUNDS = 5.0
"""Usual lengths of a round after which a peer that has finished no other one is not live any more; also the
rounds that a live peer may be behind most of them.
"""
RECENT_SECONDS = 1800.0
"""How long rounds do not run away from peers that are not live any more, as long as they are more than the live ones.
"""
MAX_PEERS = 100_000
"""Peers that are remembered."""


@dataclass(slots=True)
class _Peer:
    """What is known of a peer.

    Args:
        newest: the newest round that it has finished; the one before its registration until then.
        seen_at: when that was first seen.
        has_finished: whether it has finished a round.
        reported: the newest round that the chain has a report or a commit of.
    """

    newest: int
    seen_at: float
    has_finished: bool = False
    reported: int = -1


class RoundAdvancer:
    """Which peers have finished which rounds.

    Args:
        quorum: share of the live peers that must have finished a round.
        clock: monotonic seconds.
    """

    def __init__(self, quorum: float = 0.67, clock: Callable[[], float] = time.monotonic) -> None:
        self._quorum = quorum
        self._clock = clock
        self._peers: dict[str, _Peer] = {}
        """The one that was seen last stands last."""
        self._ends: deque[tuple[float, int]] = deque(maxlen=8)
        """When a quorum had finished the last rounds that ended before their deadlines, and their numbers."""

    def read(self, new: Iterable[ContractEvent], removed: Iterable[ContractEvent], round: int = 0) -> None:
        """Take in events. `round` is the chain's."""
        for event in removed:
            peer = self._peers.get(event.values["peerId"])
            if peer is not None and event.name != "PeerProven":
                before = event.values["roundNumber"] - 1
                peer.newest = before if peer.newest == before + 1 else peer.newest
                peer.reported = before if peer.reported == before + 1 else peer.reported
        for event in new:
            name = event.values["peerId"]
            if event.name != "PeerProven":
                self._note(name, event.values["roundNumber"])
                self._peers[name].reported = max(self._peers[name].reported, event.values["roundNumber"])
            elif name not in self._peers:
                self._see(name, _Peer(round - 1, 0.0))

    def note_early(self, peer: str, round: int) -> None:
        """Take in that a peer waits for the chain with a message of a round; it is live as long as it does."""
        self._note(peer, round)
        self._see(peer, self._peers.pop(peer))

    def live(self, config: SwarmConfig) -> int:
        """Return how many peers are live."""
        return len(self._live(config))

    def reported(self, round: int) -> int:
        """Return of how many peers the chain has a report or a commit of a round, or of a later one."""
        return sum(1 for peer in self._peers.values() if peer.reported >= round)

    def target(
        self, clock: RoundClock, config: SwarmConfig, waiting: Mapping[str, int], last: int | None = None
    ) -> int:
        """Return the round to advance to; the current one where it is not over.

        Args:
            clock: its `now` is the time at present, which may be later than the last block's.
            waiting: the newest round of each peer that has a message on its way; it has finished that round too.
            last: the last round in which the contract takes all messages that wait. It is not passed before the
                deadline.
        """
        for peer, round in waiting.items():
            # A message of a later round waits for the chain, so its peer is live whatever the chain's pace.
            (self.note_early if round > clock.round else self._note)(peer, round)
        if clock.now < clock.deadline - config.round_duration + config.min_round_time:
            return clock.round
        counted = self._quorum_of(config)
        needed = max(1, math.ceil(self._quorum * len(counted) - 1e-9))
        finished = min(counted[needed - 1] + 1, self._furthest(config)) if counted else 0
        is_late = clock.now >= clock.deadline
        if last is not None and not is_late:
            finished = min(finished, last)
        if not is_late and finished > clock.round and (not self._ends or finished > self._ends[-1][1]):
            # A round that lasts until its deadline says nothing of the swarm's pace.
            self._ends.append((self._clock(), finished))
        if is_late and (self.reported(clock.round) or self._is_awaited(clock.round, waiting, config)):
            finished = max(finished, clock.round + 1)
        if finished <= clock.round:
            return clock.round
        return min(finished, clock.round + (OPENING_WINDOW if config.sealed_reports else MAX_STEP))

    def _is_awaited(self, round: int, waiting: Mapping[str, int], config: SwarmConfig) -> bool:
        """Return whether a message of a round or of a later one is on its way, or waits at a live peer."""
        return any(each >= round for each in waiting.values()) or any(
            peer.has_finished and peer.newest >= round for peer in self._live(config)
        )

    def _note(self, name: str, round: int) -> None:
        peer = self._peers.get(name)
        if peer is None or not peer.has_finished or round > peer.newest:
            self._peers.pop(name, None)
            self._see(name, _Peer(round, 0.0, True, peer.reported if peer is not None else -1))

    def _see(self, name: str, peer: _Peer) -> None:
        peer.seen_at = self._clock()
        self._peers[name] = peer
        if len(self._peers) > MAX_PEERS:
            del self._peers[next(iter(self._peers))]

    def _live(self, config: SwarmConfig) -> list[_Peer]:
        since = self._clock() - self._live_seconds(config)
        return [peer for peer in self._peers.values() if peer.seen_at >= since]

    def _quorum_of(self, config: SwarmConfig) -> list[int]:
        """Return the newest rounds of the live peers that count, latest first."""
        live = self._live(config)
        least = median_low([peer.newest for peer in live if peer.has_finished] or [0]) - LIVE_ROUNDS
        return sorted((peer.newest for peer in live if peer.newest >= least), reverse=True)

    def _furthest(self, config: SwarmConfig) -> int:
        """Return the last round to advance to before a deadline.

        Half of the peers that were seen lately are at most so far behind it that the chain takes their next report. It
        also takes those of peers that are up to `MAX_STEP` rounds behind them. Peers that have left do not hold the
        rounds of as many that play.
        """
        now = self._clock()
        since = now - self._live_seconds(config)
        live: list[int] = []
        absent: list[int] = []
        for peer in self._peers.values():
            if now - peer.seen_at <= (RECENT_SECONDS if peer.has_finished else config.round_duration):
                is_live = peer.seen_at >= since or not peer.has_finished
                (live if is_live else absent).append(peer.newest)
        recent = [*live, *absent] if len(absent) > len(live) else live
        return (median_low(recent) if recent else 0) + REPORT_WINDOW - MAX_STEP

    def _live_seconds(self, config: SwarmConfig) -> float:
        if len(self._ends) < 2:
            # A commit has to come in its own round: the first ones are waited for as long as a round may last.
            return config.round_duration if config.sealed_reports else min(config.round_duration, 4 * LEAST_SECONDS)
        (began, first), (ended, last) = self._ends[0], self._ends[-1]
        return min(config.round_duration, max(LEAST_SECONDS, LIVE_ROUNDS * (ended - began) / (last - first)))
