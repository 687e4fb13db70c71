"""An API server of one kind of object that cuts watches in the middle of a line, forgets history and refuses requests.
It has versions, pages and watches as the real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from kubernetes.aio import client

from swarmgame_operator.api import Api


class FaultyServer:
    """Objects by name, in the namespace `n`.

    Args:
        refusals: status codes of the next answers to lists and watches; used up one by one. 200: an empty answer.
        hangs: watches get no answer.
    """

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.version = 100
        self.oldest = 0
        self.history: list[tuple[int, str, dict[str, Any]]] = []
        self.refusals: list[int] = []
        self.hangs = False
        self.watches: set[asyncio.Task[Any]] = set()
        self.lists = 0
        self._ended = False
        self._changed = asyncio.Condition()

    async def change(self, event: str, name: str, **extra: Any) -> None:
        """ADDED, MODIFIED or DELETED."""
        self.version += 1
        known = self.objects.get(name, {"metadata": {"uid": f"{name}-{self.version}"}})
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                **known["metadata"],
                "name": name,
                "namespace": "n",
                "resourceVersion": str(self.version),
                "labels": {"swarmgame.dev/game": "g"},
            },
            **extra,
        }
        if event == "DELETED":
            self.objects.pop(name, None)
        else:
            self.objects[name] = body
        self.history.append((self.version, event, body))
        async with self._changed:
            self._changed.notify_all()

    def forget(self) -> None:
        """Make all versions before the present one too old to watch from."""
        self.oldest = self.version
        self.history.clear()

    def cut(self) -> None:
        """Break every open watch."""
        for task in list(self.watches):
            task.cancel()

    def end(self) -> None:
        """End every open watch properly."""
        self._ended = True
        for task in list(self.watches):
            task.cancel()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if self.refusals:
            code = self.refusals.pop(0)
            if code == 200:
                return web.Response()
            headers = {"Retry-After": "0"} if code == 429 else {}
            return web.json_response({"kind": "Status", "code": code, "reason": "Sorry"}, status=code, headers=headers)
        if request.query.get("watch") == "true":
            if self.hangs:
                await asyncio.Event().wait()
            return await self._watch(request)
        self.lists += 1
        limit, start = int(request.query["limit"]), int(request.query.get("continue") or 0)
        found = sorted(self.objects.items())
        more = start + limit < len(found)
        metadata = {"resourceVersion": str(self.version), "continue": str(start + limit) if more else ""}
        return web.json_response({"metadata": metadata, "items": [body for _, body in found[start : start + limit]]})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        since = int(request.query["resourceVersion"])
        response = web.StreamResponse()
        await response.prepare(request)
        task = asyncio.current_task()
        assert task is not None
        self.watches.add(task)
        try:
            while True:
                if since < self.oldest:
                    await _send(response, {"type": "ERROR", "object": {"code": 410, "message": "too old"}})
                    return response
                for version, event, body in [each for each in self.history if each[0] > since]:
                    await _send(response, {"type": event, "object": body})
                    since = version
                async with self._changed:
                    await asyncio.wait_for(self._changed.wait(), 60)
        except asyncio.CancelledError:
            if self._ended:
                self._ended = False
                return response
            with contextlib.suppress(ConnectionError):
                await response.write(b'{"type": "ADD')  # the line ends in the middle
            if request.transport is not None:
                request.transport.abort()
            return response
        finally:
            self.watches.discard(task)


async def _send(response: web.StreamResponse, event: dict[str, Any]) -> None:
    await response.write(json.dumps(event).encode() + b"\n")


@asynccontextmanager
async def serving(server: FaultyServer) -> AsyncIterator[Api]:
    """The server on a free port, and a connection to it."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    configuration = client.Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}")
    api = Api(client.ApiClient(configuration=configuration))
    try:
        yield api
    finally:
        await api.close()
        server.cut()
        await runner.cleanup()
