"""A swarm that is faster than its chain, with a silent peer and keys of strangers; and a chain that makes blocks on
demand, on which the deadline comes by the clock of the wall.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from hashlib import sha256

import pytest
from chain_crowd import CARRIER, ETHER, make_ground, peer, running, states, until

from swarmgame_chain.anvil import Anvil
from swarmgame_chain.errors import BadMessage
from swarmgame_chain.gateway import Gateway
from swarmgame_chain.gateway.queue import QueuedMessage
from swarmgame_chain.keys import Wallet
from swarmgame_chain.messages import TOO_EARLY, SignedMessage
from swarmgame_chain.rpc import NodeClient

PEERS, STRANGERS, ROUNDS, ROUND_SECONDS = 3, 100, 150, 0.1


async def submit(gateway: Gateway, messages: Sequence[SignedMessage]) -> list[QueuedMessage]:
    """Submit messages as a peer does: those that are too early again later."""
    taken: list[QueuedMessage] = []
    left = list(messages)
    while left:
        entries = await gateway.submit(left)
        assert not any(isinstance(entry, BadMessage) for entry in entries)
        found = [entry for entry in entries if isinstance(entry, QueuedMessage)]
        taken += [entry for entry in found if entry.reason != TOO_EARLY]
        left = [entry.message for entry in found if entry.reason == TOO_EARLY]
        if left:
            await asyncio.sleep(0.2)
    return taken


@pytest.mark.parametrize("block_seconds", [1, 6])
async def test_a_swarm_faster_than_its_chain_loses_nothing_with_a_silent_peer_and_strangers(block_seconds: int) -> None:
    with Anvil("--block-time", str(block_seconds)) as anvil:
        async with NodeClient(anvil.url) as chain:
            await chain.request("anvil_setBalance", CARRIER.address, hex(1_000 * ETHER))
            ground = await make_ground(chain, min_round_time=1, round_duration=30)
            gateway = ground.gateway(ends_rounds=True, quorum=0.67)
            async with running(gateway):
                await submit(gateway, [ground.registration(n) for n in range(PEERS + 1 + STRANGERS)])
                await until(lambda: gateway.queue.on_their_way == 0, 120.0)
                waiting = []
                for round in range(ROUNDS):
                    reports = [ground.report(n, round, 1) for n in range(PEERS)]
                    waiting.append(asyncio.create_task(submit(gateway, reports)))
                    await asyncio.sleep(ROUND_SECONDS)
                async with asyncio.timeout(200):
                    entries = [entry for line in await asyncio.gather(*waiting) for entry in line]
                await until(lambda: gateway.queue.on_their_way == 0, 120.0)
            rewards = [state.total_reward for state in await ground.coordinator.peers([peer(n) for n in range(PEERS)])]
    assert states(entries) == ["final"] * (PEERS * ROUNDS)
    assert rewards == [ROUNDS] * PEERS


async def test_the_deadline_comes_on_a_chain_that_makes_blocks_on_demand_for_a_wallet_without_a_role() -> None:
    other = Wallet(sha256(b"another carrier").digest())
    with Anvil() as anvil:
        async with NodeClient(anvil.url) as chain:
            for wallet in (CARRIER, other):
                await chain.request("anvil_setBalance", wallet.address, hex(1_000 * ETHER))
            ground = await make_ground(chain, round_duration=4)
            gateway = ground.gateway(other, ends_rounds=True, quorum=1.0)
            async with running(gateway):
                await gateway.submit([ground.registration(n) for n in range(2)])
                await gateway.submit([ground.report(0, 0)])
                await until(lambda: gateway.queue.on_their_way == 0)
                block = int(await chain.request("eth_blockNumber"), 16)
                await until(lambda: gateway.clock is not None and gateway.clock.round == 1)
            assert int(await chain.request("eth_blockNumber"), 16) == block + 1, "no block but the one that ended it"
