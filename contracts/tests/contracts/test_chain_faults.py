"""Faults on a real node: nothing is lost."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from chain_crowd import CARRIER, ETHER, Ground, make_ground, peer, running, secret, states, until

from swarmgame_chain.anvil import Anvil
from swarmgame_chain.errors import ChainRefused, ChainUnreachable
from swarmgame_chain.gateway.queue import MessageState, QueuedMessage
from swarmgame_chain.keys import Wallet
from swarmgame_chain.messages import Domain
from swarmgame_chain.reporter import ChainReporter
from swarmgame_chain.rpc import NodeClient


class CuttableClient(NodeClient):
    """A client whose connection can be cut."""

    cut = False

    async def request(self, method: str, *parameters: Any) -> Any:
        if self.cut:
            raise ChainUnreachable("the connection is cut")
        return await super().request(method, *parameters)

    async def request_all(self, calls: Sequence[Any]) -> list[Any]:
        if self.cut:
            raise ChainUnreachable("the connection is cut")
        return await super().request_all(calls)


@pytest.fixture
async def ground() -> AsyncIterator[Ground]:
    with Anvil() as anvil:
        async with CuttableClient(anvil.url) as chain:
            await chain.request("anvil_setBalance", CARRIER.address, hex(1_000 * ETHER))
            yield await make_ground(chain)


async def reports_on_chain(ground: Ground, count: int) -> int:
    """The sum of all rewards: every report of reward 1 counts once, or this is not the number of reports."""
    return sum(state.total_reward for state in await ground.coordinator.peers([peer(n) for n in range(count)]))


async def registered(ground: Ground, count: int) -> None:
    gateway = ground.gateway()
    async with running(gateway):
        await gateway.submit([ground.registration(n) for n in range(count)])
        await until(lambda: gateway.queue.on_their_way == 0)


async def test_unmined_transactions_are_replaced_at_higher_fees_and_end_final_once(ground: Ground) -> None:
    await registered(ground, 40)
    await ground.chain.request("evm_setAutomine", False)
    gateway = ground.gateway(bump_after=0.2)
    async with running(gateway):
        entries = await gateway.submit([ground.report(n, 0, 1) for n in range(40)])
        await until(lambda: gateway.sender.counts.bumped >= 3)
        assert {entry.state for entry in entries} == {MessageState.SENT}
        await ground.chain.request("evm_setAutomine", True)
        await ground.chain.request("evm_mine")
        await until(lambda: gateway.queue.on_their_way == 0)
    assert set(states(entries)) == {"final"}
    assert await reports_on_chain(ground, 40) == 40


async def test_a_reorganisation_of_five_blocks_takes_nothing_away(ground: Ground) -> None:
    await registered(ground, 60)
    for _ in range(6):
        await ground.chain.request("evm_mine")
    gateway = ground.gateway(confirmations=8, bump_after=1.0)
    async with running(gateway):
        entries = await gateway.submit([ground.report(n, 0, 1) for n in range(60)])
        await until(lambda: all(entry.state is MessageState.SENT for entry in entries))
        for _ in range(3):
            await ground.chain.request("evm_mine")
        await asyncio.sleep(0.2)
        assert {entry.state for entry in entries} == {MessageState.SENT}
        await ground.chain.request("evm_setAutomine", False)  # otherwise the transactions might be mined again at once
        await ground.chain.request("anvil_reorg", 5, [])
        assert await reports_on_chain(ground, 60) == 0
        await ground.chain.request("evm_setAutomine", True)
        await until(lambda: gateway.sender.counts.reorganised >= 1)
        async with asyncio.timeout(60):
            while gateway.queue.on_their_way:
                await ground.chain.request("evm_mine")
                await asyncio.sleep(0.05)
    assert set(states(entries)) == {"final"}
    assert await reports_on_chain(ground, 60) == 60


async def test_the_node_goes_away_in_the_middle_and_comes_back(ground: Ground) -> None:
    await registered(ground, 30)
    client = ground.chain
    assert isinstance(client, CuttableClient)
    gateway = ground.gateway()
    async with running(gateway):
        await client.request("evm_setAutomine", False)
        first = await gateway.submit([ground.report(n, 0, 1) for n in range(20)])
        await until(lambda: all(entry.state is MessageState.SENT for entry in first))
        client.cut = True
        await until(lambda: not gateway.ready)
        # Unknown signers cannot be checked now: it is an error, and nothing is queued.
        with pytest.raises(ChainUnreachable):
            await gateway.submit([ground.report(n, 0, 1) for n in range(20, 30)])
        client.cut = False
        await client.request("evm_setAutomine", True)
        await client.request("evm_mine")
        await until(lambda: gateway.ready)
        second = await gateway.submit([ground.report(n, 0, 1) for n in range(20, 30)])
        await until(lambda: gateway.queue.on_their_way == 0)
    assert set(states([*first, *second])) == {"final"}  # type: ignore[list-item]
    assert await reports_on_chain(ground, 30) == 30


async def test_a_node_that_is_away_at_the_start_is_waited_for(ground: Ground) -> None:
    client = ground.chain
    assert isinstance(client, CuttableClient)
    client.cut = True
    gateway = ground.gateway()
    task = asyncio.create_task(gateway.run())
    await until(lambda: gateway.problem == "the connection is cut")
    with pytest.raises(ChainUnreachable, match="has not answered"):
        await gateway.submit([ground.registration(1)])
    client.cut = False
    await until(lambda: gateway.ready)
    await gateway.submit([ground.registration(1)])
    await until(lambda: gateway.queue.on_their_way == 0)
    task.cancel()
    assert (await ground.coordinator.peer(peer(1))).proven


async def test_another_chain_no_code_and_another_contract_are_different_errors(ground: Ground) -> None:
    other, silent = "0x" + "78" * 20, "0x" + "79" * 20
    await ground.chain.request("anvil_setCode", other, "0x600160005260206000f3")
    await ground.chain.request("anvil_setCode", silent, "0x60006000fd")
    for domain, message in (
        (Domain(1, ground.domain.contract), "the node is of chain 31337; expected chain 1"),
        (Domain(31337, "0x" + "99" * 20), "there is no contract at"),
        (Domain(31337, other), "is another one"),
        (Domain(31337, silent), "is no SwarmCoordinator"),
    ):
        with pytest.raises(ChainRefused, match=message):
            await Ground(ground.chain, domain).gateway().run()


async def test_two_gateways_with_one_wallet_lose_no_message(ground: Ground) -> None:
    await registered(ground, 80)
    one, two = ground.gateway(bump_after=0.3), ground.gateway(bump_after=0.3)
    async with running(one, two):
        await ground.chain.request("evm_setAutomine", False)
        reports = [ground.report(n, 0, 1) for n in range(80)]
        # Half of the messages go to both.
        entries = [*await one.submit(reports[:60]), *await two.submit(reports[20:])]
        await until(lambda: one.sender.in_flight > 0 and two.sender.in_flight > 0)
        await ground.chain.request("evm_setAutomine", True)
        await ground.chain.request("evm_mine")
        await until(lambda: not one.queue.on_their_way and not two.queue.on_their_way)
    assert set(states(entries)) == {"final"}  # type: ignore[arg-type]
    assert await reports_on_chain(ground, 80) == 80


async def test_an_empty_wallet_keeps_messages_until_it_is_filled(ground: Ground) -> None:
    poor = Wallet(secret(9_999))
    gateway = ground.gateway(poor, bump_after=0.2)
    async with running(gateway):
        entries = await gateway.submit([ground.registration(n) for n in range(5)])
        await until(lambda: gateway.sender.out_of_funds or bool(gateway.problem))
        now = {entry.state for entry in entries if isinstance(entry, QueuedMessage)}
        assert now <= {MessageState.QUEUED, MessageState.SENT}
        await ground.chain.request("anvil_setBalance", poor.address, hex(ETHER))
        await until(lambda: gateway.queue.on_their_way == 0)
    assert set(states(entries)) == {"final"}  # type: ignore[arg-type]


async def test_another_process_uses_the_next_nonce(ground: Ground) -> None:
    await registered(ground, 10)
    gateway = ground.gateway()
    async with running(gateway):
        await gateway.submit([ground.report(0, 0, 1)])
        await until(lambda: gateway.queue.on_their_way == 0)
        # Another process of the same wallet: the gateway's own count is now one behind.
        await registered(Ground(ground.chain, ground.domain), 0)
        rival = ground.gateway()
        async with running(rival):
            await rival.submit([ground.report(1, 0, 1)])
            await until(lambda: rival.queue.on_their_way == 0)
        entries = await gateway.submit([ground.report(n, 0, 1) for n in range(2, 10)])
        await until(lambda: gateway.queue.on_their_way == 0)
        assert gateway.sender.counts.lost == 1
    assert set(states(entries)) == {"final"}  # type: ignore[arg-type]
    assert await reports_on_chain(ground, 10) == 10


def _start_gateway(url: str, ground: Ground, key: Path, port: int, log: Path) -> subprocess.Popen[bytes]:
    options = ["--rpc", url, "--contract", ground.domain.contract, "--chain-id", "31337", "--key-file", str(key)]
    command = [
        sys.executable,
        "-m",
        "swarmgame_chain.cli",
        "gateway",
        *options,
        "--port",
        str(port),
        "--interval",
        "0.05",
        "--no-ticks",
    ]
    with log.open("ab") as output:
        return subprocess.Popen([*command, "--confirmations", "2"], stdout=output, stderr=output)


async def _answers(port: int) -> bool:
    try:
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/readyz") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


async def test_killed_with_a_full_queue_stuck_and_reorganised_every_message_is_final_once(tmp_path: Path) -> None:
    """No mining, kill -9 of the gateway with everything unsettled, a restart that remembers nothing, and a
    reorganisation of 5 blocks.
    """
    key = tmp_path / "key"
    key.write_text(CARRIER.secret.hex())
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    count = 50
    with Anvil() as anvil:
        async with NodeClient(anvil.url) as chain:
            await chain.request("anvil_setBalance", CARRIER.address, hex(1_000 * ETHER))
            ground = await make_ground(chain)
            for _ in range(6):
                await chain.request("evm_mine")
            gateway = _start_gateway(anvil.url, ground, key, port, tmp_path / "log")
            url = f"http://127.0.0.1:{port}"
            crowd = [ChainReporter(anvil.url, ground.domain, secret(n), url) for n in range(count)]
            try:
                await until(lambda: _answers(port))
                await chain.request("evm_setAutomine", False)
                for each in crowd:
                    await asyncio.to_thread(each.start)
                    each.report(0, 0.000001)
                sent = sum(len(each.pending()) for each in crowd)
                await until(lambda: all(s.state in ("queued", "sent") for each in crowd for s in each.pending()))
                gateway.kill()
                gateway.wait()
                gateway = _start_gateway(anvil.url, ground, key, port, tmp_path / "log")
                await until(lambda: _answers(port))
                await chain.request("evm_mine")
                await chain.request("evm_mine")
                await chain.request("anvil_reorg", 5, [])
                async with asyncio.timeout(120):
                    while any(each.pending() for each in crowd):
                        await chain.request("evm_mine")
                        await asyncio.sleep(0.1)
            finally:
                for each in crowd:
                    await asyncio.to_thread(each.stop)
                gateway.kill()
                gateway.wait()
            statuses = [each.status() for each in crowd]
            assert sent == 2 * count
            assert [(s.final, s.rejected_count, s.dropped, s.waiting) for s in statuses] == [(2, 0, 0, 0)] * count
            assert await reports_on_chain(ground, count) == count
            assert len(await ground.coordinator.proven([peer(n) for n in range(count)])) == count
