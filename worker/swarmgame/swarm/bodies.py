"""Bodies over streams: request a body by its hash, and serve the requests of other peers.

A request is the hash, 32 bytes. A response is a head (found or not, and the size), then the body. A stream carries one
of each. Neither end trusts the other: memory is allocated for what has arrived, not for the size in the head, a body is
sent in pieces, and a stream is cut off if its peer sends no request, does not read the response, or opens more streams
than it can use.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time
from collections import Counter
from collections.abc import Callable

from swarmgame.game.state import PeerId
from swarmgame.swarm.gate import Gate
from swarmgame.swarm.transport import Oversized, Traffic, body_seconds

PIECE_BYTES = 256 << 10
"""What is handed to a stream at once: it keeps a copy until its peer has read it."""
REQUEST_SECONDS = 5.0
"""A stream must send its request within this time."""
_NAME_BYTES = 32
_HEAD = struct.Struct(">BQ")
_FOUND, _NOT_FOUND = 1, 0
_GONE = (OSError, EOFError, TimeoutError)


async def request_body(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: bytes, limit: int, traffic: Traffic
) -> bytes | None:
    """Request a body of at most `limit` bytes over a stream, and close the stream. Return None if it is not there.

    Raises:
        Oversized: it is longer.
        OSError, EOFError: the stream broke.
    """
    with contextlib.closing(writer):
        writer.write(name)
        await writer.drain()
        traffic.sent(len(name))
        found, size = _HEAD.unpack(await reader.readexactly(_HEAD.size))
        if found != _FOUND:
            return None
        if size > limit:
            raise Oversized(f"{size} bytes, {limit} allowed")
        body = await reader.readexactly(size)  # whose buffer grows with what arrives
    traffic.received(len(body))
    return body


class BodyServer:
    """Serves bodies.

    Args:
        body: SHA-256 → the body, or None if we do not have it.
        traffic: where bytes are counted.
        gate: bounds the streams; None: as if every peer counted.
    """

    def __init__(self, body: Callable[[bytes], bytes | None], traffic: Traffic, gate: Gate | None = None) -> None:
        self._body = body
        self._traffic = traffic
        self._gate = gate or Gate(time.time, lambda peer: True, Counter())

    async def serve(
        self, sender: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: str = ""
    ) -> None:
        """Answer the request of a stream, then close the stream. Never raises.

        Args:
            address: from which the sender is connected; empty where it is not known.
        """
        place = self._gate.open_stream(sender, address)
        if place is None:
            writer.close()
            return
        # With an empty write buffer `drain` returns when all of the response has been sent, so `abort` loses nothing
        # and does not wait for a peer that does not read.
        writer.transport.set_write_buffer_limits(high=0)
        try:
            with contextlib.suppress(*_GONE):
                await self._respond(reader, writer)
        finally:
            writer.transport.abort()
            self._gate.close_stream(place)

    async def _respond(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(REQUEST_SECONDS):
            name = await reader.readexactly(_NAME_BYTES)
        body = self._body(name)
        self._traffic.received(len(name))
        size = len(body or b"")
        async with asyncio.timeout(body_seconds(size)):
            writer.write(_HEAD.pack(_NOT_FOUND if body is None else _FOUND, size))
            for at in range(0, size, PIECE_BYTES):
                writer.write(memoryview(body or b"")[at : at + PIECE_BYTES])
                await writer.drain()
            await writer.drain()
        self._traffic.sent(size)
