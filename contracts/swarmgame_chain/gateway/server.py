"""The gateway's HTTP server, and `serve`, which runs the server and the gateway's loop together.

`POST /v1/registrations|commits|reports` takes one message or a list, and answers 202 with an id and a state for each,
in order; the signature is the authentication. `POST /v1/lookups` takes {"ids": [...]} and answers their states; an
unknown id was lost with the gateway's memory, and its sender submits the message again. `POST /rpc` is a read-only
view of the contract (`rpc_proxy`). `/healthz`, `/readyz`, `/status` and `/metrics` only read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web
from pydantic_core import from_json

from swarmgame_chain.errors import BadChainUsage, BadMessage, ChainUnreachable, RequestTooLarge, RpcError
from swarmgame_chain.gateway.metrics import render
from swarmgame_chain.gateway.queue import QueuedMessage
from swarmgame_chain.gateway.rpc_proxy import MALFORMED, ReadOnlyRpcProxy
from swarmgame_chain.gateway.service import Gateway
from swarmgame_chain.messages import KINDS, MessageKind
from swarmgame_chain.wire import MAX_BODY, MAX_MESSAGES, parse
from swarmgame_common.metrics import CONTENT_TYPE
from swarmgame_common.sockets import host_and_port, listening_socket

MAX_IDS = 4 * MAX_MESSAGES


class HttpServer:
    """The HTTP server of a gateway.

    Args:
        host, port: where to listen; port 0 takes a free one.
    """

    def __init__(self, gateway: Gateway, host: str = "127.0.0.1", port: int = 0) -> None:
        self._gateway = gateway
        self._host = host
        self._port = port
        self._runner: web.AppRunner | None = None
        # What others ask for must not narrow the limits that the gateway found for its own requests.
        self._proxied = gateway.chain.separate()
        self._proxy = ReadOnlyRpcProxy(self._proxied, gateway.domain.contract)

    async def start(self) -> int:
        """Listen; return the port.

        Raises:
            OSError: the port is taken.
        """
        # A body that is too large is never read to its end.
        application = web.Application(client_max_size=MAX_BODY)
        for kind in KINDS:
            application.router.add_post(f"/v1/{kind.path}", self._submission_handler(kind))
        application.router.add_post("/v1/lookups", self._lookup)
        application.router.add_post("/rpc", self._call_node)
        application.router.add_get("/healthz", self._healthy)
        application.router.add_get("/readyz", self._ready)
        application.router.add_get("/status", self._status)
        application.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        site = web.SockSite(self._runner, listening_socket(self._host, self._port))
        await site.start()
        self._port = self._runner.addresses[0][1]
        return self._port

    async def close(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()
        if self._proxied is not self._gateway.chain:
            await self._proxied.close()

    def _submission_handler(self, kind: MessageKind) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def submit(request: web.Request) -> web.Response:
            try:
                messages = parse(kind, await request.read())
                entries = await self._gateway.submit(messages, request.remote or "")
            except BadMessage as error:
                return web.json_response({"error": str(error)}, status=400)
            except (ChainUnreachable, RpcError) as error:
                return web.json_response({"error": str(error)}, status=503, headers={"Retry-After": "2"})
            invalid = all(isinstance(entry, BadMessage) for entry in entries)
            return web.json_response({"messages": [_view(entry) for entry in entries]}, status=400 if invalid else 202)

        return submit

    async def _lookup(self, request: web.Request) -> web.Response:
        try:
            ids = from_json(await request.read(), allow_inf_nan=False)["ids"]
            if not isinstance(ids, list) or len(ids) > MAX_IDS or not all(isinstance(each, str) for each in ids):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            return web.json_response({"error": f'expected {{"ids": [...]}} with at most {MAX_IDS} ids'}, status=400)
        found = ((each, self._gateway.queue.get(each)) for each in ids)
        return web.json_response(
            {"messages": [entry.view() if entry else {"id": each, "state": "unknown"} for each, entry in found]}
        )

    async def _call_node(self, request: web.Request) -> web.Response:
        try:
            return web.json_response(await self._proxy.answer(await request.read()))
        except BadMessage as error:
            return web.json_response(
                {"jsonrpc": "2.0", "id": None, "error": {"code": MALFORMED, "message": str(error)}}, status=400
            )
        except RequestTooLarge as error:
            return web.json_response({"error": str(error)}, status=413)
        except (ChainUnreachable, RpcError):
            return web.json_response({"error": "the node does not answer"}, status=503, headers={"Retry-After": "2"})

    async def _healthy(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _ready(self, request: web.Request) -> web.Response:
        problem = self._gateway.problem or ("the wallet is empty" if self._gateway.sender.out_of_funds else "")
        return web.Response(text=f"{problem or 'ok'}\n", status=503 if problem else 200)

    async def _status(self, request: web.Request) -> web.Response:
        return web.json_response(self._gateway.status())

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=render(self._gateway), headers={"Content-Type": CONTENT_TYPE})


async def serve(
    gateway: Gateway,
    host: str,
    port: int,
    stop: asyncio.Event,
    announce: Callable[[str], None] = lambda line: None,
    prepare: Callable[[Gateway], Awaitable[None]] | None = None,
) -> None:
    """Serve until `stop` is set.

    Args:
        announce: called with one line once the server listens: `gateway listens on http://127.0.0.1:8546`.
        prepare: makes the chain ready while the server already listens; it writes a problem into the gateway's.

    Raises:
        ChainRefused: another chain, no contract, or another contract; the message names it.
        BadChainUsage: the port is taken.
    """
    server = HttpServer(gateway, host, port)
    try:
        bound = await server.start()
    except OSError as error:
        raise BadChainUsage(f"the gateway cannot listen on {host_and_port(host, port)}: {error.strerror}") from error

    async def work() -> None:
        if prepare is not None:
            await prepare(gateway)
        await gateway.run()

    working = asyncio.create_task(work())
    stopping = asyncio.create_task(stop.wait())
    announce(f"gateway listens on http://{host_and_port(host, bound)}")
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        await server.close()
        working.cancel()
        results = await asyncio.gather(working, stopping, return_exceptions=True)
    if isinstance(results[0], Exception):
        raise results[0]


def _view(entry: QueuedMessage | BadMessage) -> dict[str, str]:
    return {"state": "rejected", "reason": str(entry)} if isinstance(entry, BadMessage) else entry.view()
