"""An API server that refuses, hangs, or ends its answers early: the operator recovers, or ends so that it is started
again; meanwhile it writes nothing that should not be written.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import kopf
import pytest
from api_proxy import (
    ApiProxy,
    Chosen,
    Fault,
    Request,
    api_proxy,
    informers_list,
    informers_watch,
    kopf_lists_games,
    kopf_watches_games,
)
from kubernetes.aio import client
from operators import RunningOperator, all_at_rest, eventually, manifest, names, operator, settled

from swarmgame_operator import handlers, informer
from swarmgame_operator import operator as operator_module
from swarmgame_operator.api import GAME, JOB, SECRET, Api
from swarmgame_operator.cache import WATCHED
from swarmgame_operator.settings import OperatorSettings

NewNamespace = Callable[[], Awaitable[str]]
FAULTS: list[int | str] = [400, 401, 403, 404, 409, 410, 429, 500, 503, "hang", "close", "half", "torn", "end"]
FATAL = {
    "list": {400, 401, 404, 409, 410, "half", "end"},
    "watch": {400, 401, 404, 409, 410, "half"},
}
"""What ends kopf's watcher for good, and so the operator. A certificate that is refused is not tried again."""
RELISTED = {400, 404, 410}
"""What makes an informer list again. It is in step from then on until its next watch is refused too, and what it has
listed may be acted on meanwhile.
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    configure = handlers.configure_kopf

    def quickly(settings: kopf.OperatorSettings, chosen: OperatorSettings) -> None:
        configure(settings, chosen)
        settings.networking.error_backoffs = Often()
        settings.networking.request_timeout = 3.0
        settings.watching.inactivity_timeout = 2.0
        settings.process.ultimate_exiting_timeout = None  # it would kill the tests

    monkeypatch.setattr(handlers, "configure_kopf", quickly)
    monkeypatch.setattr(handlers, "LOGIN_SECONDS", 0.5)
    monkeypatch.setattr(informer, "LONGEST_DELAY", 0.3)
    monkeypatch.setattr(informer, "HEADER_SECONDS", 1.0)
    monkeypatch.setattr(informer, "OPENING_SECONDS", 0.2)


class Often(handlers.EndlessBackoffs):
    def __iter__(self) -> Any:
        while True:
            yield 0.2


def connecting(proxy: ApiProxy) -> Callable[[Callable[[str, str], None]], Awaitable[Api]]:
    """Return a function that makes an operator's connection, with short timeouts."""

    async def connection(count: Callable[[str, str], None]) -> Api:
        configuration = client.Configuration(host=proxy.address)
        return Api(client.ApiClient(configuration=configuration), count, seconds=1.0)

    return connection


async def has_job(api: Api, namespace: str, game: str) -> bool:
    return f"{game}-peers" in await names(api, JOB, namespace)


async def faulty(running: RunningOperator, proxy: ApiProxy, least: int) -> None:
    """Wait until the fault has occurred so many times, or has ended the operator."""
    await eventually(lambda: not running.alive or len(proxy.faulted) >= least)


@pytest.mark.parametrize("kind", FAULTS)
async def test_the_operator_survives_a_fault_or_ends_and_writes_nothing_wrong(
    api: Api, cluster_config: Path, new_namespace: NewNamespace, kind: int | str
) -> None:
    async with asyncio.TaskGroup() as group:
        for chosen in (kopf_lists_games, informers_list):
            group.create_task(survive_at_the_start(api, cluster_config, await new_namespace(), kind, chosen))
        for chosen in (kopf_watches_games, informers_watch):
            group.create_task(survive_at_work(api, cluster_config, await new_namespace(), kind, chosen))


async def survive_at_the_start(api: Api, cluster_config: Path, namespace: str, kind: int | str, chosen: Chosen) -> None:
    """Check that nothing is written before the lists are complete, and everything afterwards."""
    await api.create(GAME, namespace, manifest("g0"))
    async with api_proxy(api) as proxy:
        proxy.fault = Fault(chosen, kind)
        async with operator(cluster_config, namespace, connection=connecting(proxy), may_end=True) as running:
            await faulty(running, proxy, 2 if chosen is kopf_lists_games else 2 * len(WATCHED))
            assert proxy.writes == []
            fatal = chosen is kopf_lists_games and kind in FATAL["list"]
            await lift(running, proxy, fatal)
            async with replaced(running, proxy, cluster_config, namespace):
                await eventually(lambda: has_job(api, namespace, "g0"))


async def survive_at_work(api: Api, cluster_config: Path, namespace: str, kind: int | str, chosen: Chosen) -> None:
    """Check that nothing of a game is written that is deleted while a watch is broken; a game made then is found."""
    await api.create(GAME, namespace, manifest("g0"))
    async with api_proxy(api) as proxy:
        async with operator(cluster_config, namespace, connection=connecting(proxy), may_end=True) as running:
            await all_at_rest(running, api, namespace, 1)
            kinds = 1 if chosen is kopf_watches_games else len(WATCHED)
            await eventually(lambda: len({each.plural for each in proxy.requests if chosen(each)}) == kinds)
            proxy.fault = Fault(chosen, kind)
            proxy.cut(chosen)
            await faulty(running, proxy, 2 * kinds)
            before = len(proxy.writes)
            await api.delete(GAME, namespace, "g0", propagation="Background")
            for secret in ("g0-bootnode-key", "g0-peer-keys"):
                await api.delete(SECRET, namespace, secret, propagation="Background")
            await api.create(GAME, namespace, manifest("g1"))

            async def collected() -> bool:
                return not await has_job(api, namespace, "g0")

            await eventually(collected)
            if chosen is informers_watch and kind not in RELISTED:
                assert len(proxy.writes) == before
            await lift(running, proxy, chosen is kopf_watches_games and kind in FATAL["watch"])
            async with replaced(running, proxy, cluster_config, namespace) as last:
                await eventually(lambda: has_job(api, namespace, "g1"))
                await settled(last)
        # A status that was on its way is refused.
        assert [each.path for each in proxy.writes[before:] if each.names("g0") and "/status" not in each.path] == []
        assert await names(api, SECRET, namespace) == {"g1-bootnode-key", "g1-peer-keys"}


async def lift(running: RunningOperator, proxy: ApiProxy, fatal: bool) -> None:
    """Remove the fault; if it is one that ends the operator, after that end."""
    if fatal:
        await running.wait()
        assert running.error is not None
    proxy.fault = None


@asynccontextmanager
async def replaced(
    running: RunningOperator, proxy: ApiProxy, cluster_config: Path, namespace: str
) -> AsyncIterator[RunningOperator]:
    """Return the operator if it has survived, else a new one, as the kubelet starts it."""
    if running.alive:
        yield running
        assert running.alive
    else:
        async with operator(cluster_config, namespace, connection=connecting(proxy)) as again:
            yield again


async def test_an_operator_whose_token_is_refused_logs_in_again_with_the_new_one_and_not_too_often(
    api: Api, cluster_config: Path, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, pause = ["first"], 0.2
    monkeypatch.setattr(handlers, "LOGIN_SECONDS", pause)

    async def connection(count: Callable[[str, str], None]) -> Api:
        async def renew(configuration: client.Configuration) -> None:
            configuration.api_key["BearerToken"] = f"Bearer {tokens[-1]}"

        configuration = client.Configuration(host=proxy.address)
        await renew(configuration)
        configuration.refresh_api_key_hook = renew
        return Api(client.ApiClient(configuration=configuration), count, seconds=1.0)

    async with api_proxy(api) as proxy, operator(cluster_config, namespace, connection=connection) as running:
        proxy.authorized = lambda header: header == "Bearer first"
        await api.create(GAME, namespace, manifest("g0"))
        await eventually(lambda: has_job(api, namespace, "g0"))
        proxy.authorized = lambda header: header == "Bearer second"
        refused = len(proxy.requests)
        proxy.cut()
        await api.create(GAME, namespace, manifest("g1"))

        def attempts() -> list[float]:
            return [request.when for request in proxy.requests[refused:] if request.by_kopf]

        # kopf logs in with the old token again and again, and makes three requests at most with each login.
        await eventually(lambda: len(attempts()) >= 7)
        assert attempts()[6] - attempts()[0] >= 2 * pause
        assert not await has_job(api, namespace, "g1")
        tokens.append("second")
        await eventually(lambda: has_job(api, namespace, "g1"))
        assert running.alive
        of_kopf = {each.headers["Authorization"] for each in proxy.requests if each.by_kopf}
        assert of_kopf == {"Bearer first", "Bearer second"}


async def test_without_rights_to_one_kind_the_operator_is_not_ready_names_it_and_writes_nothing_until_it_has_them(
    api: Api, cluster_config: Path, namespace: str
) -> None:
    await api.create(GAME, namespace, manifest("g0"))
    async with api_proxy(api) as proxy:
        proxy.fault = Fault(lambda request: request.plural == "networkpolicies", 403)
        async with operator(cluster_config, namespace, connection=connecting(proxy)) as running:
            await eventually(lambda: len(proxy.faulted) >= 2)
            problem = "not in step, so nothing is written: NetworkPolicy"
            await eventually(lambda: running.inner.readiness_problem() == problem)
            async with aiohttp.ClientSession() as session:

                async def answers(status: int, text: str) -> bool:
                    async with session.get(f"http://127.0.0.1:{running.inner.port}/readyz") as answer:
                        return (answer.status, await answer.text()) == (status, text)

                # On a busy machine the short timeouts of these tests can put other informers out of step for a moment.
                await eventually(lambda: answers(503, f"{problem}\n"))
                assert proxy.writes == []
                assert not running.inner.liveness_problem()
                proxy.fault = None
                await eventually(lambda: has_job(api, namespace, "g0"))
                await eventually(lambda: answers(200, "ok\n"))


async def test_with_rights_to_one_namespace_alone_the_operator_starts_and_works(
    api: Api, cluster_config: Path, namespace: str
) -> None:
    def outside(request: Request) -> bool:
        return request.plural not in ("", "apis") and f"/namespaces/{namespace}/" not in request.path

    async with api_proxy(api) as proxy:
        proxy.fault = Fault(outside, 403)
        async with operator(cluster_config, namespace, connection=connecting(proxy)) as running:
            await api.create(GAME, namespace, manifest("g0"))
            await eventually(lambda: has_job(api, namespace, "g0"))
            await settled(running)
        # It does not even try: kopf would repeat the request for ever, and never start.
        assert [each.path for each in proxy.faulted] == []


async def test_informers_wait_as_long_as_an_overloaded_api_server_requires(
    api: Api, cluster_config: Path, namespace: str
) -> None:
    async with api_proxy(api) as proxy:
        proxy.fault = Fault(lambda each: each.plural == "jobs", 429, {"Retry-After": "1"})
        async with operator(cluster_config, namespace, connection=connecting(proxy)):
            await eventually(lambda: len(proxy.faulted) >= 2)
            # The back-off alone is at most 0.45 s here.
            assert proxy.faulted[1].when - proxy.faulted[0].when > 0.95


async def test_an_api_server_that_forgets_its_history_at_once_is_not_flooded_with_lists(
    api: Api, cluster_config: Path, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pause = 0.1
    monkeypatch.setattr(informer, "LONGEST_DELAY", pause)
    async with api_proxy(api) as proxy:
        proxy.fault = Fault(informers_watch, 410)
        async with operator(cluster_config, namespace, connection=connecting(proxy)):

            def lists() -> dict[str, list[float]]:
                found: dict[str, list[float]] = {}
                for request in proxy.requests:
                    if informers_list(request):
                        found.setdefault(request.path, []).append(request.when)
                return found

            await eventually(lambda: len(lists()) == len(WATCHED) and min(map(len, lists().values())) >= 6)
            for path, when in lists().items():
                # The second list follows at once: one interruption is usual.
                assert min(later - earlier for earlier, later in pairwise(when[1:])) >= pause, path


async def test_a_namespace_without_rights_says_so_in_its_games_and_does_not_stop_the_others(
    api: Api, cluster_config: Path, new_namespace: NewNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operator_module, "IN_STEP_SECONDS", 1.0)
    served, refused = await new_namespace(), await new_namespace()
    for namespace in (served, refused):
        for number in range(3):
            await api.create(GAME, namespace, manifest(f"g{number}"))

    async def degraded(name: str) -> dict[str, Any]:
        game = await api.get(GAME, refused, name)
        found = ((game or {}).get("status") or {}).get("conditions") or ()
        return next((each for each in found if each["type"] == "Degraded"), {})

    async with api_proxy(api) as proxy:
        chosen = f"/namespaces/{refused}/networkpolicies"
        proxy.fault = Fault(lambda request: request.path.endswith(chosen), 403)
        async with operator(
            cluster_config, served, connection=connecting(proxy), watch_namespaces=(served, refused), workers=2
        ) as running:

            async def all_served() -> bool:
                return all([await has_job(api, served, f"g{number}") for number in range(3)])

            async def all_told() -> bool:
                return all([(await degraded(f"g{number}")).get("reason") == "NotServed" for number in range(3)])

            await eventually(all_served)
            await eventually(all_told)
            assert not running.inner.readiness_problem()
            assert await names(api, JOB, refused) == set()
            proxy.fault = None
            await eventually(lambda: has_job(api, refused, "g0"))

            async def mended() -> bool:
                return (await degraded("g0"))["reason"] != "NotServed"

            await eventually(mended)


async def test_references_that_may_not_be_read_are_told_and_not_said_to_be_missing(
    api: Api, cluster_config: Path, namespace: str
) -> None:
    async with api_proxy(api) as proxy:
        proxy.fault = Fault(lambda request: request.path.endswith("/secrets/hub"), 403)
        async with operator(cluster_config, namespace, connection=connecting(proxy)):
            model = {"uri": "hf://org/name", "secretRef": {"name": "hub"}}
            await api.create(GAME, namespace, manifest("g0", model=model))

            async def told() -> dict[str, Any]:
                game = await api.get(GAME, namespace, "g0")
                found = {each["type"]: each for each in ((game or {}).get("status") or {}).get("conditions") or ()}
                return found if found.get("Degraded", {}).get("reason") == "ObjectRefused" else {}

            conditions = await eventually(told)
            assert "cannot be read" in conditions["Degraded"]["message"]
            assert conditions.get("Accepted", {}).get("reason") != "SecretNotFound"
