"""An HTTP server for /metrics and /readyz, in the operator's own event loop. /healthz is kopf's, on another port.

The kubelet reads /readyz at the pod's address, so the server listens on all addresses. Where a proxy serves the metrics
to those who may read them, /metrics answers the pod's own containers alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from swarmgame_common.logs import get_logger
from swarmgame_common.sockets import plain_address

log = get_logger(__name__)


def is_local(address: str) -> bool:
    """Return whether a request from this address comes from this machine, or from this pod."""
    try:
        found = ip_address(plain_address(address))
    except ValueError:
        return False
    return found.is_loopback


@asynccontextmanager
async def serve(
    registry: CollectorRegistry, *, port: int, ready: Callable[[], str], host: str = "", local_metrics: bool = False
) -> AsyncIterator[int]:
    """Serve while the block runs; yields the port.

    Args:
        ready: returns a problem as a sentence; empty if there is none.
        host: empty: all addresses.
        local_metrics: /metrics refuses requests that do not come from this machine or pod.
    """

    async def metrics(request: web.Request) -> web.Response:
        if local_metrics and not is_local(request.remote or ""):
            text = "the metrics are served over TLS by the proxy beside the operator, on port 8443\n"
            return web.Response(text=text, status=403)
        body = await asyncio.to_thread(generate_latest, registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

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
