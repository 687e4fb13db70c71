"""Read what differs by pod from its environment. The rest is in the manifest, or fixed by the image."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field

from swarmgame.errors import BadUsage
from swarmgame.runtime.options import PeerOptions, checked_addresses
from swarmgame.swarm.network_options import NetworkOptions
from swarmgame_api.manifest import SwarmGame
from swarmgame_common.settings import (
    Digits,
    EnvironmentSettings,
    InvalidSettings,
    Port,
    SpaceSeparated,
    Variable,
    read_settings,
)

PREFIX = "SWARMGAME_"


class WorkerPodSettings(EnvironmentSettings):
    """Of every pod of a game."""

    game: Path = Path("/etc/swarmgame/game/game.yaml")
    """The manifest."""
    directory: Path = Path("/checkpoints/peer")
    """The peer's folder, on the checkpoints' volume."""
    identity: Path = Path("/etc/swarmgame/identity/peer.key")
    """The key file."""
    index: Annotated[int, Digits, Field(ge=0), Variable("SWARMGAME_INDEX", "JOB_COMPLETION_INDEX")] = 0
    """Number of the peer in its Job."""
    port: Port | None = None
    """Port for other peers. Not set: the manifest's `communication.port`."""
    announce: SpaceSeparated = ()
    """Multiaddresses at which other peers reach this pod, separated by spaces."""
    initial_peers: SpaceSeparated = ()
    """Multiaddresses to connect to first, beside the manifest's, separated by spaces."""
    rendezvous: str = ""
    """HOST:PORT of peer 0, with the backend TorchDistributed."""
    http_host: str = "0.0.0.0"
    """Address of the endpoints."""
    http_port: Port = 8080
    """Port of the endpoints."""
    threads: Annotated[int | None, Digits, Field(ge=1), Variable("OMP_NUM_THREADS")] = None
    """Threads of torch and of the libp2p daemon. Not set: all cores."""

    def network(self, manifest: SwarmGame) -> NetworkOptions:
        """Return the network of this pod."""
        return NetworkOptions(
            identity=self.identity,
            port=manifest.spec.communication.port if self.port is None else self.port,
            announce=self.announce,
            initial_peers=checked_addresses(self.initial_peers, "SWARMGAME_INITIAL_PEERS"),
            rendezvous=self.rendezvous,
        )

    def peer_options(self, manifest: SwarmGame) -> PeerOptions:
        """Return the options of the peer in this pod."""
        return PeerOptions(
            directory=self.directory,
            network=self.network(manifest),
            index=self.index,
            http_host=self.http_host,
            http_port=self.http_port,
            threads=self.threads or len(os.sched_getaffinity(0)),
        )


class BootnodeSettings(WorkerPodSettings):
    """Of a bootnode's pod."""

    identity: Path = Path("/etc/swarmgame/identity/bootnode.key")
    """The key file."""

    def network(self, manifest: SwarmGame) -> NetworkOptions:
        """Return the network of this pod, with the manifest's initial peers; a peer gets them from its backend."""
        network = super().network(manifest)
        return replace(network, initial_peers=(*manifest.spec.communication.initial_peers, *network.initial_peers))


AnyPodSettings = TypeVar("AnyPodSettings", bound=WorkerPodSettings)


def pod_settings(model: type[AnyPodSettings]) -> AnyPodSettings:
    """Return the settings of this process.

    Raises:
        BadUsage: naming each variable that cannot be used.
    """
    try:
        return read_settings(model, os.environ, prefix=PREFIX)
    except InvalidSettings as error:
        raise BadUsage(str(error)) from error
