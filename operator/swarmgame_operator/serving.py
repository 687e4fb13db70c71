"""HTTP servers: /metrics on one port, /healthz and /readyz on another, in the operator's own event loop.

So a loop that hangs fails its probe.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from swarmgame_common.logs import get_logger

log = get_logger(__name__)

Probe = Callable[[], str]
"""Returns a problem as a sentence; empty if there is none."""


@asynccontextmanager
async def serve(
    registry: CollectorRegistry, *, metrics_port: int, probe_port: int, alive: Probe, ready: Probe, host: str = ""
) -> Any:
    """Serve while the block runs; yields the two ports."""

    async def metrics(request: web.Request) -> web.Response:
        text = await asyncio.to_thread(generate_latest, registry)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    def probe(check: Probe) -> Callable[[web.Request], Any]:
        async def answer(request: web.Request) -> web.Response:
            problem = check()
            return web.Response(text=f"{problem or 'ok'}\n", status=503 if problem else 200)

        return answer

    async with AsyncExitStack() as stack:
        first = await _listen(stack, host, metrics_port, {"/metrics": metrics})
        second = await _listen(stack, host, probe_port, {"/healthz": probe(alive), "/readyz": probe(ready)})
        log.info("serving", metrics_port=first, probe_port=second)
        yield first, second


async def _listen(stack: AsyncExitStack, host: str, port: int, routes: dict[str, Any]) -> int:
    application = web.Application()
    for path, handler in routes.items():
        application.router.add_get(path, handler)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    site = web.TCPSite(runner, host or None, port, reuse_address=True)
    await site.start()
    return int(runner.addresses[0][1])
