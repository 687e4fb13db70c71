"""The fake pods' one address: answers `/status` as a peer does whose game goes on, always with the same words.

Always the same, because an operator that hears nothing new should write nothing. Invariant: the operator's own
questions are answered here, so that asking is part of what is measured.
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
    """Counts the questions."""

    def __init__(self) -> None:
        self.asked = 0
        said = {
            "index": 0,
            "phase": "running",
            "rounds_finished": 3,
            "stage": 0,
            "max_rounds": 10,
            "members": [],
            "reward": 0.25,
        }
        self._answer = json.dumps(
            {**said, "round_finished": time.time(), "checkpoint": 3, "last_error": "", "metrics": {}}
        ).encode()

    async def answer(self, request: web.BaseRequest) -> web.Response:
        self.asked += 1
        return web.Response(body=self._answer, content_type="application/json")


@asynccontextmanager
async def peers() -> AsyncIterator[Peers]:
    """Answers while the block runs."""
    found = Peers()
    runner = web.ServerRunner(web.Server(found.answer, access_log=None))
    await runner.setup()
    try:
        await web.TCPSite(runner, POD_ADDRESS, PORT, reuse_address=True).start()
        yield found
    finally:
        await runner.cleanup()
