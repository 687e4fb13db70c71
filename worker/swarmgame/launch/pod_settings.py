"""Read what differs by pod from its environment. The rest is in the manifest, or fixed by the image."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field

from swarmgame.errors import BadUsage
from swarmgame.runtime.options import PeerOptions, checked_addresses, checked_announcements, checked_ids
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
from swarmgame_common.sockets import EVERY_ADDRESS

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
    peers: Path = Path("/etc/swarmgame/game/peers")
    """File with the ids of the game's own peers, one a line: they count from the start. Not there: none do."""
    rendezvous: str = ""
    """HOST:PORT of peer 0, with the backend TorchDistributed."""
    http_host: str = EVERY_ADDRESS
    """Address of the endpoints. `::`: every address, of IPv4 and IPv6."""
    http_port: Port = 8080
    """Port of the endpoints."""
    threads: Annotated[int | None, Digits, Field(ge=1), Variable("OMP_NUM_THREADS")] = None
    """Threads of torch and of the libp2p daemon. Not set: the pod's CPUs."""
    cpus: Annotated[int | None, Digits, Field(ge=1)] = None
    """CPUs of the pod, which its ranks share. Not set: all cores."""
    devices: str = ""
    """Devices that the pod asks for and whose number is not known, for the message where PyTorch sees none."""

    def network(self, manifest: SwarmGame) -> NetworkOptions:
        """Return the network of this pod."""
        return NetworkOptions(
            identity=self.identity,
            host=EVERY_ADDRESS,
            port=manifest.spec.communication.port if self.port is None else self.port,
            announce=checked_announcements(self.announce, "SWARMGAME_ANNOUNCE"),
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
            threads=self.threads or self.cpus or len(os.sched_getaffinity(0)),
            anchors=self.anchors(),
        )

    def anchors(self) -> tuple[str, ...]:
        """Return the ids of the game's own peers.

        Raises:
            BadUsage: the file holds something else.
        """
        try:
            text = self.peers.read_text()
        except FileNotFoundError:
            return ()
        return checked_ids(text.split(), str(self.peers))


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
