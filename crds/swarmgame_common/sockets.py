"""Addresses of a machine for servers, of IPv4 and IPv6 alike: what a host means, and HOST:PORT as a text.

A pod has addresses of one family or of both, as its cluster has; `::` serves all of them.
"""

from __future__ import annotations

import errno
import socket
from ipaddress import IPv6Address, ip_address

EVERY_ADDRESS = "::"
"""Every address of the machine: of both families, or of IPv4 alone where it has no IPv6."""
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


def listening_socket(host: str, port: int, *, backlog: int = 128) -> socket.socket:
    """Return a TCP socket that listens.

    Args:
        host: an address or a name of this machine, or `EVERY_ADDRESS`.
        port: 0 takes any free one.

    Raises:
        OSError: the port is taken, or the host is not one of this machine.
    """
    if host != EVERY_ADDRESS:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=backlog)
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=backlog)
        except OSError as error:
            if error.errno not in _NO_IPV6:
                raise
    return socket.create_server(("0.0.0.0", port), backlog=backlog)


def host_and_port(host: str, port: int) -> str:
    """Return HOST:PORT, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_host_and_port(text: str) -> tuple[str, int] | None:
    """Return the host, without brackets, and the port; None if the text is something else."""
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if not host or not port.isascii() or not port.isdecimal() or (":" in host) is not bracketed:
        return None
    return host, int(port)


def plain_address(host: str) -> str:
    """Return the address of a remote host: an IPv4 address as such, also where the socket is one of IPv6."""
    try:
        found = ip_address(host)
    except ValueError:
        return host
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return str(mapped or host)
