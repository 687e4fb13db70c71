"""The connection of SwarmGame's peer in a benchmark: over hivemind, as in a game, or none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from channel import Parent

from swarmgame.game.protocol import Claim, ClosedBy, Collected, CollectPolicy, CommunicationManager, Member
from swarmgame.game.state import Contribution, PeerId
from swarmgame.swarm.network_options import NetworkOptions
from swarmgame.swarm.transports.libp2p import HivemindCommunication

JOIN_SECONDS = 120.0


class NoCommunication:
    """A swarm of one peer: the counterpart of GenRL's NullCommunicationBackend."""

    peer: PeerId = "alone"

    def join(self, *, expect: Sequence[PeerId] = (), min_replicas: int = 1, timeout_seconds: float = 120.0) -> None:
        """Do nothing: there is no other peer."""

    def membership(self) -> tuple[Member, ...]:
        return (Member(self.peer, 0, 0),)

    def announce_progress(self, round: int, stage: int) -> None:
        """Do nothing."""

    def publish(self, contribution: Contribution, claims: Sequence[Claim] = ()) -> None:
        """Do nothing."""

    def collect(
        self, round: int, stage: int, policy: CollectPolicy, *, stopped: Callable[[], bool] = lambda: False
    ) -> Collected:
        return Collected(contributions=(), members=(self.peer,), missing=(), closed_by=ClosedBy.ISOLATED)

    def leave(self) -> None:
        """Do nothing."""


def connect(folder: Path, parent: Parent, requests: Iterator[dict[str, Any]]) -> CommunicationManager:
    """Join over hivemind, and return when all peers are members.

    The first request has the addresses of peer 0 (none for peer 0 itself); the answer has this peer's.

    Args:
        folder: for the key.
        parent: of this process.
        requests: of the parent.
    """
    hello = next(requests)
    network = NetworkOptions(folder / "identity", "127.0.0.1", initial_peers=tuple(hello["addresses"]))
    communication = HivemindCommunication("benchmark", network)
    communication.join(min_replicas=2 if hello["addresses"] else 1, timeout_seconds=JOIN_SECONDS)
    parent.answer(addresses=list(communication.addresses))
    deadline = time.monotonic() + JOIN_SECONDS
    while len(communication.membership()) < hello["peers"] and time.monotonic() < deadline:
        time.sleep(0.1)
    return communication
