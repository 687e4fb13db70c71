"""The sockets on which a process and its descendants accept connections or datagrams, read from /proc."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from running import descendants

_LISTEN, _UNCONNECTED = "0A", "07"


def listeners(pid: int) -> set[tuple[str, int]]:
    """Return address and port of each TCP socket that listens, and of each UDP socket that is bound."""
    found = set()
    for each in (pid, *descendants(pid)):
        inodes = _socket_inodes(each)
        for table, state in (("tcp", _LISTEN), ("tcp6", _LISTEN), ("udp", _UNCONNECTED), ("udp6", _UNCONNECTED)):
            try:
                rows = Path(f"/proc/{each}/net/{table}").read_text().splitlines()[1:]
            except OSError:  # it has ended
                continue
            for row in rows:
                fields = row.split()
                if fields[3] == state and fields[9] in inodes:
                    found.add(_address(fields[1]))
    return found


def is_loopback(address: str) -> bool:
    return ip_address(address).is_loopback


def _socket_inodes(pid: int) -> set[str]:
    targets = []
    with suppress(OSError):  # it has ended
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):  # it has closed this one
                targets.append(str(descriptor.readlink()))
    return {target[8:-1] for target in targets if target.startswith("socket:[")}


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.partition(":")
    # Words of the kernel's table are in the order of this machine's bytes.
    packed = b"".join(struct.pack("=I", int(host[at : at + 8], 16)) for at in range(0, len(host), 8))
    shown = IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed).ipv4_mapped or IPv6Address(packed)
    return str(shown), int(port, 16)


def has_ipv6() -> bool:
    """Return whether this machine has the address ::1."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def open_socket() -> tuple[socket.socket, tuple[str, int]]:
    """Return a socket that listens on all addresses, and how `listeners` shows it."""
    made = socket.create_server(("", 0))
    return made, ("0.0.0.0", made.getsockname()[1])
