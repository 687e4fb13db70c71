"""The options of one peer's process: what the manifest of its game does not say.

`swarmgame peer` reads them from its command line, a pod from its environment (`swarmgame.launch.pod_settings`), and
`swarmgame run` and `swarmgame join` make them. `peer_arguments` turns them into the command line of a child process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from swarmgame.chain.endpoint import ChainEndpoint
from swarmgame.errors import BadUsage
from swarmgame.swarm.identity import split_address
from swarmgame.swarm.network_options import ANY_HOST, NetworkOptions
from swarmgame_api.manifest import SwarmGame


@dataclass(frozen=True)
class PeerOptions:
    """How one peer is started.

    Args:
        directory: where metrics, logs and checkpoints go; created when missing.
        network: its identity, ports and initial peers.
        index: its number in the run.
        http_host, http_port: of the endpoints; port 0 takes any.
        min_replicas: members to wait for before the first round, this peer included; None: the manifest's
            `peers.minReplicas`.
        pre_running_deadline_seconds: longest wait for them; None: the manifest's `preRunningDeadlineSeconds`.
        threads: of torch, and of the libp2p daemon unless GOMAXPROCS is set.
        chain: where the chain is; what is left open comes from the environment and the manifest.
    """

    directory: Path
    network: NetworkOptions
    index: int = 0
    http_host: str = "127.0.0.1"
    http_port: int = 0
    min_replicas: int | None = None
    pre_running_deadline_seconds: float | None = None
    threads: int = 1
    chain: ChainEndpoint = field(default_factory=ChainEndpoint)

    def min_replicas_of(self, manifest: SwarmGame) -> int:
        """Return the number of members to wait for."""
        return manifest.spec.peers.min_replicas if self.min_replicas is None else self.min_replicas

    def deadline_of(self, manifest: SwarmGame) -> float:
        """Return the longest wait for them, in seconds."""
        own = self.pre_running_deadline_seconds
        return float(manifest.spec.pre_running_deadline_seconds) if own is None else own


def run_id(manifest: SwarmGame) -> str:
    """Return the id of the run, which the wire format carries."""
    return f"{manifest.metadata.name}-{manifest.spec.game.seed}"


def peer_arguments(game: Path, options: PeerOptions, overrides: Sequence[str] = ()) -> list[str]:
    """Return the arguments of `swarmgame peer` for these options.

    `options.chain` is left out: a node's address may hold a password, and a command line is public. A child takes it
    from its environment.
    """
    network = options.network
    optional = {
        "announce": network.announce,
        "initial-peer": network.initial_peers,
        "rendezvous": (network.rendezvous,) if network.rendezvous else (),
        "host": (network.host,) if network.host != ANY_HOST else (),
        "port": (network.port,) if network.port else (),
        "min-replicas": (options.min_replicas,) if options.min_replicas is not None else (),
        "pre-running-deadline-seconds": (
            (options.pre_running_deadline_seconds,) if options.pre_running_deadline_seconds is not None else ()
        ),
    }
    return [
        str(game.absolute()),
        *(f"--set={override}" for override in overrides),
        f"--index={options.index}",
        f"--directory={options.directory}",
        f"--identity={network.identity}",
        f"--http-host={options.http_host}",
        f"--http-port={options.http_port}",
        f"--threads={options.threads}",
        *(f"--{name}={value}" for name, values in optional.items() for value in values),
    ]


def checked_addresses(addresses: Sequence[str], source: str) -> tuple[str, ...]:
    """Return addresses of peers as they are.

    Args:
        source: the option or variable that they come from.

    Raises:
        BadUsage: one is not a peer's address.
    """
    for address in addresses:
        try:
            split_address(address)
        except ValueError as error:
            raise BadUsage(f"{source} {error}") from error
    return tuple(addresses)
