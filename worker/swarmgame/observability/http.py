"""The HTTP endpoints of one peer or bootnode: `/healthz`, `/readyz`, `/status`, `/metrics` and `/drain`, on one port.

They run in a thread of their own, so that a healthy peer answers during a long training step, and take no body. All
but `/drain` only read; that one is a pod's preStop hook, which can only GET: for a minute the peer is not ready, and
goes on. Invariant: `/healthz` checks that the process and its event loops are alive, never the progress of rounds: a
peer that waits for other peers must not be restarted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from threading import Event, Thread
from typing import Protocol

from aiohttp import web

from swarmgame.errors import Temporary
from swarmgame.observability.connection_limits import ConnectionBounds, ConnectionLimits
from swarmgame.observability.status import PeerStatus
from swarmgame_common.metrics import CONTENT_TYPE
from swarmgame_common.sockets import host_and_port, listening_socket

MAX_LINE_BYTES = 4096
MAX_HEADERS = 64
MAX_HEADER_BYTES = 4096
START_SECONDS = 10.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class MetricsSource(Protocol):
    """Where `/metrics` takes its text from."""

    def render(self) -> bytes:
        """Return the text in the format of Prometheus."""
        ...


class Endpoints:
    """The HTTP server.

    Args:
        status, metrics: the content of `/status`, `/readyz` and `/metrics`.
        host: address to listen on; `::`, every address, in a pod, else `127.0.0.1`.
        port: 0 takes any free one.
        dead: returns what has died, as a sentence, or an empty text; called by `/healthz`, must not block.
        bounds: of the connections; None: the usual ones.
    """

    def __init__(
        self,
        status: PeerStatus,
        metrics: MetricsSource,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        dead: Callable[[], str] = lambda: "",
        bounds: ConnectionBounds | None = None,
    ) -> None:
        self._limits = ConnectionLimits(bounds)
        self._status = status
        self._metrics = metrics
        self._host = host
        self._port = port
        self._dead = dead
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: Thread | None = None
        self._error: OSError | None = None
        self._bound = 0

    def start(self) -> int:
        """Start to listen, and return the port.

        Raises:
            Temporary: the port is taken, or the address is not one of this machine.
        """
        if self._thread is not None:
            raise RuntimeError("the endpoints have been started already")
        up, place = Event(), host_and_port(self._host, self._port)
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._run, args=(self._loop, up), name="endpoints", daemon=True)
        self._thread.start()
        if not up.wait(START_SECONDS):
            raise Temporary(f"the endpoints did not come up on {place} within {START_SECONDS:.0f} s")
        if self._error is not None:
            self._thread.join()
            raise Temporary(f"the endpoints cannot listen on {place}: {self._error.strerror}") from self._error
        return self._bound

    def stop(self) -> None:
        """Stop. May be called twice, or without a start."""
        thread, loop = self._thread, self._loop
        if thread is None or loop is None or not thread.is_alive():
            return
        loop.call_soon_threadsafe(loop.stop)
        thread.join(START_SECONDS)

    def _run(self, loop: asyncio.AbstractEventLoop, up: Event) -> None:
        asyncio.set_event_loop(loop)
        runner = web.AppRunner(
            self._application(),
            access_log=None,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            max_headers=MAX_HEADERS,
            keepalive_timeout=15.0,
            lingering_time=0.0,
            shutdown_timeout=1.0,
        )
        try:
            try:
                loop.run_until_complete(runner.setup())
                assert runner.server is not None, "set up"
                listener = listening_socket(self._host, self._port, backlog=64)
                listening = loop.create_server(self._limits.wrap(runner.server), sock=listener, backlog=64)
                server = loop.run_until_complete(listening)
                self._bound = server.sockets[0].getsockname()[1]
            except OSError as error:
                self._error = error
            finally:
                up.set()
            if self._error is None:
                loop.run_forever()
                server.close()
        finally:
            loop.run_until_complete(runner.cleanup())
            loop.close()

    def _application(self) -> web.Application:
        application = web.Application(middlewares=[self._note_request, _read_only], client_max_size=1)
        application.router.add_get("/healthz", self._healthz)
        application.router.add_get("/readyz", self._readyz)
        application.router.add_get("/status", self._show_status)
        application.router.add_get("/metrics", self._show_metrics)
        application.router.add_get("/drain", self._drain)
        return application

    @web.middleware
    async def _note_request(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self._limits.requested(request.transport)
        return await handler(request)

    async def _healthz(self, request: web.Request) -> web.Response:
        dead = self._dead()
        return web.json_response({"alive": not dead, "reason": dead}, status=503 if dead else 200)

    async def _readyz(self, request: web.Request) -> web.Response:
        current = self._status.current
        # A pod's readiness asks so: a Warning at each usual end says nothing, and Kubernetes sends nothing to a pod
        # that it stops.
        reason = current.not_joined if request.query.get("stopping") == "ready" else current.not_ready
        return web.json_response({"ready": not reason, "reason": reason}, status=503 if reason else 200)

    async def _show_status(self, request: web.Request) -> web.Response:
        return web.json_response({**self._status.snapshot(), "refused_connections": dict(self._limits.refused)})

    async def _show_metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    async def _drain(self, request: web.Request) -> web.Response:
        self._status.drain()
        return web.json_response({"draining": True})


@web.middleware
async def _read_only(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse a request with a body before a byte of it is read."""
    if request.body_exists:
        refused = web.json_response({"error": "these endpoints take no body"}, status=413)
        refused.force_close()
        return refused
    return await handler(request)
