"""Bodies over streams: real sockets, with untrusted peers at either end."""

from __future__ import annotations

import asyncio
import struct
from hashlib import sha256

import pytest

from swarmgame.swarm import bodies, gate
from swarmgame.swarm.bodies import BodyServer, request_body
from swarmgame.swarm.transport import Oversized, Traffic

SMALL, LARGE = b"small", bytes(range(256)) * 8192
HEAD = struct.Struct(">BQ")


def name(body):
    return sha256(body).digest()


class Wire:
    """A socket between requesting peers and one server."""

    def __init__(self, folder, serve):
        self.path, self._serve = str(folder / "socket"), serve
        self.writers = []

    async def __aenter__(self):
        self._server = await asyncio.start_unix_server(self._connected, self.path)
        return self

    async def __aexit__(self, *error):
        self._server.close()
        for writer in self.writers:
            writer.close()

    async def _connected(self, reader, writer):
        self.writers.append(writer)
        await self._serve(reader, writer)

    async def open(self):
        return await asyncio.open_unix_connection(self.path)

    async def first_closed(self):
        """Returns when the first stream is closed at the serving end."""
        while not self.writers or not self.writers[0].transport.is_closing():
            await asyncio.sleep(0.01)

    async def request(self, body, limit):
        return await request_body(*await self.open(), name(body), limit, Traffic())


def server_with(*known):
    """A server that has these bodies."""
    return BodyServer({name(body): body for body in known}.get, Traffic())


def handler(server):
    return lambda reader, writer: server.serve("a", reader, writer)


def run(test):
    asyncio.run(asyncio.wait_for(test(), 30.0))


@pytest.mark.parametrize("body", [SMALL, LARGE, b""])
def test_a_body_arrives_complete_at_exactly_its_size(tmp_path, body):
    async def test():
        async with Wire(tmp_path, handler(server_with(body))) as wire:
            assert await wire.request(body, len(body)) == body

    run(test)


def test_an_unknown_body_is_none_and_bodies_are_served_concurrently(tmp_path):
    async def test():
        async with Wire(tmp_path, handler(server_with(SMALL, LARGE))) as wire:
            found = await asyncio.gather(
                *(wire.request(body, len(LARGE)) for body in (LARGE, b"unknown", SMALL, LARGE))
            )
            assert found == [LARGE, None, SMALL, LARGE]

    run(test)


# ── untrusted servers
def test_a_stream_that_breaks_in_the_middle_of_a_body_is_an_error(tmp_path):
    async def half(reader, writer):
        await reader.readexactly(32)
        writer.write(HEAD.pack(1, 1000) + b"x" * 500)
        await writer.drain()
        writer.close()

    async def test():
        async with Wire(tmp_path, half) as wire:
            with pytest.raises(EOFError, match="500 bytes read on a total of 1000"):
                await wire.request(SMALL, 1000)

    run(test)


@pytest.mark.parametrize("declared", [101, 1 << 30, (1 << 64) - 1])
def test_a_body_longer_than_its_author_signed_is_not_read(tmp_path, declared):
    async def exaggerate(reader, writer):
        await reader.readexactly(32)
        writer.write(HEAD.pack(1, declared))
        await writer.drain()

    async def test():
        async with Wire(tmp_path, exaggerate) as wire:
            with pytest.raises(Oversized):
                await wire.request(SMALL, 100)

    run(test)


# ── untrusted clients
async def closed(reader):
    return await reader.read() == b""


def test_a_peer_holds_no_more_streams_than_a_fetcher_can_use(tmp_path):
    async def test():
        async with Wire(tmp_path, handler(server_with(SMALL))) as wire:
            streams = [await wire.open() for _ in range(gate.STREAMS_PER_PEER + 2)]
            refused = [reader for reader, _ in streams[-2:]]
            assert await asyncio.gather(*map(closed, refused)) == [True, True]
            reader, writer = streams[0]
            writer.write(name(SMALL))
            assert await reader.readexactly(HEAD.size + len(SMALL)) == HEAD.pack(1, len(SMALL)) + SMALL
            writer.close()
            # One that was answered makes room for another.
            await wire.first_closed()
            assert await wire.request(SMALL, 100) == SMALL
            for _, writer in streams:
                writer.close()

    run(test)


@pytest.mark.parametrize("data", [b"", b"half a name"])
def test_a_stream_without_a_request_is_closed(tmp_path, monkeypatch, data):
    monkeypatch.setattr(bodies, "REQUEST_SECONDS", 0.02)

    async def test():
        async with Wire(tmp_path, handler(server_with(SMALL))) as wire:
            reader, writer = await wire.open()
            writer.write(data)
            assert await closed(reader)
            writer.close()

    run(test)


def test_a_response_that_is_not_read_is_aborted(tmp_path, monkeypatch):
    monkeypatch.setattr(bodies, "body_seconds", lambda size: 0.02)

    async def test():
        async with Wire(tmp_path, handler(server_with(LARGE))) as wire:
            reader, writer = await wire.open()
            writer.transport.pause_reading()
            writer.write(name(LARGE))
            await wire.first_closed()
            writer.transport.resume_reading()
            assert 0 < len(await reader.read()) < len(LARGE)
            writer.close()

    run(test)
