"""The client of a node over web3.py's providers: right answers pass, everything else is one kind of error."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from chain_crowd import until
from fake_node import HASH, fake_node

from swarmgame_chain import providers
from swarmgame_chain.errors import ChainUnreachable, RpcError
from swarmgame_chain.providers import NodeConnection, http_session
from swarmgame_chain.rpc import NodeClient, is_address, is_node_address, shown_name

CALLS = [("eth_chainId", ()), ("eth_blockNumber", ()), ("eth_getBlockByNumber", ("latest", False))]


@pytest.mark.parametrize("scheme", ["http", "ws", "ipc"])
async def test_http_websocket_and_a_socket_give_the_same_answers(scheme: str, tmp_path: Path) -> None:
    path = tmp_path / "node.ipc"
    async with fake_node(path) as node:
        address = {"http": node.url, "ws": node.url.replace("http", "ws"), "ipc": str(path)}[scheme]
        async with NodeClient(address, timeout=5.0) as client:
            assert await client.request("eth_chainId") == "0x7a69"
            chain_id, head, block = await client.request_all(CALLS)
            assert (chain_id, head, block["hash"]) == ("0x7a69", "0x10", HASH)
            node.answer = lambda method, parameters: {"error": {"code": 3, "message": "reverted", "data": "0x12345678"}}
            with pytest.raises(RpcError) as reverted:
                await client.request("eth_call", {}, "latest")
            assert (reverted.value.code, reverted.value.data) == (3, bytes.fromhex("12345678"))
            # Requests at the same time get their own answers.
            node.answer = lambda method, parameters: {"result": "0x" + parameters[0] * 32} if parameters else None
            found = await asyncio.gather(*(client.request_all([("eth_call", (f"{n:02}",))] * 2) for n in range(10)))
            assert found == [["0x" + f"{n:02}" * 32] * 2 for n in range(10)]


@pytest.mark.parametrize("scheme", ["ws", "ipc"])
async def test_a_connection_that_ends_or_answers_nonsense_is_made_anew(scheme: str, tmp_path: Path) -> None:
    path = tmp_path / "node.ipc"
    async with fake_node(path) as node:
        address = node.url.replace("http", "ws") if scheme == "ws" else str(path)
        async with NodeClient(address, timeout=0.3) as client:
            assert await client.request("eth_chainId") == "0x7a69"
            node.shape = lambda replies: ["nonsense"]
            with pytest.raises(ChainUnreachable):
                await client.request("eth_chainId")
            node.shape = lambda replies: replies
            assert await client.request("eth_chainId") == "0x7a69"
            assert node.connections == 2


@pytest.mark.parametrize("scheme", ["http", "ws", "ipc"])
@pytest.mark.parametrize("cause", ["a long answer", "an error of no call"])
async def test_batches_that_a_node_refuses_or_answers_at_length_are_halved_and_leave_no_connection_open(
    scheme: str, cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providers, "MAX_ANSWER", 10_000)
    path = tmp_path / "node.ipc"
    async with fake_node(path) as node:
        if cause == "a long answer":
            node.answer = lambda method, parameters: {"result": "0x" + "ab" * 1_000}
        else:
            refusal = {"id": None, "error": {"code": -32600, "message": "at most 4 calls in a batch"}}
            node.shape = lambda replies: refusal if isinstance(replies, list) and len(replies) > 4 else replies
        address = {"http": node.url, "ws": node.url.replace("http", "ws"), "ipc": str(path)}[scheme]
        async with NodeClient(address, timeout=5.0) as client:
            assert len(await client.request_all([("eth_call", ({}, "latest"))] * 32)) == 32
            assert client.batch_limit == 4
            if scheme != "http":
                await until(lambda: node.connections - node.ended == 1)


def html(status: int) -> Callable[[Any], web.Response]:
    return lambda body: web.Response(text="<html>sorry</html>", status=status, content_type="text/html")


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (html(200), "does not speak JSON-RPC"),
        (html(400), "does not speak JSON-RPC"),
        (html(403), "answers with HTTP status 403"),
        (html(429), "answers with HTTP status 429"),
        (html(502), "answers with HTTP status 502"),
        (lambda body: web.Response(text=""), "does not speak JSON-RPC"),
        (lambda body: web.Response(text="["), "does not speak JSON-RPC"),
        (lambda body: web.Response(text="[" * 100_000), "does not speak JSON-RPC"),
        (lambda body: web.Response(body=b"\xff\xfe"), "does not speak JSON-RPC"),
        (lambda body: web.Response(text="null"), "does not speak JSON-RPC"),
        (lambda body: web.Response(text="NaN"), "does not speak JSON-RPC"),
        (lambda body: web.Response(text="1" + "0" * 5_000), "does not speak JSON-RPC"),
        (lambda body: web.Response(text="{}"), "does not speak JSON-RPC"),
        (lambda body: web.Response(text='{"result": null}'), "answers eth_chainId with null"),
        (lambda body: web.Response(text=json.dumps({"result": "x" * 3_000})), "answers with more than 2000 bytes"),
    ],
)
async def test_what_is_no_answer_means_unreachable(
    reply: Callable[[Any], web.Response], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 200_000 if expected != "answers with more than 2000 bytes" else 2_000
    monkeypatch.setattr(providers, "MAX_ANSWER", limit)
    async with fake_node() as node, NodeClient(node.url) as client:
        node.reply = reply
        with pytest.raises(ChainUnreachable, match=expected):
            await client.request("eth_chainId")
        with pytest.raises(ChainUnreachable):
            await client.request_all(CALLS)
        # The client goes on when the node does.
        node.reply = lambda body: None
        assert await client.request("eth_chainId") == "0x7a69"


async def test_an_error_in_an_answer_of_status_400_is_the_nodes_error() -> None:
    async with fake_node() as node, NodeClient(node.url) as client:
        error = {"id": 0, "jsonrpc": "2.0", "error": {"code": -32602, "message": "block range is too wide"}}
        node.reply = lambda body: web.json_response(error, status=400)
        with pytest.raises(RpcError, match="-32602: block range is too wide"):
            await client.request("eth_getLogs", {})


@pytest.mark.parametrize(
    "shape",
    [
        lambda replies: replies[1:],
        lambda replies: [*replies, replies[0]],
        lambda replies: [replies[0]] * len(replies),
        lambda replies: [{**each, "id": None} for each in replies],
        lambda replies: [{**each, "id": "1"} for each in replies],
        lambda replies: [{**each, "id": [1]} for each in replies],
        lambda replies: {"id": None, "error": {"code": -32600, "message": "batches are not offered"}},
    ],
)
async def test_a_batch_whose_answers_cannot_be_told_apart_is_sent_in_smaller_parts(
    shape: Callable[[Any], Any], caplog: pytest.LogCaptureFixture
) -> None:
    async with fake_node() as node, NodeClient(node.url) as client:
        node.shape = lambda replies: shape(replies) if isinstance(replies, list) else replies
        assert await client.request_all(CALLS[:2]) == ["0x7a69", "0x10"]
        assert client.batch_limit == 1
        assert caplog.text.count("batches have at most 1 calls from now on") == 1
        node.posts = 0
        assert await client.request_all(CALLS[:2]) == ["0x7a69", "0x10"]
        assert node.posts == 2


async def test_a_refusal_that_has_passed_is_forgotten() -> None:
    async with fake_node() as node, NodeClient(node.url) as client:
        node.shape = lambda replies: replies[1:] if isinstance(replies, list) else replies
        await client.request_all(CALLS[:2])
        assert client.batch_limit == 1
        node.shape = lambda replies: replies
        for _ in range(60):
            await client.request_all(CALLS[:2])
        assert client.batch_limit == 2


async def test_a_batch_of_anything_else_is_no_answer() -> None:
    async with fake_node() as node, NodeClient(node.url) as client:
        node.shape = lambda replies: ["no object", *replies[1:]]
        with pytest.raises(ChainUnreachable):
            await client.request_all(CALLS[:2])
        node.shape = lambda replies: replies
        assert await client.request_all(CALLS[:2]) == ["0x7a69", "0x10"]
        assert node.posts == 2


async def test_answers_in_another_order_find_their_calls() -> None:
    async with fake_node() as node, NodeClient(node.url) as client:
        node.shape = lambda replies: replies[::-1]
        assert await client.request_all(CALLS[:2]) == ["0x7a69", "0x10"]
        assert node.posts == 1


async def test_a_limit_of_batches_is_found_by_halving_and_remembered() -> None:
    async with fake_node() as node, NodeClient(node.url) as client:
        refusal = {"id": None, "error": {"code": -32600, "message": "at most 20 calls in a batch"}}
        node.shape = lambda replies: refusal if isinstance(replies, list) and len(replies) > 20 else replies
        calls = [("eth_blockNumber", ())] * 100
        assert await client.request_all(calls) == ["0x10"] * 100
        assert client.batch_limit == 12
        node.posts = 0
        await client.request_all(calls)
        assert node.posts == 9


async def test_a_lost_connection_is_tried_again_once() -> None:
    lost = 0

    async def lose_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal lost
        await reader.readuntil(b"\r\n\r\n")
        lost += 1
        if lost != 2:
            writer.close()
            return
        body = b'{"jsonrpc": "2.0", "id": 0, "result": "0x1"}'
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(lose_first, "127.0.0.1", 0)
    address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with NodeClient(address, timeout=5.0) as client:
        assert await client.request("eth_chainId") == "0x1"
        with pytest.raises(ChainUnreachable, match=r"does not answer: (ServerDisconnected|ClientOS)Error"):
            await client.request("eth_chainId")
        assert lost == 4
    server.close()


async def test_connecting_takes_no_longer_than_a_request_may(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = 0

    async def connect(*_: Any, **__: Any) -> None:
        nonlocal tries
        tries += 1
        raise aiohttp.ConnectionTimeoutError

    monkeypatch.setattr(aiohttp.TCPConnector, "connect", connect)
    async with NodeClient("http://127.0.0.1:9", timeout=1.0) as client:
        with pytest.raises(ChainUnreachable, match="ConnectionTimeoutError"):
            await client.request("eth_chainId")
    assert tries == 1


async def test_clients_of_one_session_share_its_connections() -> None:
    async with fake_node() as node, http_session() as session:
        first, second = NodeClient(node.url, session=session), NodeClient(node.url, session=session)
        for client in (first, second, first):
            await client.request("eth_chainId")
        await first.close()
        assert await second.request("eth_chainId") == "0x7a69"
        assert len(session.connector._conns) == 1  # type: ignore[union-attr]


async def test_nothing_shows_a_nodes_password(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    messages: list[str] = []
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    async with fake_node() as node:
        node.reply = html(500)
        for address in (
            node.url.replace("//", "//user:pass-word@") + "/key-in-path",
            f"ws://user:pass-word@127.0.0.1:{port}/key-in-path",
            f"http://user:pass-word@127.0.0.1:{port}/key-in-path",
        ):
            async with NodeClient(address, timeout=1.0) as client:
                with pytest.raises(ChainUnreachable) as error:
                    await client.request("eth_chainId")
                assert error.value.__cause__ is None
                messages.append(str(error.value))
    shown = caplog.text + "".join(messages)
    assert len(messages) == 3
    assert "pass-word" not in shown
    assert "key-in-path" not in shown


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8545", "127.0.0.1:8545"),
        ("https://user:password@node.example.org/v2/key", "node.example.org"),
        ("https://user:pass/word@node.example.org", "the node"),
        ("https://user:pa@ss/word@node.example.org", "the node"),
        ("https://user:pass?word@node.example.org", "the node"),
        ("https://node.example.org/key@1", "the node"),
        ("https://node.example.org?apikey=secret", "node.example.org"),
        ("https://user:password@node.example.org:443#secret", "node.example.org:443"),
        ("wss://node.example.org?token=a@b", "the node"),
        ("/run/geth.ipc", "/run/geth.ipc"),
    ],
)
def test_the_name_of_a_node_holds_no_secret(url: str, expected: str) -> None:
    assert shown_name(url) == expected


def test_an_address_is_of_http_websocket_or_a_socket() -> None:
    good = ("http://a", "https://a", "ws://a", "wss://a", "/run/geth.ipc")
    assert all(map(is_node_address, good))
    assert not any(map(is_node_address, ("", "a:8545", "ftp://a", "geth.ipc")))


@pytest.mark.parametrize("text", ["", "0x" + "11" * 19 + "  ", "0x" + "11" * 20 + "\n", "0x" + "11" * 21, "11" * 21])
def test_an_address_has_forty_digits_and_no_blank(text: str) -> None:
    assert is_address("0x" + "aB" * 20)
    assert not is_address(text)


async def test_a_contracts_answer_makes_web3_fetch_no_other_address() -> None:
    """EIP-3668: a contract may name addresses, and a client that follows them can be sent anywhere."""
    from swarmgame_chain.contract import coordinator_contract, web3_errors

    lookup = "0x556f1830" + "00" * 320
    async with fake_node() as node, NodeClient(node.url) as client:
        node.answer = lambda method, parameters: {"error": {"code": 3, "message": "execution reverted", "data": lookup}}
        with pytest.raises((RpcError, ChainUnreachable)), web3_errors("currentRound"):
            await coordinator_contract(client, "0x" + "11" * 20).functions.currentRound().call()
        assert node.calls == ["eth_call"]
        assert not NodeConnection(node.url, "node", 1.0).w3.provider.global_ccip_read_enabled
