"""The connection of a peer: the backend that its manifest names, made from how it was started.

Decides nothing beyond that; the backends are `swarmgame.swarm`'s, and only the one that is asked for is imported.
Invariant: what a backend needs and was not given is an error before anything is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from swarmgame.errors import BadUsage
from swarmgame.game.protocol import CommunicationManager
from swarmgame.game.state import PeerId
from swarmgame.swarm.settings import SwarmSettings
from swarmgame_api.manifest import SwarmGame


class Connection(CommunicationManager, Protocol):
    """A backend, which also knows where others reach us."""

    @property
    def addresses(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class NetworkOptions:
    """Where a peer is, and where the others are.

    Args:
        index: its number in the run.
        port: TCP port to listen on; 0 takes any.
        initial_peers, announce: as `swarmgame peer` was told.
        rendezvous: HOST:PORT where the peers of a closed world meet; unused by Hivemind.
        join_seconds: longest wait for the others.
    """

    index: int
    identity: Path
    port: int
    initial_peers: Sequence[str]
    announce: Sequence[str]
    rendezvous: str
    join_seconds: float


def connection(
    manifest: SwarmGame, run: str, where: NetworkOptions, *, admission: Callable[[PeerId], bool], keep_rounds: int
) -> Connection:
    """The backend of `spec.communication`, not yet joined.

    Raises:
        BadUsage: no rendezvous, or no seat, in a closed world.
    """
    settings = SwarmSettings(admission=admission, keep_rounds=keep_rounds)
    if manifest.spec.communication.backend == "TorchDistributed":
        from swarmgame.swarm.transports.torch_distributed import TorchDistributedCommunication
        from swarmgame.swarm.transports.world import Place

        place = Place(where.index, manifest.spec.peers.replicas, *_rendezvous(where.rendezvous))
        if place.index >= place.size:
            raise BadUsage(
                f"peer {place.index} has no seat: with TorchDistributed there are spec.peers.replicas of them, {place.size}"
            )
        return TorchDistributedCommunication(
            run, where.identity, place, settings=settings, meet_seconds=where.join_seconds
        )
    from swarmgame.swarm.transports.libp2p import HivemindCommunication

    return HivemindCommunication(
        run=run,
        identity=where.identity,
        port=where.port,
        initial_peers=where.initial_peers,
        announce=where.announce,
        settings=settings,
    )


def _rendezvous(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal():
        raise BadUsage(
            f"--rendezvous is {text!r}; expected HOST:PORT of peer 0: with TorchDistributed the peers meet there"
        )
    return host, int(port)
