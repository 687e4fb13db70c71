"""An API server that refuses, hangs, or ends its answers early: the operator recovers, or ends so that it is started
again; meanwhile it writes nothing that should not be written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import kopf
import pytest
from api_proxy import (
    ApiProxy,
    Chosen,
    Fault,
    api_proxy,
    by_kopf,
    informers_list,
    informers_watch,
    kopf_lists_games,
    kopf_watches_games,
)
from kubernetes.aio import client
from operators import RunningOperator, eventually, manifest, names, operator, settled

from swarmgame_operator import handlers, informer
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


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    configure = handlers.configure_kopf

    def quickly(settings: kopf.OperatorSettings, chosen: OperatorSettings) -> None:
        configure(settings, chosen)
        settings.networking.error_backoffs = Often()
        settings.networking.request_timeout = 1.0
        settings.watching.inactivity_timeout = 2.0

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
@pytest.mark.parametrize("chosen", [kopf_lists_games, informers_list])
async def test_before_the_lists_are_complete_nothing_is_written(
    api: Api, cluster_config: Path, namespace: str, kind: int | str, chosen: Chosen
) -> None:
    await api.create(GAME, namespace, manifest("g0"))
    async with api_proxy(api) as proxy:
        proxy.fault = Fault(chosen, kind)
        async with operator(cluster_config, namespace, connection=connecting(proxy), may_end=True) as running:
            await faulty(running, proxy, 3 if chosen is kopf_lists_games else 2 * len(WATCHED))
            assert proxy.writes == []
            fatal = chosen is kopf_lists_games and kind in FATAL["list"]
            if fatal:
                await running.wait()
                assert running.error is not None
            proxy.fault = None
            if fatal:
                async with operator(cluster_config, namespace, connection=connecting(proxy)):
                    await eventually(lambda: has_job(api, namespace, "g0"))
            else:
                await eventually(lambda: has_job(api, namespace, "g0"))
                assert running.alive


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("chosen", [kopf_watches_games, informers_watch])
async def test_after_a_watch_has_broken_nothing_of_a_deleted_game_is_written(
    api: Api, cluster_config: Path, namespace: str, kind: int | str, chosen: Chosen
) -> None:
    await api.create(GAME, namespace, manifest("g0"))
    async with api_proxy(api) as proxy:
        async with operator(cluster_config, namespace, connection=connecting(proxy), may_end=True) as running:
            await eventually(lambda: has_job(api, namespace, "g0"))
            await settled(running)
            await eventually(lambda: {each.plural for each in proxy.requests if chosen(each)})
            proxy.fault = Fault(chosen, kind)
            proxy.cut(chosen)
            await faulty(running, proxy, 2 if chosen is kopf_watches_games else 2 * len(WATCHED))
            before = len(proxy.writes)
            await api.delete(GAME, namespace, "g0", propagation="Background")
            for secret in ("g0-bootnode-key", "g0-peer-keys"):
                await api.delete(SECRET, namespace, secret, propagation="Background")
            await api.create(GAME, namespace, manifest("g1"))

            async def collected() -> bool:
                return not await has_job(api, namespace, "g0")

            await eventually(collected)
            if chosen is informers_watch:
                assert len(proxy.writes) == before
            fatal = chosen is kopf_watches_games and kind in FATAL["watch"]
            if fatal:
                await running.wait()
                assert running.error is not None
            proxy.fault = None
            if fatal:
                async with operator(cluster_config, namespace, connection=connecting(proxy)) as again:
                    await eventually(lambda: has_job(api, namespace, "g1"))
                    await settled(again)
            else:
                await eventually(lambda: has_job(api, namespace, "g1"))
                await settled(running)
                assert running.alive
        assert [each.path for each in proxy.writes[before:] if each.names("g0")] == []
        assert await names(api, SECRET, namespace) == {"g1-bootnode-key", "g1-peer-keys"}
