"""A gateway as a process: loop and door together, until it is told to stop or the chain turns out to be another one.

Invariant: it says its address only once it listens, and a chain that is not the right one ends it with a reason,
whenever it shows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from swarmgame_chain.errors import BadChainUsage
from swarmgame_chain.gateway.http import HttpServer
from swarmgame_chain.gateway.service import Gateway


async def serve(
    gateway: Gateway,
    host: str,
    port: int,
    stop: asyncio.Event,
    said: Callable[[str], None] = lambda line: None,
    before: Callable[[Gateway], Awaitable[None]] | None = None,
) -> None:
    """Serves until `stop` is set. `said` gets one line with the address: `gateway listens on http://127.0.0.1:8546`.

    Args:
        before: makes the chain ready, with the door open already; a problem it has it puts into the gateway's.

    Raises:
        ChainRefused: another chain, no contract, another contract; says which.
        BadChainUsage: the port is taken.
    """
    server = HttpServer(gateway, host, port)
    try:
        bound = await server.open()
    except OSError as error:
        raise BadChainUsage(f"the gateway cannot listen on {host}:{port}: {error.strerror}") from error

    async def carry() -> None:
        if before is not None:
            await before(gateway)
        await gateway.run()

    work = asyncio.create_task(carry())
    told = asyncio.create_task(stop.wait())
    said(f"gateway listens on http://{host}:{bound}")
    try:
        await asyncio.wait({work, told}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        told.cancel()
        await server.close()
        work.cancel()
        results = await asyncio.gather(work, told, return_exceptions=True)
    if isinstance(results[0], Exception):
        raise results[0]
