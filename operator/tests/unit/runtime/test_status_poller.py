"""The status poller against real HTTP servers: valid answers, invalid ones and none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import web
from kubernetes.aio import client as kubernetes_client

from swarmgame_operator import status_poller as module
from swarmgame_operator.api import GAME, POD, Api, _refuse_redirects_of_pods
from swarmgame_operator.cache import ClusterCache, Key
from swarmgame_operator.errors import Retry
from swarmgame_operator.snapshot import PollFacts
from swarmgame_operator.status_poller import StatusPoller

KEY = ("n", "g")
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
PEER = {
    "phase": "running", "peer": "16Uiu2HA", "index": 0, "round": 41, "stage": 1, "rounds_finished": 41,
    "max_rounds": 200, "members": ["a", "b"], "reward": 0.5, "round_finished": 1_700_000_000.0, "checkpoint": 40,
    "last_error": "", "ready": True,
}  # fmt: skip


@asynccontextmanager
async def answering(answers: dict[int, Any]) -> AsyncIterator[tuple[StatusPoller, aiohttp.ClientSession, list[Key]]]:
    """A game of one ready peer and one gateway with these answers by port, which a test may change."""

    async def handle(request: web.Request) -> web.StreamResponse:
        answer = answers[int(request.match_info["port"])]
        if isinstance(answer, web.StreamResponse):
            return answer
        return web.Response(text=answer if isinstance(answer, str) else json.dumps(answer))

    application = web.Application()
    application.router.add_get("/{port}/status", handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    root = f"http://127.0.0.1:{runner.addresses[0][1]}"
    cache, changed = ClusterCache(changed=lambda key: None), []
    for role in ("peer", "gateway"):
        cache.put(POD, pod(role))
    poller = StatusPoller(
        cache, every=10, changed=changed.append, address=lambda ip, port: f"{root}/{port}", now=lambda: NOW
    )
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
        yield poller, session, changed
    await runner.cleanup()


def pod(role: str) -> dict[str, Any]:
    return {
        "metadata": {
            "name": role, "namespace": "n", "uid": role, "resourceVersion": "1",
            "labels": {"swarmgame.dev/game": "g", "swarmgame.dev/role": role},
        },
        "status": {"phase": "Running", "podIP": "192.0.2.1", "conditions": [{"type": "Ready", "status": "True"}]},
    }  # fmt: skip


async def test_answers_of_a_peer_and_a_gateway_become_facts_and_are_reported_once() -> None:
    gateway = {
        "problem": "",
        "walletEmpty": False,
        "chainId": 31337,
        "registered": 2,
        "round": 41,
        "roundAge": 3.5,
        "contract": "0x1",
        "lastBlock": 77,
    }
    async with answering({8080: PEER, 8645: gateway}) as (poller, session, changed):
        await poller.poll(session, KEY)
        peer, chain = poller.of(KEY)
        assert peer is not None
        assert chain is not None
        assert (peer.seen, peer.rounds_finished, peer.members, peer.checkpoint, dict(peer.metrics)) == (
            NOW,
            41,
            2,
            40,
            {"reward": 0.5},
        )
        assert (chain.registered, chain.chain_id, chain.round, chain.last_block) == (2, 31337, 41, 77)
        assert changed == [KEY, KEY]
        await poller.poll(session, KEY)
        assert changed == [KEY, KEY]
        poller.forget(KEY)
        assert poller.of(KEY) == (None, None)


@pytest.mark.parametrize(
    "answer",
    [
        "not json",
        "[]",
        {**PEER, "rounds_finished": -1},
        {**PEER, "rounds_finished": 2**40},
        {**PEER, "rounds_finished": "41"} | {"members": "all"},
        {**PEER, "reward": 1e300},
        {**PEER, "members": ["x"] * 5000},
        {**PEER, "metrics": {"x" * 65: 1.0}},
        {**PEER, "round_finished": 1e300},
        '{"rounds_finished": NaN}',
        "x" * (module.MAX_ANSWER_BYTES + 1),
        web.Response(status=500),
        web.Response(status=302, headers={"Location": "http://192.0.2.9/"}),
    ],
    ids=range(13),
)
async def test_an_invalid_answer_changes_nothing(answer: Any) -> None:
    answers: dict[int, Any] = {8080: PEER, 8645: "no"}
    async with answering(answers) as (poller, session, changed):
        await poller.poll(session, KEY)
        before = poller.of(KEY)
        answers[8080] = answer
        assert poller.facts(KEY) == PollFacts()
        await poller.poll(session, KEY)
        assert poller.of(KEY) == before
        silence = poller.facts(KEY)
        assert silence.silent_since == NOW
        assert silence.error.startswith("peer: ")
        assert changed == [KEY, KEY], "that nothing answers is a change, once"
        await poller.poll(session, KEY)
        assert changed == [KEY, KEY]
        answers[8080] = PEER
        await poller.poll(session, KEY)
        assert poller.facts(KEY) == PollFacts()
        assert changed == [KEY, KEY, KEY]


async def test_peers_are_polled_at_once_and_twice_as_often_until_a_round_has_ended() -> None:
    async with answering({8080: {**PEER, "rounds_finished": 0}, 8645: "no"}) as (poller, session, _):
        loop = asyncio.get_running_loop()
        await poller._poll_and_schedule(session, KEY)
        assert 4 <= poller._due[KEY] - loop.time() <= 5
    async with answering({8080: PEER, 8645: "no"}) as (poller, session, _):
        await poller._poll_and_schedule(session, KEY)
        assert 9 <= poller._due[KEY] - loop.time() <= 10


@pytest.mark.parametrize(
    ("role", "ready", "phase", "expected"),
    [
        ("peer", True, "Running", True),
        ("peer", False, "Running", False),
        ("bootnode", True, "Running", False),
        ("gateway", False, "Running", True),
        ("gateway", False, "Pending", False),
    ],
)
def test_a_game_is_polled_when_a_peer_or_the_gateway_can_answer_and_not_for_its_bootnode(
    role: str, ready: bool, phase: str, expected: bool
) -> None:
    cache, body = ClusterCache(changed=lambda key: None), pod(role)
    status = {**body["status"], "phase": phase, "conditions": [{"type": "Ready", "status": str(ready)}]}
    cache.put(POD, {**body, "status": status})
    assert cache.can_be_polled(KEY) is expected


async def test_a_silent_pod_is_polled_less_and_less_often() -> None:
    async with answering({8080: "no", 8645: "no"}) as (poller, session, _):
        waits = []
        for _attempt in range(8):
            before = asyncio.get_running_loop().time()
            await poller._poll_and_schedule(session, KEY)
            waits.append(round((poller._due[KEY] - before) / 10))
        assert waits[1:4] == [1, 2, 4]
        assert waits[-1] == module.MAX_INTERVAL_SECONDS / 10


async def test_after_a_peer_that_does_not_answer_the_next_one_is_polled() -> None:
    polled: list[str] = []
    cache = ClusterCache(changed=lambda key: None)
    for index in range(3):
        body = pod("peer")
        body["metadata"] |= {"name": f"peer-{index}", "uid": f"peer-{index}"}
        body["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"] = str(index)
        cache.put(POD, {**body, "status": {**body["status"], "podIP": f"192.0.2.{index}"}})

    def address(ip: str, port: int) -> str:
        polled.append(ip)
        return "http://127.0.0.1:1"

    poller = StatusPoller(cache, every=10, changed=lambda key: None, address=address, now=lambda: NOW)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
        for _attempt in range(4):
            await poller._poll_and_schedule(session, KEY)
    assert polled == ["192.0.2.0", "192.0.2.1", "192.0.2.2", "192.0.2.0"]


async def test_the_silence_of_peers_ends_when_there_is_none_to_poll() -> None:
    async with answering({8080: "no", 8645: "no"}) as (poller, session, changed):
        game = {"metadata": {"name": "g", "namespace": "n", "uid": "game", "resourceVersion": "1"}}
        poller._cache.put(GAME, game)
        poller._cache.put_game(KEY, game)
        for _attempt in range(5):
            await poller._poll_and_schedule(session, KEY)
        now = asyncio.get_running_loop().time()
        assert poller._due_games(now) == []
        assert poller.facts(KEY).silent_since == NOW, "they are polled again later"
        poller._cache.remove(POD, "n", "gateway", "")
        starting = pod("peer")
        starting["metadata"]["resourceVersion"] = "2"
        starting["status"]["conditions"] = []
        poller._cache.put(POD, starting)
        changed.clear()
        assert poller._due_games(now) == []
        assert (poller.facts(KEY), changed) == (PollFacts(), [KEY])
        poller._cache.put(POD, {**pod("peer"), "metadata": {**pod("peer")["metadata"], "resourceVersion": "3"}})
        assert poller._due_games(now) == [KEY], "once they are ready they are polled at once"


@pytest.mark.parametrize(("games", "seconds"), [(1, 10), (2_000, 10), (4_000, 20)])
async def test_many_games_are_polled_less_often(games: int, seconds: float) -> None:
    async with answering({8080: PEER, 8645: "{}"}) as (poller, session, _):
        poller._due = {("n", str(number)): 0.0 for number in range(games - 1)} | {KEY: 0.0}
        began = asyncio.get_running_loop().time()
        await poller._poll_and_schedule(session, KEY)
        assert seconds <= poller._due[KEY] - began < seconds + 5


# ── through the API server's proxy


class Proxy:
    """Stands for the API server: answers by path, or raises."""

    def __init__(self, answers: dict[str, bytes | Exception]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def raw(self, path: str, *, largest: int, seconds: float) -> bytes:
        self.asked.append(path)
        answer = self.answers[path]
        if isinstance(answer, Exception):
            raise answer
        return answer[:largest]


def polled_through(proxy: Proxy) -> StatusPoller:
    cache = ClusterCache(changed=lambda key: None)
    for role in ("peer", "gateway"):
        cache.put(POD, pod(role))
    poller = StatusPoller(cache, every=10, changed=lambda key: None, now=lambda: NOW, proxy=cast(Api, proxy))

    async def poll() -> None:
        async with aiohttp.ClientSession() as session:
            await poller.poll(session, KEY)

    asyncio.run(poll())
    return poller


PEER_PATH = "/api/v1/namespaces/n/pods/peer:8080/proxy/status"
GATEWAY_PATH = "/api/v1/namespaces/n/pods/gateway:8645/proxy/status"


def test_peers_and_gateway_are_read_through_the_api_server_where_that_is_chosen() -> None:
    proxy = Proxy({PEER_PATH: json.dumps(PEER).encode(), GATEWAY_PATH: b'{"registered": 3}'})
    peer, chain = polled_through(proxy).of(KEY)
    assert proxy.asked == [PEER_PATH, GATEWAY_PATH]
    assert peer is not None
    assert chain is not None
    assert (peer.rounds_finished, chain.registered) == (41, 3)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (Retry(None, "Forbidden", "cannot get pods/proxy", status=403), "peer: cannot get pods/proxy"),
        (b"[]", "its answer is refused"),
        (b"x" * (module.MAX_ANSWER_BYTES + 1), "its answer is refused: more than"),
    ],
    ids=["forbidden", "another document", "too large"],
)
def test_what_the_api_server_refuses_is_told_and_a_bad_answer_changes_nothing(
    answer: bytes | Exception, text: str
) -> None:
    poller = polled_through(Proxy({PEER_PATH: answer, GATEWAY_PATH: b"{}"}))
    assert poller.of(KEY)[0] is None
    assert text in poller.facts(KEY).error


def test_a_pod_cannot_redirect_the_operator_and_its_token() -> None:
    async def ask() -> tuple[int, str]:
        followed: list[str] = []

        async def redirect(request: web.Request) -> web.Response:
            raise web.HTTPFound("/elsewhere")

        async def elsewhere(request: web.Request) -> web.Response:
            followed.append(request.headers.get("Authorization", ""))
            return web.Response()

        application = web.Application()
        application.router.add_get("/elsewhere", elsewhere)
        application.router.add_get("/{path:.*}", redirect)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        configuration = kubernetes_client.Configuration()
        configuration.host = f"http://127.0.0.1:{runner.addresses[0][1]}"
        configuration.client_session_kwargs = {"trace_configs": [_refuse_redirects_of_pods()]}
        api = Api(kubernetes_client.ApiClient(configuration=configuration))
        try:
            with pytest.raises(Retry) as error:
                await api.raw(PEER_PATH)
        finally:
            await api.close()
            await runner.cleanup()
        return len(followed), error.value.message

    count, message = asyncio.run(ask())
    assert count == 0
    assert "redirect" in message
