"""The transport interface: small calls with an answer, bodies by hash, and a directory of heartbeats.

A transport moves bytes between peers that it has authenticated, and does not interpret them. It never returns more
bytes than the caller allowed, every call ends within its time, and every byte is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from swarmgame.game.state import PeerId
from swarmgame.swarm.gate import Gate

CALL_BYTES = 96 << 10
"""Longest small message or answer; anything longer is sent as a body."""

_BODY_SECONDS, _BODY_RATE = 5.0, 256 << 10


def body_seconds(size: int) -> float:
    """Return how long the transfer of a body may take, for the receiver and for the sender."""
    return _BODY_SECONDS + size / _BODY_RATE


class Unreachable(Exception):
    """The peer did not answer, or not in time."""


class Oversized(Exception):
    """The peer has more to send than allowed."""


class Unreadable(Exception):
    """The peer answered with something that is no message."""


@dataclass(slots=True)
class Traffic:
    """Running totals of one transport, over all its protocols. A message is a call, an answer or a body."""

    bytes_sent: int = 0
    bytes_received: int = 0
    messages_sent: int = 0
    messages_received: int = 0

    def sent(self, size: int) -> None:
        self.bytes_sent += size
        self.messages_sent += 1

    def received(self, size: int) -> None:
        self.bytes_received += size
        self.messages_received += 1


@dataclass(frozen=True)
class Handlers:
    """The functions that answer other peers.

    Args:
        call: (sender, message) → answer; fast, and never raises.
        body: SHA-256 → the body, or None if we do not have it.
        gate: decides which calls are read, and how many streams are open; None: there is no bound.
    """

    call: Callable[[PeerId, bytes], bytes]
    body: Callable[[bytes], bytes | None]
    gate: Gate | None = None


class Transport(Protocol):
    """One peer's connection to the network. All methods run on one asyncio loop."""

    @property
    def traffic(self) -> Traffic: ...

    @property
    def failure(self) -> str:
        """How the transport ended by itself, as a sentence; empty while it works."""
        ...

    async def start(self, handlers: Handlers) -> None:
        """Open the connection.

        Raises:
            Temporary: it cannot be started.
        """
        ...

    async def close(self) -> None:
        """Release everything; may be called twice, and after a failed start."""
        ...

    def addresses(self) -> tuple[str, ...]:
        """Return the multiaddrs at which others may reach us, without the peer id."""
        ...

    def remote_address(self, peer: PeerId) -> str | None:
        """Return the host from which a peer is or was connected to us itself: "" where peers of one host are not to be
        bounded, None where it never was.
        """
        ...

    async def connect_initial_peers(self) -> Sequence[PeerId]:
        """Connect to the initial peers. Return those that answered."""
        ...

    async def ping_initial_peer(self, known: Collection[PeerId]) -> None:
        """Ping one initial peer that is not in `known`. A bootnode sends nothing by itself, and one that was restarted
        knows no peer until it is called.
        """
        ...

    async def connect(self, peer: PeerId, addresses: Sequence[str], seconds: float) -> None:
        """Connect to a peer.

        Raises:
            Unreachable: at none of these addresses.
        """
        ...

    async def call(self, peer: PeerId, message: bytes, seconds: float) -> bytes:
        """Send a small message and return the answer.

        Raises:
            Unreachable, Oversized, Unreadable
        """
        ...

    async def fetch(self, peer: PeerId, name: bytes, limit: int, seconds: float) -> bytes | None:
        """Return a body of at most `limit` bytes, or None if the peer does not have it. The hash is not checked here.

        Raises:
            Unreachable, Oversized
        """
        ...

    async def advertise(self, heartbeat: bytes, expires: float) -> None:
        """Store our heartbeat in the directory. A failure is not an error: the next one may succeed."""
        ...

    async def discover(self, *, thorough: bool = False) -> Sequence[bytes]:
        """Return the heartbeats of the directory: of the first copy found, or with `thorough` of all copies."""
        ...
