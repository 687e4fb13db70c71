"""The one address of the fake pods: it answers `/status` like a running peer, always with the same body.

The body does not change, because an operator without news should not write. The operator's own requests are answered
here, so that polling is part of the measurement.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from scale.cluster import POD_ADDRESS

PORT = 8080


class Peers:
    """Answers and counts the requests."""

    def __init__(self) -> None:
        self.requests = 0
        status = {
            "index": 0,
            "phase": "running",
            "rounds_finished": 3,
            "stage": 0,
            "max_rounds": 10,
            "members": [],
            "reward": 0.25,
        }
        self._answer = json.dumps(
            {**status, "round_finished": time.time(), "checkpoint": 3, "last_error": "", "metrics": {}}
        ).encode()

    async def answer(self, request: web.BaseRequest) -> web.Response:
        self.requests += 1
        return web.Response(body=self._answer, content_type="application/json")


@asynccontextmanager
async def peers() -> AsyncIterator[Peers]:
    """Answer requests while the block runs."""
    found = Peers()
    runner = web.ServerRunner(web.Server(found.answer, access_log=None))
    await runner.setup()
    try:
        await web.TCPSite(runner, POD_ADDRESS, PORT, reuse_address=True).start()
        yield found
    finally:
        await runner.cleanup()
