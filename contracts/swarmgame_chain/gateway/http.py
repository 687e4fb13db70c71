"""The gateway's door: signed messages in, their fate out.

`POST /v1/registrations|commits|reports` takes one message or a list, and answers 202 with an id and a state for each,
in order; the signature is the authentication. `POST /v1/lookups` takes {"ids": [...]} and answers what became of them;
an id that is unknown was lost with the gateway's memory, and its sender hands the message in again. `POST /rpc` is a
read-only view of the contract (`proxy`). `/healthz`, `/readyz`, `/status` and `/metrics` only read. Invariant: 202 is
said only of what is in the queue, or was, or is named rejected; a body that is too large is never read whole.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web
from pydantic_core import from_json

from swarmgame_chain.errors import BadMessage, ChainUnreachable, RpcError
from swarmgame_chain.gateway.metrics import CONTENT_TYPE, render
from swarmgame_chain.gateway.queue import QueuedMessage
from swarmgame_chain.gateway.rpc_proxy import MALFORMED, ReadOnlyRpcProxy
from swarmgame_chain.gateway.service import KINDS, Gateway
from swarmgame_chain.wire import MAX_BODY, MAX_MESSAGES, Kind, parse


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
        self._proxy = ReadOnlyRpcProxy(gateway.chain, gateway.domain.contract)

    async def open(self) -> int:
        """Listens; returns the port.

        Raises:
            OSError: the port is taken.
        """
        application = web.Application(client_max_size=MAX_BODY)
        for kind in KINDS:
            application.router.add_post(f"/v1/{kind}", self._taker(kind))
        application.router.add_post("/v1/lookups", self._look_up)
        application.router.add_post("/rpc", self._look_through)
        application.router.add_get("/healthz", self._healthy)
        application.router.add_get("/readyz", self._ready)
        application.router.add_get("/status", self._status)
        application.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]
        return self._port

    async def close(self) -> None:
        """Listens no longer."""
        if self._runner is not None:
            await self._runner.cleanup()

    def _taker(self, kind: Kind) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def take(request: web.Request) -> web.Response:
            try:
                messages = parse(kind, await request.read())
                taken = await self._gateway.take(messages)
            except BadMessage as error:
                return web.json_response({"error": str(error)}, status=400)
            except (ChainUnreachable, RpcError) as error:
                return web.json_response({"error": str(error)}, status=503, headers={"Retry-After": "2"})
            shown = [_shown(entry) for entry in taken]
            return web.json_response(
                {"messages": shown}, status=400 if all(isinstance(entry, BadMessage) for entry in taken) else 202
            )

        return take

    async def _look_up(self, request: web.Request) -> web.Response:
        try:
            ids = from_json(await request.read(), allow_inf_nan=False)["ids"]
            if (
                not isinstance(ids, list)
                or len(ids) > 4 * MAX_MESSAGES
                or not all(isinstance(each, str) for each in ids)
            ):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            return web.json_response(
                {"error": f'expected {{"ids": [...]}} with at most {4 * MAX_MESSAGES} ids'}, status=400
            )
        found = ((each, self._gateway.queue.get(each)) for each in ids)
        return web.json_response(
            {"messages": [entry.view() if entry else {"id": each, "state": "unknown"} for each, entry in found]}
        )

    async def _look_through(self, request: web.Request) -> web.Response:
        try:
            return web.json_response(await self._proxy.answer(await request.read()))
        except BadMessage as error:
            return web.json_response(
                {"jsonrpc": "2.0", "id": None, "error": {"code": MALFORMED, "message": str(error)}}, status=400
            )
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


def _shown(entry: QueuedMessage | BadMessage) -> dict[str, str]:
    return {"state": "rejected", "reason": str(entry)} if isinstance(entry, BadMessage) else entry.view()
