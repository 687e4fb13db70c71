"""A reverse proxy before an API server: it records every request, and answers chosen ones with a fault.

Requests of kopf are distinguished from the operator's own by their User-Agent. It serves plain HTTP, without
credentials unless `authorized` checks them, and talks to the API server as an administrator.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from swarmgame_operator.api import Api

WRITES = ("POST", "PUT", "PATCH", "DELETE")


@dataclass(frozen=True)
class Request:
    """A request as it arrived."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    when: float
    """Of the loop's clock."""

    @property
    def by_kopf(self) -> bool:
        return self.headers.get("User-Agent", "").startswith("kopf/")

    @property
    def plural(self) -> str:
        """The kind of the list or watch; empty for a request about one object or none."""
        last = self.path.rpartition("/")[2]
        return last if self.method == "GET" and last.endswith("s") else ""

    @property
    def is_watch(self) -> bool:
        return bool(self.plural) and self.query.get("watch") == "true"

    @property
    def is_list(self) -> bool:
        return bool(self.plural) and self.query.get("watch") != "true"

    @property
    def is_write(self) -> bool:
        """It may change an object. Dry runs, Leases and events do not count."""
        return (
            self.method in WRITES
            and "dryRun" not in self.query
            and "/leases" not in self.path
            and "/events" not in self.path
        )

    def names(self, game: str) -> bool:
        """Return whether it is about an object of this game."""
        return f"/{game}" in self.path or f'"{game}'.encode() in self.body


Chosen = Callable[[Request], bool]


@dataclass(frozen=True)
class Fault:
    """What a request gets instead of an answer.

    Args:
        chosen: which requests.
        kind: a status code; "hang": no answer; "close": the connection is closed; "half": half a line, and a proper
            end of the answer; "torn": half a line, and the connection is closed; "end": an empty answer with 200.
    """

    chosen: Chosen
    kind: int | str
    headers: Mapping[str, str] = field(default_factory=dict)


class ApiProxy:
    """A running proxy.

    Args:
        fault: applies from now on; None: none.
        frozen: answers to these watches are held back, and their connections stay open.
        kept: of these requests the answers are kept.
    """

    def __init__(self, target: str, session: aiohttp.ClientSession) -> None:
        self._target, self._session = target, session
        self.address = ""
        self.requests: list[Request] = []
        self.faulted: list[Request] = []
        self.answers: list[tuple[Request, bytes]] = []
        self.fault: Fault | None = None
        self.frozen: Chosen = lambda request: False
        self.kept: Chosen = lambda request: False
        self.authorized: Callable[[str], bool] = lambda authorization: True
        """Decides on the Authorization header; a refused request is answered with 401."""
        self._open: list[tuple[web.Request, Request]] = []

    def kubeconfig(self, path: Path, token: str = "") -> Path:
        """Write a kubeconfig that leads to this proxy."""
        user = {"token": token} if token else {}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "proxy", "cluster": {"server": self.address}}],
            "users": [{"name": "user", "user": user}],
            "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "user"}}],
            "current-context": "proxy",
        }
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    @property
    def writes(self) -> list[Request]:
        """All requests that may have changed an object."""
        return [request for request in self.requests if request.is_write]

    def count(self, chosen: Chosen) -> int:
        """Return the number of recorded requests that are chosen."""
        return sum(map(chosen, list(self.requests)))

    def cut(self, chosen: Chosen = lambda request: True) -> None:
        """Close the connections of open requests."""
        for connection, request in list(self._open):
            if chosen(request):
                _abort(connection)

    async def handle(self, connection: web.Request) -> web.StreamResponse:
        request = Request(
            connection.method,
            connection.path,
            dict(connection.query),
            dict(connection.headers),
            await connection.read(),
            asyncio.get_running_loop().time(),
        )
        self.requests.append(request)
        if not self.authorized(request.headers.get("Authorization", "")):
            return _status(401, {})
        self._open.append((connection, request))
        try:
            if self.fault is not None and self.fault.chosen(request):
                self.faulted.append(request)
                return await _faulty(connection, self.fault)
            return await self._pass(connection, request)
        except ConnectionError:  # one of the two sides has gone
            _abort(connection)
            return web.Response()
        finally:
            self._open = [each for each in self._open if each[0] is not connection]

    async def _pass(self, connection: web.Request, request: Request) -> web.StreamResponse:
        headers = {name: request.headers[name] for name in ("Content-Type", "Accept") if name in request.headers}
        try:
            async with self._session.request(
                request.method, f"{self._target}{connection.path_qs}", data=request.body or None, headers=headers
            ) as answer:
                retry = {name: answer.headers[name] for name in ("Retry-After",) if name in answer.headers}
                response = web.StreamResponse(
                    status=answer.status, headers={"Content-Type": answer.headers["Content-Type"], **retry}
                )
                await response.prepare(connection)
                async for part in answer.content.iter_any():
                    while request.is_watch and self.frozen(request):
                        await asyncio.sleep(0.02)
                    if self.kept(request):
                        self.answers.append((request, part))
                    await response.write(part)
                return response
        except aiohttp.ClientError as error:
            raise ConnectionError from error


async def _faulty(connection: web.Request, fault: Fault) -> web.StreamResponse:
    if isinstance(fault.kind, int):
        return _status(fault.kind, fault.headers)
    if fault.kind == "hang":
        await asyncio.Event().wait()
    if fault.kind == "close":
        raise ConnectionError
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(connection)
    if fault.kind in ("half", "torn"):
        await response.write(b'{"type": "ADDED", "kind": "Li')
    if fault.kind == "torn":
        raise ConnectionError
    return response


def _status(code: int, headers: Mapping[str, str]) -> web.Response:
    reasons = {401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 409: "Conflict", 410: "Expired"}
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code}
    return web.json_response(
        {**body, "reason": reasons.get(code, "Unlucky"), "message": "injected"}, status=code, headers=headers
    )


def _abort(connection: web.Request) -> None:
    if connection.transport is not None:
        connection.transport.abort()


@asynccontextmanager
async def api_proxy(api: Api) -> AsyncIterator[ApiProxy]:
    """Run a proxy to the API server of an administrator's connection."""
    connector = aiohttp.TCPConnector(ssl=api._client.rest_client.ssl_context, limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, read_bufsize=1 << 21) as session:
        proxy = ApiProxy(api._client.configuration.host, session)
        application = web.Application(client_max_size=1 << 24)
        application.router.add_route("*", "/{path:.*}", proxy.handle)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        proxy.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield proxy
        finally:
            with contextlib.suppress(ConnectionError):
                proxy.cut()
                await runner.cleanup()


def by_kopf(request: Request) -> bool:
    return request.by_kopf


def kopf_lists_games(request: Request) -> bool:
    return request.by_kopf and request.is_list and request.plural == "swarmgames"


def kopf_watches_games(request: Request) -> bool:
    return request.by_kopf and request.is_watch and request.plural == "swarmgames"


def informers_list(request: Request) -> bool:
    return not request.by_kopf and request.is_list


def informers_watch(request: Request) -> bool:
    return not request.by_kopf and request.is_watch


def body_of(request: Request) -> Any:
    """Return a request's JSON body."""
    return json.loads(request.body)
