"""Network options: where a process of a swarm listens, and which peers it knows at its start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ANY_HOST = "0.0.0.0"
"""All addresses of the machine."""


@dataclass(frozen=True)
class NetworkOptions:
    """The network of one peer or bootnode.

    Args:
        identity: the key file.
        host: IPv4 address to listen on.
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
