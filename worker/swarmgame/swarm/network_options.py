"""Network options: where a process of a swarm listens, and which peers it knows at its start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from swarmgame_common.sockets import EVERY_ADDRESS

ANY_HOST = "0.0.0.0"
"""All IPv4 addresses of the machine."""
ANY_HOSTS = frozenset({ANY_HOST, EVERY_ADDRESS})
"""What stands for more than one address: all of IPv4, or those of IPv6 too."""


def host_for_peers(addresses: Sequence[str]) -> str:
    """Return where to listen for peers of a swarm with these addresses: on IPv6 too, where one of them is of IPv6."""
    ipv6 = any(address.startswith(("/ip6/", "/dns6/")) for address in addresses)
    return EVERY_ADDRESS if ipv6 else ANY_HOST


@dataclass(frozen=True)
class NetworkOptions:
    """The network of one peer or bootnode.

    Args:
        identity: the key file.
        host: address to listen on; one of `ANY_HOSTS` for all.
        port: TCP port to listen on; 0 takes any.
        announce: multiaddresses at which other peers reach this one, where it does not listen there itself (a Service,
            a NAT).
        initial_peers: multiaddresses to connect to first; the manifest may name more.
        rendezvous: HOST:PORT where the peers of the TorchDistributed backend meet: peer 0 listens there.
    """

    identity: Path
    host: str = ANY_HOST
    port: int = 0
    announce: tuple[str, ...] = ()
    initial_peers: tuple[str, ...] = ()
    rendezvous: str = ""
