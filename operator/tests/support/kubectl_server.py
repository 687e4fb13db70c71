"""An API server in a thread of its own, named by a kubeconfig, for commands that run in the test's thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from aiohttp import web


@contextmanager
def kubectl_server(handle: Callable[[web.Request], Awaitable[web.Response]], kubeconfig: Path) -> Iterator[None]:
    """Serve while the block runs.

    Args:
        handle: answers every request.
        kubeconfig: written; its namespace is `team`.
    """
    loop, ports = asyncio.new_event_loop(), []

    async def start() -> web.AppRunner:
        server = web.Application()
        server.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(server, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        ports.append(runner.addresses[0][1])
        return runner

    runner = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    config = {
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{ports[0]}"}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "team"}}],
        "current-context": "x",
    }
    kubeconfig.write_text(yaml.safe_dump(config), encoding="utf-8")
    yield
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()
