"""When a round on chain is over: a quorum of the live peers has reported, or its deadline has passed and at least one
peer has.

The decision depends on the contract's events and on the waiting messages only, so two gateways agree. A round without
any report stays open, so that an idle swarm finds the chain's round where it was; anyone may still end it after the
deadline.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Set

from swarmgame_chain.abi import ContractEvent
from swarmgame_chain.reader import RoundClock, SwarmConfig

EVENTS = ("PeerProven", "RewardSubmitted", "ReportCommitted")
"""The events that it reads."""
LIVE_ROUNDS = 2
"""Rounds without a report after which a peer no longer counts as live."""


class RoundAdvancer:
    """Which peers have reported in which round.

    Args:
        quorum: share of the live peers that must have reported.
    """

    def __init__(self, quorum: float = 0.67) -> None:
        self._quorum = quorum
        self._last_round: dict[str, int] = {}
        self._reported: dict[int, set[str]] = {}

    def read(self, new: Iterable[ContractEvent], removed: Iterable[ContractEvent], round: int) -> None:
        """Take in events; registrations among them count as having happened in `round`."""
        for event in removed:
            if event.name in ("RewardSubmitted", "ReportCommitted"):
                self._reported.get(event.values["roundNumber"], set()).discard(event.values["peerId"])
        for event in new:
            peer = event.values["peerId"]
            if event.name == "PeerProven":
                self._last_round[peer] = max(round, self._last_round.get(peer, 0))
            elif event.name in ("RewardSubmitted", "ReportCommitted"):
                reported = event.values["roundNumber"]
                self._last_round[peer] = max(reported, self._last_round.get(peer, 0))
                self._reported.setdefault(reported, set()).add(peer)
        self._reported = {each: peers for each, peers in self._reported.items() if each >= round - LIVE_ROUNDS}

    def live(self, round: int) -> int:
        """Return how many peers are live."""
        return sum(1 for last in self._last_round.values() if last >= round - LIVE_ROUNDS)

    def reported(self, round: int) -> int:
        """Return how many peers have reported, or committed, in a round."""
        return len(self._reported.get(round, ()))

    def is_over(
        self, clock: RoundClock, config: SwarmConfig, *, ahead: Set[str] = frozenset(), needed: bool = False
    ) -> bool:
        """Return whether to end the round now.

        Args:
            ahead: peers with a waiting message of a later round; they have finished this one.
            needed: whether a message waits that the next round would refuse.
        """
        if clock.now < clock.deadline - config.round_duration + config.min_round_time:
            return False
        if needed and clock.now < clock.deadline:
            return False
        quorum = max(1, math.ceil(self._quorum * self.live(clock.round) - 1e-9))
        done = len(self._reported.get(clock.round, set()) | ahead)
        return done >= quorum or (clock.now >= clock.deadline and done > 0)
