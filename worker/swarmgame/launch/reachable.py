"""Where other peers reach the peers of this process, and the command with which one more joins them."""

from __future__ import annotations

import shlex
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from swarmgame.swarm.network_options import ANY_HOSTS

OF_THE_GAME, OF_A_PEER = ("game.", "model.", "metadata."), ("game.progression.", "model.export")
"""Changes of the manifest that a peer that joins must make too, and those among them that each peer decides itself;
others are about where and how many peers run.
"""
DOCUMENTATION = "192.0.2.1"
"""An address that no machine has (RFC 5737)."""


@dataclass(frozen=True)
class Reachable:
    """The addresses of a peer, or of the peers of a run.

    Args:
        addresses: multiaddresses, the best one first.
        command: joins there.
        hint: what to do for peers that cannot reach the addresses; empty for nothing.
    """

    addresses: tuple[str, ...]
    command: str
    hint: str = ""

    def __str__(self) -> str:
        local = all(map(is_loopback, self.addresses))
        place = "on this machine" if local else "from another machine"
        hint = f" ({self.hint})" if self.hint else ""
        return f"one more peer joins {place} with{hint}:\n  {self.command}"

    def as_json(self) -> dict[str, Any]:
        """Return one object of the JSON lines of a run; `event` tells it from a round."""
        return {"event": "reachable", "addresses": list(self.addresses), "join": self.command}


def reachable(game: Path, overrides: Sequence[str], addresses: Sequence[str], hint: str = "") -> Reachable:
    """Return where peers are reached, with the command that joins there.

    Args:
        game: the manifest, as the user named it.
        overrides: of the manifest; the command has those that make another game.
        addresses: in any order; those of this machine alone come last.
    """
    ordered = tuple(sorted(addresses, key=is_loopback))
    changes = [(each, each.removeprefix("spec.")) for each in overrides]
    same = [
        f"--set={each}" for each, path in changes if path.startswith(OF_THE_GAME) and not path.startswith(OF_A_PEER)
    ]
    command = ["swarmgame", "join", str(game), *same, "--initial-peer", ordered[0]]
    return Reachable(ordered, shlex.join(command), hint)


def is_loopback(address: str) -> bool:
    """Return whether a multiaddress is one that only this machine can reach."""
    _, kind, host, *_ = [*address.split("/"), "", ""]
    try:
        return kind in ("ip4", "ip6") and ip_address(host).is_loopback
    except ValueError:
        return False


def host_for_others(host: str) -> str:
    """Return the address at which other machines of this network reach one that listens on `host`.

    For all addresses it is that of the default route, as the kernel chooses it: nothing is sent.
    """
    if host not in ANY_HOSTS:
        return host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((DOCUMENTATION, 9))
        except OSError:  # no network: only this machine reaches it
            return "127.0.0.1"
        return str(probe.getsockname()[0])
