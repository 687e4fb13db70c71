"""When a round on chain is over: enough of those who take part have reported, or its time is up and the swarm has moved
on.

It only decides, from events and from what waits in the queue; sending is the sender's. A round in which nobody said
anything is left open, so that a swarm that rests finds its clock where it was; anyone may still end it after the
deadline. Invariant: the decision is a function of the chain's events; two tickers agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Set

from swarmgame_chain.abi import ContractEvent
from swarmgame_chain.reader import RoundClock, SwarmConfig

EVENTS = ("PeerProven", "RewardSubmitted", "ReportCommitted")
"""The events that it reads."""
LIVE_ROUNDS = 2
"""Rounds that a peer may be silent for and still counts as taking part."""


class RoundAdvancer:
    """Who has spoken in which round.

    Args:
        quorum: share of those who take part that must have reported.
    """

    def __init__(self, quorum: float = 0.67) -> None:
        self._quorum = quorum
        self._last_seen: dict[str, int] = {}
        self._reported: dict[int, set[str]] = {}

    def read(self, new: Iterable[ContractEvent], removed: Iterable[ContractEvent], round: int) -> None:
        """Takes in events; `round` is the one in which registrations among them are taken to have happened."""
        for event in removed:
            if event.name in ("RewardSubmitted", "ReportCommitted"):
                self._reported.get(event.values["roundNumber"], set()).discard(event.values["peerId"])
        for event in new:
            if event.name == "PeerProven":
                self._last_seen[event.values["peerId"]] = max(round, self._last_seen.get(event.values["peerId"], 0))
            elif event.name in ("RewardSubmitted", "ReportCommitted"):
                peer, said = event.values["peerId"], event.values["roundNumber"]
                self._last_seen[peer] = max(said, self._last_seen.get(peer, 0))
                self._reported.setdefault(said, set()).add(peer)
        self._reported = {said: peers for said, peers in self._reported.items() if said >= round - LIVE_ROUNDS}

    def live(self, round: int) -> int:
        """How many take part."""
        return sum(1 for heard in self._last_seen.values() if heard >= round - LIVE_ROUNDS)

    def reported(self, round: int) -> int:
        """How many have reported, or committed, in a round."""
        return len(self._reported.get(round, ()))

    def is_over(
        self, clock: RoundClock, config: SwarmConfig, *, ahead: Set[str] = frozenset(), bound: bool = False
    ) -> bool:
        """Whether to end the round now.

        Args:
            ahead: peers whose messages wait for a later round: they are there already.
            bound: whether a message waits that would come too late in the next round.
        """
        if clock.now < clock.deadline - config.round_duration + config.min_round_time:
            return False
        if bound and clock.now < clock.deadline:
            return False
        needed = max(1, math.ceil(self._quorum * self.live(clock.round) - 1e-9))
        done = len(self._reported.get(clock.round, set()) | ahead)
        return done >= needed or (clock.now >= clock.deadline and done > 0)
