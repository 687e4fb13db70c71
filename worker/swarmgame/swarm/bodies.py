"""Bodies over streams: asks for a body by its hash, and serves those that others ask for.

A request is the hash, 32 bytes; an answer is a head (there or not, and the size), then the body; a stream carries one
of each. Both ends are strangers to each other. Invariants: memory is taken for what has arrived, never for what was
promised; whoever asks for nothing, does not take what it asked for, or opens more streams than it could use, is cut
off.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections import Counter
from collections.abc import Callable

from swarmgame.game.state import PeerId
from swarmgame.swarm.transports.base import Oversized, Traffic, body_seconds

STREAMS_A_PEER = 8
"""Twice what a fetcher has at work at once."""
ASK_SECONDS = 5.0
"""Within these a stream must have asked."""
_NAME_BYTES = 32
_HEAD = struct.Struct(">BQ")
_HAVE, _HAVE_NOT = 1, 0
_GONE = (OSError, EOFError, TimeoutError)


async def ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: bytes, limit: int, traffic: Traffic
) -> bytes | None:
    """A body of at most `limit` bytes, over a stream that is closed afterwards; None when it is not there.

    Raises:
        Oversized: it is longer.
        OSError, EOFError: the stream broke.
    """
    with contextlib.closing(writer):
        writer.write(name)
        await writer.drain()
        traffic.sent(len(name))
        have, size = _HEAD.unpack(await reader.readexactly(_HEAD.size))
        if have != _HAVE:
            return None
        if size > limit:
            raise Oversized(f"{size} bytes, {limit} allowed")
        body = await reader.readexactly(size)  # whose buffer grows with what arrives
    traffic.received(len(body))
    return body


class BodyServer:
    """Serves bodies.

    Args:
        body: SHA-256 → the body, or None when we do not have it.
        traffic: where bytes are counted.
    """

    def __init__(self, body: Callable[[bytes], bytes | None], traffic: Traffic) -> None:
        self._body = body
        self._traffic = traffic
        self._held: Counter[PeerId] = Counter()

    async def serve(self, sender: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers the one question of a stream; however that ends, the stream is closed and nothing is raised."""
        if self._held[sender] >= STREAMS_A_PEER:
            writer.close()
            return
        self._held[sender] += 1
        # An answer is over when all of it has left: `abort` has no rest to lose, nor a peer that never reads one to
        # keep here.
        writer.transport.set_write_buffer_limits(high=0)
        try:
            with contextlib.suppress(*_GONE):
                await self._answer(reader, writer)
        finally:
            writer.transport.abort()
            self._held[sender] -= 1
            if not self._held[sender]:
                del self._held[sender]

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(ASK_SECONDS):
            name = await reader.readexactly(_NAME_BYTES)
        body = self._body(name)
        self._traffic.received(len(name))
        size = len(body or b"")
        async with asyncio.timeout(body_seconds(size)):
            writer.write(_HEAD.pack(_HAVE_NOT if body is None else _HAVE, size))
            if body:
                writer.write(body)
            await writer.drain()
        self._traffic.sent(size)
