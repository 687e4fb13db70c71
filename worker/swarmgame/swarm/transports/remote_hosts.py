"""Remote hosts: from which address each peer is connected.

The daemon names no address with a call. It lists its connections with their remote addresses, so the list is read
while a peer that is not known yet waits for the answer to its call, or has just answered ours: its connection is open.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from itertools import pairwise

from swarmgame.game.state import PeerId

MAX_PEERS = 8192
"""Peers whose host is kept; those that are known for longest go first."""
_IPV6_PREFIX = 64
"""One host may own so many bits of IPv6 addresses."""

Connections = Callable[[], Awaitable[Iterable[tuple[PeerId, str]]]]


class RemoteHosts:
    """The host of each peer.

    Args:
        connections: lists the open connections, as peer and multiaddr.
        failures: what it may raise where it has no answer.
    """

    def __init__(self, connections: Connections, failures: tuple[type[Exception], ...]) -> None:
        self._connections = connections
        self._failures = failures
        self._hosts: dict[PeerId, str] = {}
        self._listing = asyncio.Lock()

    def host(self, peer: PeerId) -> str | None:
        """Return the host from which a peer was connected, "" for this machine itself; None where none is known."""
        return self._hosts.get(peer)

    async def meet(self, peer: PeerId) -> None:
        """Find out the host of a peer that is connected now. Many peers at once are found with one list."""
        if peer in self._hosts:
            return
        async with self._listing:
            if peer in self._hosts:
                return
            found: dict[PeerId, list[str]] = {}
            with contextlib.suppress(*self._failures):
                for connected, address in await self._connections():
                    found.setdefault(connected, []).append(host_of(address))
            for connected, hosts in found.items():
                self._hosts.setdefault(connected, _outermost(hosts))
            while len(self._hosts) > MAX_PEERS:
                del self._hosts[next(iter(self._hosts))]


def host_of(address: str) -> str:
    """Return the host of a multiaddr: an IPv4 address or the network of an IPv6 address.

    It is empty for the loopback address, which only users of this machine reach, and the complete multiaddr where it
    has no IP address.
    """
    parts = address.split("/")
    for name, value in pairwise(parts):
        if name in ("ip4", "ip6"):
            try:
                return _host(ip_address(value))
            except ValueError:
                break
    return address


def _host(address: IPv4Address | IPv6Address) -> str:
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_loopback:
        return ""
    if isinstance(address, IPv4Address):
        return str(address)
    return str(ip_network((address, _IPV6_PREFIX), strict=False))


def _outermost(hosts: Sequence[str]) -> str:
    """Return one of the hosts of a peer, the same for the same hosts; this machine only where there is no other."""
    return min((host for host in hosts if host), default="")
