"""Peers with keys, a contract for them on any node, and a gateway that is stepped or runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from swarmgame_chain.deploy import deploy
from swarmgame_chain.gateway import Gateway, GatewayConfig
from swarmgame_chain.gateway.queue import QueuedMessage
from swarmgame_chain.keys import Wallet
from swarmgame_chain.messages import (
    Domain,
    Registration,
    Report,
    SignedMessage,
    peer_id,
    public_key,
    sign_registration,
    sign_report,
)
from swarmgame_chain.reader import Coordinator, SwarmConfig
from swarmgame_chain.rpc import RpcClient

if TYPE_CHECKING:
    from tester_chain import TesterClient

CARRIER = Wallet(sha256(b"the carrier").digest())
FAR = int(time.time()) + 20 * 24 * 3600
"""A deadline of registrations; the contract takes none that is more than 30 days away."""
ETHER = 10**18


def secret(number: int) -> bytes:
    return sha256(b"crowd %d" % number).digest()


def peer(number: int) -> str:
    return peer_id(public_key(secret(number)))


@dataclass
class Ground:
    """A contract on a node."""

    chain: RpcClient
    domain: Domain

    @property
    def coordinator(self) -> Coordinator:
        return Coordinator(self.chain, self.domain)

    def registration(self, number: int, deadline: int = FAR) -> Registration:
        return sign_registration(self.domain, secret(number), deadline=deadline)

    def report(self, number: int, round: int, reward: int = 5, winners: Sequence[int] = ()) -> Report:
        named = tuple(peer(winner) for winner in winners)
        return sign_report(self.domain, secret(number), peer=peer(number), round=round, reward=reward, winners=named)

    def gateway(self, wallet: Wallet = CARRIER, chain: RpcClient | None = None, **options: object) -> Gateway:
        defaults: dict[str, object] = {"confirmations": 1, "interval": 0.02, "ends_rounds": False}
        config = GatewayConfig(**(defaults | options))  # type: ignore[arg-type]
        return Gateway(chain or self.chain, self.domain, wallet, config)


async def make_ground(chain: RpcClient, **config: object) -> Ground:
    defaults: dict[str, object] = {"min_round_time": 0}
    domain, _ = await deploy(chain, CARRIER, SwarmConfig(**(defaults | config)))  # type: ignore[arg-type]
    return Ground(chain, domain)


async def tester_chain(*addresses: str) -> TesterClient:
    """Return a chain in this process on which these accounts have funds."""
    # eth-tester takes seconds to import, and tests on anvil need none of it.
    from tester_chain import TesterClient

    chain = TesterClient()
    for address in addresses or (CARRIER.address,):
        funds = {"from": chain.tester.get_accounts()[0], "to": address, "value": 1_000 * ETHER, "gas": 21_000}
        chain.tester.send_transaction(funds)
    return chain


async def tester_ground(**config: object) -> Ground:
    """Return a contract on a new chain in this process."""
    return await make_ground(await tester_chain(), **config)


async def stepped(gateway: Gateway, messages: Sequence[SignedMessage] = (), most: int = 12) -> list[QueuedMessage]:
    """Submit messages and step until all are over."""
    if not gateway.ready:
        await gateway.start()
    entries = [entry for entry in await gateway.submit(list(messages)) if isinstance(entry, QueuedMessage)]
    for _ in range(most):
        if not gateway.queue.on_their_way:
            break
        await gateway.step()
    return entries


@asynccontextmanager
async def running(*gateways: Gateway) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(gateway.run()) for gateway in gateways]
    try:
        await until(lambda: all(gateway.ready for gateway in gateways) or any(task.done() for task in tasks))
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(holds: Callable[[], bool] | Callable[[], Awaitable[bool]], seconds: float = 60.0) -> None:
    """Wait until something holds; fail when it does not in time."""
    async with asyncio.timeout(seconds):
        while True:
            answer = holds()
            if answer if isinstance(answer, bool) else await answer:
                return
            await asyncio.sleep(0.01)


def states(entries: Sequence[QueuedMessage]) -> list[str]:
    return [f"{entry.state} {entry.reason}".strip() for entry in entries]
