"""What one request to the read-only proxy may cost the gateway: calls, searches at once, and memory."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from chain_crowd import CARRIER
from fake_node import fake_node

from swarmgame_chain.errors import ChainUnreachable, RequestTooLarge
from swarmgame_chain.gateway import Gateway
from swarmgame_chain.gateway.rpc_proxy import (
    MAX_ANSWERS,
    MAX_CONCURRENT,
    MAX_SEARCHES,
    MAX_WAITING,
    PART,
    ReadOnlyRpcProxy,
)
from swarmgame_chain.gateway.server import HttpServer
from swarmgame_chain.messages import Domain
from swarmgame_chain.rpc import NodeClient

ELSEWHERE = "0x" + "11" * 20


class CountingNode:
    """A node that counts the calls that wait together, and answers each with a text of one length."""

    def __init__(self, length: int = 2) -> None:
        self.answer = "0" * length
        self.calls: list[str] = []
        self.waiting = self.most_waiting = 0

    async def request_all(self, calls: Any) -> list[Any]:
        self.calls += [method for method, _ in calls]
        self.waiting += 1
        self.most_waiting = max(self.most_waiting, self.waiting)
        await asyncio.sleep(0)
        self.waiting -= 1
        return [self.answer for _ in calls]


async def send_to(proxy: ReadOnlyRpcProxy, *requests: object) -> Any:
    return await proxy.answer(json.dumps(requests[0] if len(requests) == 1 else requests).encode())


def request(method: str, *parameters: object, id: int = 1) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": id, "method": method, "params": list(parameters)}


def search(id: int = 1) -> dict[str, object]:
    return request("eth_getLogs", {"fromBlock": "0x0", "toBlock": "0x10", "address": [ELSEWHERE]}, id=id)


def read(id: int = 1) -> dict[str, object]:
    return request("eth_call", {"to": ELSEWHERE, "data": "0x"}, "latest", id=id)


async def test_a_batch_has_many_calls_of_the_contract_and_one_of_anything_else() -> None:
    node = CountingNode()
    proxy = ReadOnlyRpcProxy(node, ELSEWHERE)  # type: ignore[arg-type]
    answers = await send_to(proxy, *(search(n) for n in range(100)), *(read(n) for n in range(100, 200)))
    assert node.calls.count("eth_getLogs") == 1
    assert [answer["id"] for answer in answers if "result" in answer] == [0, *range(100, 200)]
    assert answers[1]["error"]["message"] == "not allowed here: more than one eth_getLogs in a batch"


async def test_answers_that_are_too_large_together_are_refused_and_no_more_is_read() -> None:
    node = CountingNode(length=MAX_ANSWERS // PART)
    proxy = ReadOnlyRpcProxy(node, ELSEWHERE)  # type: ignore[arg-type]
    assert len(await send_to(proxy, *(read(n) for n in range(PART)))) == PART
    node.calls.clear()
    with pytest.raises(RequestTooLarge, match="ask for less at once"):
        await send_to(proxy, *(read(n) for n in range(8 * PART)))
    assert len(node.calls) == 2 * PART


async def test_few_searches_of_logs_wait_for_the_node_at_once() -> None:
    node = CountingNode()
    proxy = ReadOnlyRpcProxy(node, ELSEWHERE)  # type: ignore[arg-type]
    answers = await asyncio.gather(*(send_to(proxy, search(n)) for n in range(10)))
    assert [answer["id"] for answer in answers] == list(range(10))
    assert node.most_waiting == MAX_SEARCHES


async def test_searches_beyond_those_that_wait_leave_places_to_other_requests() -> None:
    node = CountingNode()
    proxy = ReadOnlyRpcProxy(node, ELSEWHERE)  # type: ignore[arg-type]
    most = MAX_SEARCHES + MAX_WAITING
    searches = [asyncio.create_task(send_to(proxy, search(n))) for n in range(2 * MAX_CONCURRENT)]
    await asyncio.sleep(0)
    assert await send_to(proxy, read(0))
    answers = await asyncio.gather(*searches, return_exceptions=True)
    assert [isinstance(answer, ChainUnreachable) for answer in answers] == [False] * most + [True] * (
        2 * MAX_CONCURRENT - most
    )


async def test_what_others_read_narrows_no_limit_of_the_gateway() -> None:
    """Through HTTP, with a node that takes no batch of more than one call."""

    def limited(body: Any) -> web.Response | None:
        return web.Response(status=413) if isinstance(body, list) and len(body) > 1 else None

    async with fake_node() as node, NodeClient(node.url) as chain:
        node.reply = limited
        gateway = Gateway(chain, Domain(31337, ELSEWHERE), CARRIER)
        server = HttpServer(gateway)
        url = f"http://127.0.0.1:{await server.start()}/rpc"
        try:
            async with aiohttp.ClientSession() as session:
                async with session.post(url, json=[read(1), read(2)]) as response:
                    assert [answer["id"] for answer in await response.json()] == [1, 2]
                node.reply = lambda body: web.Response(status=413)
                async with session.post(url, json=search()) as response:
                    assert response.status == 413
        finally:
            await server.close()
        assert chain.batch_limit == 256
        assert gateway.chain.calls["eth_call"] == 2
