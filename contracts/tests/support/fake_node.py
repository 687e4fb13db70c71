"""A node that the test scripts: JSON-RPC over HTTP, WebSocket and a socket, with any answer at all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

Result = dict[str, Any]
HASH = "0x" + "ab" * 32
BLOCK = {"number": "0x10", "timestamp": "0x65000000", "hash": HASH, "baseFeePerGas": "0x7"}
RESULTS: dict[str, Any] = {"eth_chainId": "0x7a69", "eth_blockNumber": "0x10", "eth_getBlockByNumber": BLOCK}


class FakeNode:
    """A node.

    Attributes:
        answer: returns the `result` or `error` of one call; by default `RESULTS` and zeros for `eth_call`.
        reply: returns the reply to a whole HTTP request, or None for the usual one.
        shape: changes the JSON of a whole reply.
        calls: the methods that were called, in order; `posts` counts the requests, `connections` and `ended` those of
            WebSocket and the socket.
    """

    def __init__(self) -> None:
        self.answer: Callable[[str, list[Any]], Result | None] = lambda method, parameters: None
        self.reply: Callable[[Any], web.Response | None] = lambda body: None
        self.shape: Callable[[Any], Any] = lambda replies: replies
        self.calls: list[str] = []
        self.posts = self.connections = self.ended = 0
        self.close_codes: list[int | None] = []
        self.url = ""

    def handle(self, body: Any) -> Any:
        self.posts += 1
        return self.shape([self._one(each) for each in body] if isinstance(body, list) else self._one(body))

    def _one(self, call: Any) -> Any:
        method, parameters = call["method"], call["params"]
        self.calls.append(method)
        usual = {"result": RESULTS.get(method, "0x" + "00" * 32)}
        return {"jsonrpc": "2.0", "id": call["id"], **(self.answer(method, parameters) or usual)}

    async def http(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Upgrade") == "websocket":
            return await self._websocket(request)
        body = json.loads(await request.read())
        return self.reply(body) or web.json_response(self.handle(body))

    async def _websocket(self, request: web.Request) -> web.WebSocketResponse:
        self.connections += 1
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            if message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                await socket.send_str(json.dumps(self.handle(json.loads(message.data))))
        self.ended += 1
        self.close_codes.append(socket.close_code)
        return socket

    async def stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while line := await reader.readline():
            writer.write(json.dumps(self.handle(json.loads(line))).encode() + b"\n")
            await writer.drain()
        writer.close()
        self.ended += 1


@asynccontextmanager
async def fake_node(ipc: Path | None = None) -> AsyncIterator[FakeNode]:
    """Serve a node on a free port, and with `ipc` also on a socket."""
    node = FakeNode()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", node.http)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    node.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    server = await asyncio.start_unix_server(node.stream, ipc) if ipc is not None else None
    try:
        yield node
    finally:
        if server is not None:
            server.close()
        await runner.cleanup()
