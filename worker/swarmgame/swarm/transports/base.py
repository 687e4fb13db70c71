"""What an agent needs of a network: small calls with an answer, bodies by hash, and a directory of heartbeats.

A transport moves bytes between peers that it has authenticated and knows nothing of rollouts. Invariants: it never
hands over more bytes than the caller allowed, every call ends within its time, and every byte is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from swarmgame.game.state import PeerId

CALL_BYTES = 96 << 10
"""The longest small message or answer; everything above travels as a body."""

_BODY_SECONDS, _BODY_RATE = 5.0, 256 << 10


def body_seconds(size: int) -> float:
    """The longest that a body of so many bytes may take: who asks waits no longer, and who serves holds it no longer."""
    return _BODY_SECONDS + size / _BODY_RATE


class Unreachable(Exception):
    """The peer did not answer, or not in time."""


class Oversized(Exception):
    """The peer wanted to send more than it may."""


@dataclass(slots=True)
class Traffic:
    """Running totals of one transport, all its protocols together. A message is a call, an answer, or a body."""

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
    """Who answers.

    Args:
        call: (sender, message) → answer; quick, and never raises.
        body: SHA-256 → the body, or None when we do not have it.
    """

    call: Callable[[PeerId, bytes], bytes]
    body: Callable[[bytes], bytes | None]


class Transport(Protocol):
    """One peer's network. All methods run on one asyncio loop."""

    @property
    def traffic(self) -> Traffic: ...

    async def start(self, handlers: Handlers) -> None:
        """Opens the network.

        Raises:
            Temporary: it could not be started.
        """
        ...

    async def close(self) -> None:
        """Gives everything back; may be called twice, and after a failed start."""
        ...

    def addresses(self) -> tuple[str, ...]:
        """Multiaddrs under which others may reach us, without the peer id."""
        ...

    async def bootstrap(self) -> Sequence[PeerId]:
        """Connects to the initial peers; those that answered."""
        ...

    async def touch(self, heard: Collection[PeerId]) -> None:
        """Greets one initial peer that is none of `heard`: a bootnode says nothing by itself, and one that was
        restarted knows nobody.
        """
        ...

    async def connect(self, peer: PeerId, addresses: Sequence[str], seconds: float) -> None:
        """Makes a peer reachable.

        Raises:
            Unreachable: at none of these addresses.
        """
        ...

    async def call(self, peer: PeerId, message: bytes, seconds: float) -> bytes:
        """Sends a small message, returns the answer.

        Raises:
            Unreachable, Oversized
        """
        ...

    async def fetch(self, peer: PeerId, name: bytes, limit: int, seconds: float) -> bytes | None:
        """A body of at most `limit` bytes; None when the peer does not have it. The hash is not checked here.

        Raises:
            Unreachable, Oversized
        """
        ...

    async def advertise(self, heartbeat: bytes, expires: float) -> None:
        """Puts our heartbeat into the directory; a failure is not an error, the next one may succeed."""
        ...

    async def discover(self, *, thorough: bool = False) -> Sequence[bytes]:
        """Heartbeats in the directory: those of the first copy found, or, `thorough`, of all copies together."""
        ...
