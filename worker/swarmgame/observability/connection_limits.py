"""Limits of an HTTP server's connections: how many there are, in all and from one host, and how long each lasts.

aiohttp waits for the first request for ever, and for a client that does not read its answer. Here a connection is
closed that sends no complete request within some seconds, or none for longer than an answer takes, so that clients
which send or read slowly do not keep others out.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast
from weakref import WeakKeyDictionary

from swarmgame_common.sockets import plain_address

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ConnectionBounds:
    """The bounds of a server.

    Args:
        total, host: most connections at once, in all and from one host.
        request_seconds: until the first request must be complete.
        seconds: that a connection may last after its last request.
    """

    total: int = 64
    host: int = 32
    request_seconds: float = 10.0
    seconds: float = 60.0


class ConnectionLimits:
    """The connections of one server.

    Args:
        bounds: how many, and for how long.

    Attributes:
        refused: number of connections that were closed, by reason: `too-many`, `no-request`, `too-slow`.
    """

    def __init__(self, bounds: ConnectionBounds | None = None) -> None:
        self.bounds = bounds or ConnectionBounds()
        self.refused: Counter[str] = Counter()
        self._open: Counter[str] = Counter()
        self._requested: WeakKeyDictionary[asyncio.BaseTransport, float] = WeakKeyDictionary()

    def wrap(self, make: Callable[[], asyncio.Protocol]) -> Callable[[], asyncio.Protocol]:
        """Return a factory of protocols like `make`, within the limits."""
        return lambda: _Connection(self, make())

    def requested(self, transport: asyncio.BaseTransport | None) -> None:
        """Note that a complete request has come over a connection."""
        if transport is not None:
            self._requested[transport] = asyncio.get_running_loop().time()

    def last_request(self, transport: asyncio.BaseTransport) -> float | None:
        """Return when the last complete request came over a connection, by the loop's clock; None without any."""
        return self._requested.get(transport)

    def enter(self, host: str) -> bool:
        """Count a new connection. Return False if there are too many."""
        if self._open.total() >= self.bounds.total or self._open[host] >= self.bounds.host:
            self.refuse("too-many", host)
            return False
        self._open[host] += 1
        return True

    def leave(self, host: str) -> None:
        """Count a connection that has ended."""
        self._open[host] -= 1
        if not self._open[host]:
            del self._open[host]

    def refuse(self, reason: str, host: str) -> None:
        """Count a connection that is closed, and log the first."""
        if not self.refused:
            logger.warning(
                "a connection to /metrics, /healthz and /status from %s was closed (%s): at most %d at once, %d from "
                "one host, a complete request within %g s. Likely cause: a client that opens connections and does not "
                "use them. Further ones are counted in /status: refused_connections",
                host,
                reason,
                self.bounds.total,
                self.bounds.host,
                self.bounds.request_seconds,
            )
        self.refused[reason] += 1


class _Connection(asyncio.Protocol):
    """Passes the events of one connection on to the server's protocol."""

    def __init__(self, limits: ConnectionLimits, inner: asyncio.Protocol) -> None:
        self._limits, self._inner = limits, inner
        self._host: str | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)
        host = plain_address(str((transport.get_extra_info("peername") or ("",))[0]))
        if not self._limits.enter(host):
            transport.abort()
            return
        self._host = host
        self._check_after(self._limits.bounds.request_seconds, transport)
        self._inner.connection_made(transport)

    def _check_after(self, seconds: float, transport: asyncio.Transport) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._check, transport)

    def _check(self, transport: asyncio.Transport) -> None:
        """Close the connection if its last request is too old, else look again when it will be."""
        last = self._limits.last_request(transport)
        left = 0.0 if last is None else last + self._limits.bounds.seconds - asyncio.get_running_loop().time()
        if left > 0:
            self._check_after(left, transport)
            return
        self._limits.refuse("no-request" if last is None else "too-slow", self._host or "")
        transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._host is not None:
            self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received() if self._host is not None else None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._host is not None:
            self._limits.leave(self._host)
            self._host = None
            self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()
