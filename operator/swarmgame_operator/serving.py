"""An HTTP server for /metrics and /readyz, in the operator's own event loop. /healthz is kopf's, on another port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from swarmgame_common.logs import get_logger

log = get_logger(__name__)


@asynccontextmanager
async def serve(
    registry: CollectorRegistry, *, port: int, ready: Callable[[], str], host: str = ""
) -> AsyncIterator[int]:
    """Serve while the block runs; yields the port.

    Args:
        ready: returns a problem as a sentence; empty if there is none.
        host: empty: all addresses.
    """

    async def metrics(request: web.Request) -> web.Response:
        text = await asyncio.to_thread(generate_latest, registry)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def readiness(request: web.Request) -> web.Response:
        problem = ready()
        return web.Response(text=f"{problem or 'ok'}\n", status=503 if problem else 200)

    application = web.Application()
    application.router.add_get("/metrics", metrics)
    application.router.add_get("/readyz", readiness)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host or None, port, reuse_address=True)
        await site.start()
        addresses = runner.addresses  # with port 0, IPv4 and IPv6 get a port each
        found = int(next((each for each in addresses if len(each) == 2), addresses[0])[1])
        log.info("serving", port=found)
        yield found
    finally:
        await runner.cleanup()
