"""Operators on a real API server: killed, replaced, run twice, and cut off. Nothing is lost."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp import web
from operators import all_at_rest, eventually, manifest, names, operator, reconcile_all, settled

from swarmgame_operator.api import GAME, JOB, LEASE, SECRET, SERVICE, Api

GAMES = 12


async def complete(api: Api, namespace: str, count: int) -> bool:
    """Return whether every game has its Job, Services and keys."""
    expected = {f"g{number}" for number in range(count)}
    jobs, services, secrets = [await names(api, kind, namespace) for kind in (JOB, SERVICE, SECRET)]
    return (
        jobs == {f"{game}-peers" for game in expected}
        and services == {f"{game}-{role}" for game in expected for role in ("peers", "bootnode")}
        and secrets == {f"{game}-{role}-key{s}" for game in expected for role, s in (("peer", "s"), ("bootnode", ""))}
    )


def start(kubeconfig: Path, namespace: str, **more: str) -> asyncio.subprocess.Process:
    environment = {
        **os.environ,
        "KUBECONFIG": str(kubeconfig),
        "SWARMGAME_OPERATOR_WATCH_NAMESPACES": namespace,
        "SWARMGAME_OPERATOR_METRICS_PORT": "0",
        "SWARMGAME_OPERATOR_PROBE_PORT": "0",
        "SWARMGAME_OPERATOR_PROGRESS_SECONDS": "0",
        **more,
    }
    return asyncio.create_subprocess_exec(  # type: ignore[return-value]
        sys.executable, "-m", "swarmgame_operator.main", env=environment, stderr=asyncio.subprocess.DEVNULL
    )


async def test_an_operator_killed_at_any_moment_loses_nothing_and_the_next_repeats_no_write(
    api: Api, cluster_config: Path, namespace: str
) -> None:
    rng = random.Random(1)
    for number in range(GAMES):
        await api.create(GAME, namespace, manifest(f"g{number}"))
    kills = 0
    for _ in range(3):
        process = await start(cluster_config, namespace)

        async def begun(
            before: int = len(await names(api, SERVICE, namespace)), more: int = rng.randrange(1, 6)
        ) -> bool:
            return len(await names(api, SERVICE, namespace)) >= min(before + more, 2 * GAMES)

        await eventually(begun, 60)
        process.send_signal(signal.SIGKILL)
        assert await process.wait() == -signal.SIGKILL
        kills += 1
    keys = {
        name: (await api.get(SECRET, namespace, name) or {})["data"] for name in await names(api, SECRET, namespace)
    }
    async with operator(cluster_config, namespace) as last:
        await eventually(lambda: complete(api, namespace, GAMES), 60)
        await all_at_rest(last, api, namespace, GAMES)
    for name, data in keys.items():
        now = (await api.get(SECRET, namespace, name) or {})["data"]
        assert {key: now[key] for key in data} == data
    async with operator(cluster_config, namespace) as idle:
        await idle.works()
        await eventually(lambda: len(list(idle.cache.games())) == GAMES)
        assert await reconcile_all(idle) == GAMES
        assert idle.metrics.writes == 0
    assert kills == 3


async def test_an_operator_that_is_terminated_exits_with_zero_and_releases_its_lease(
    api: Api, cluster_config: Path, namespace: str
) -> None:
    lease = {"SWARMGAME_OPERATOR_LEASE_NAMESPACE": namespace, "SWARMGAME_OPERATOR_LEASE_SECONDS": "600"}
    process = await start(cluster_config, namespace, **lease)
    await api.create(GAME, namespace, manifest("g0"))
    await eventually(lambda: complete(api, namespace, 1), 60)
    process.terminate()
    assert await asyncio.wait_for(process.wait(), 30) == 0
    held = await api.get(LEASE, namespace, "swarmgame-operator")
    assert held is not None
    assert held["spec"]["holderIdentity"] == ""


async def test_of_two_operators_one_writes_and_the_other_takes_over(
    api: Api, cluster_config: Path, namespace: str
) -> None:
    lease = {"lease_namespace": namespace, "lease_seconds": 600}  # no stall of this machine ends it
    async with operator(cluster_config, namespace, **lease) as first:
        await first.works()
        async with operator(cluster_config, namespace, **lease) as second:
            await eventually(lambda: not second.inner.readiness_problem())
            await api.create(GAME, namespace, manifest("g0"))
            await eventually(lambda: complete(api, namespace, 1))
            await settled(first)
            assert not second.inner.working.is_set()
            assert second.metrics.writes == 0
            process = await start(
                cluster_config,
                namespace,
                SWARMGAME_OPERATOR_LEASE_NAMESPACE=namespace,
                SWARMGAME_OPERATOR_LEASE_SECONDS="20",
            )
    # Both have released it; the third takes over, is killed, and a fourth waits until its lease expires.
    await api.create(GAME, namespace, manifest("g1"))
    await eventually(lambda: complete(api, namespace, 2), 60)
    process.kill()
    await process.wait()
    await api.create(GAME, namespace, manifest("g2"))
    async with operator(cluster_config, namespace, **lease) as fourth:
        await eventually(lambda: complete(api, namespace, 3), 90)
        assert fourth.inner.working.is_set()


@asynccontextmanager
async def unreliable(target: str, tls: object, rng: random.Random) -> AsyncIterator[tuple[str, dict[str, int]]]:
    """A proxy to the API server that refuses and loses answers and cuts watches, and counts them."""
    done = {"passed": 0, "refused": 0, "lost": 0, "cut": 0}

    async def handle(request: web.Request) -> web.StreamResponse:
        draw = rng.random()
        if draw < 0.10:
            done["refused"] += 1
            # kopf ends when a read is answered with a conflict, which no API server does.
            code = rng.choice([429, 500, 503, *([409] if request.method != "GET" else [])])
            return web.json_response({"kind": "Status", "reason": "Unlucky", "code": code}, status=code)
        headers = {name: request.headers[name] for name in ("Content-Type", "Accept") if name in request.headers}
        content = await request.read() or None
        async with session.request(
            request.method, f"{target}{request.path_qs}", data=content, headers=headers
        ) as answer:
            if draw < 0.15:
                done["lost"] += 1  # it was done, and the client does not get the answer
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            response = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.content_type})
            await response.prepare(request)
            left = rng.randrange(1, 40) if request.query.get("watch") else sys.maxsize
            async for part in answer.content.iter_any():
                await response.write(part)
                left -= 1
                if not left:
                    done["cut"] += 1
                    assert request.transport is not None
                    request.transport.abort()
                    return response
            done["passed"] += 1
            return response

    connector = aiohttp.TCPConnector(ssl=tls, limit=0)  # type: ignore[arg-type]
    async with aiohttp.ClientSession(connector=connector) as session:
        application = web.Application(client_max_size=1 << 24)
        application.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}", done
        finally:
            await runner.cleanup()


async def test_with_a_bad_connection_everything_is_still_created_and_deleted(
    api: Api, cluster_config: Path, namespace: str
) -> None:
    from kubernetes.aio import client

    tls = api._client.rest_client.ssl_context
    async with unreliable(api._client.configuration.host, tls, random.Random(7)) as (address, done):

        async def connection(count: Callable[[str, str], None]) -> Api:
            return Api(client.ApiClient(configuration=client.Configuration(host=address)), count)

        async with operator(cluster_config, namespace, connection=connection) as running:
            for number in range(GAMES):
                await api.create(GAME, namespace, manifest(f"g{number}", identity={"retentionPolicy": "Delete"}))
            await eventually(lambda: complete(api, namespace, GAMES), 120)
            for number in range(0, GAMES, 2):
                await api.delete(GAME, namespace, f"g{number}", propagation="Background")
            await eventually(
                lambda: {key[1] for key, _ in running.cache.games()} == {f"g{n}" for n in range(1, GAMES, 2)}, 60
            )
            odd = {f"g{number}-peers" for number in range(1, GAMES, 2)}

            async def gone() -> bool:
                return await names(api, JOB, namespace) == odd

            await eventually(gone, 60)
    assert min(done["refused"], done["lost"], done["cut"]) > 0
