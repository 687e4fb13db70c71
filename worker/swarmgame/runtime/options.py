"""The options of one peer's process: what the manifest of its game does not say.

`swarmgame peer` reads them from its command line, a pod from its environment (`swarmgame.launch.pod_settings`), and
`swarmgame run` and `swarmgame join` make them. `peer_arguments` turns them into the command line of a child process.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from pathlib import Path

from swarmgame.chain.endpoint import ChainEndpoint
from swarmgame.errors import BadUsage
from swarmgame.swarm.identity import split_address
from swarmgame.swarm.network_options import ANY_HOST, NetworkOptions
from swarmgame_api.manifest import SwarmGame

PEER_ID = re.compile(r"[1-9A-HJ-NP-Za-km-z]{40,64}")
_FAMILIES: Mapping[str, type[IPv4Address] | type[IPv6Address]] = {"ip4": IPv4Address, "ip6": IPv6Address}
ANNOUNCED = re.compile(r"/(ip4|ip6|dns|dns4|dns6)/[^/\s]+/tcp/[1-9][0-9]{0,4}")


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
        anchors: ids of the game's own peers and of those that the user vouches for; they count from the start.
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
    anchors: tuple[str, ...] = ()
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
        "anchor": options.anchors,
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


def checked_announcements(addresses: Sequence[str], source: str) -> tuple[str, ...]:
    """Return addresses of this peer as the daemon takes them: without its id, which it adds itself.

    Args:
        source: the option or variable that they come from.

    Raises:
        BadUsage: one is not an address of a TCP port.
    """
    found = tuple(address.partition("/p2p/")[0] for address in addresses)
    for address in found:
        if not ANNOUNCED.fullmatch(address):
            raise BadUsage(
                f"{source} {address!r} is not an address; expected /ip4/HOST/tcp/PORT, /ip6/HOST/tcp/PORT or "
                "/dns4/HOST/tcp/PORT"
            )
        _, kind, host, *_ = address.split("/")
        if kind in _FAMILIES and not _is_address(host, _FAMILIES[kind]):
            raise BadUsage(f"{source} {address!r} names {host}, which is no address of {kind}; expected one of {kind}")
    return found


def _is_address(text: str, family: type[IPv4Address] | type[IPv6Address]) -> bool:
    try:
        family(text)
    except AddressValueError:
        return False
    return True


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


def checked_ids(peers: Sequence[str], source: str) -> tuple[str, ...]:
    """Return ids of peers as they are.

    Args:
        source: the option or file that they come from.

    Raises:
        BadUsage: one is not a peer's id.
    """
    for peer in peers:
        if not PEER_ID.fullmatch(peer):
            raise BadUsage(f"{source} {peer!r} is not a peer's id; expected what its address ends with: 16Uiu2HA…")
    return tuple(peers)
