"""The CRD is made after the operator has started, and is deleted and made again while it runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
from api_proxy import api_proxy
from operator_process import OperatorProcess, operator_process
from operators import collector_knows_games, eventually, manifest, names, operator

from swarmgame_operator import informer
from swarmgame_operator import operator as operator_module
from swarmgame_operator.api import GAME, JOB, Api, ResourceKind
from swarmgame_operator.errors import WatchLost

CRD = Path(__file__).parents[3] / "crds" / "swarmgame.yaml"
DEFINITION = ResourceKind("CustomResourceDefinition", "apiextensions.k8s.io/v1", "customresourcedefinitions")
NAME = "swarmgames.swarmgame.dev"
STOPPED, LOST = 0, 75


async def remove(api: Api) -> None:
    """Delete the CRD with all games, and wait until it is gone."""
    await api.delete(DEFINITION, None, NAME, propagation="Background")

    async def gone() -> bool:
        return await api.get(DEFINITION, None, NAME) is None

    await eventually(gone, 60)


async def install(api: Api) -> None:
    """Make the CRD, and wait until games can be made."""
    await api.apply(DEFINITION, None, yaml.safe_load(CRD.read_text(encoding="utf-8")))

    async def established() -> bool:
        found: Any = await api.get(DEFINITION, None, NAME)
        conditions = (found.get("status") or {}).get("conditions") or ()
        return any(each["type"] == "Established" and each["status"] == "True" for each in conditions)

    await eventually(established)


@pytest_asyncio.fixture
async def without_definition(api: Api, cluster_config: Path) -> AsyncIterator[None]:
    """Remove the CRD for a test. The tests after it find a garbage collector that knows the new one."""
    await remove(api)
    yield
    await install(api)
    await collector_knows_games(api)


async def play(api: Api, namespace: str, name: str) -> None:
    """Make a game, which is refused for a moment after the CRD was made."""

    async def made() -> bool:
        try:
            await api.create(GAME, namespace, manifest(name, identity={"retentionPolicy": "Delete"}))
        except Exception as error:  # noqa: BLE001  # 404 or 429 while the API server sets up the kind
            return getattr(error, "status", 0) == 409
        return True

    await eventually(made)


async def made_or_ended(api: Api, namespace: str, game: str, process: OperatorProcess) -> bool:
    """Wait until the game has its Job, or the process has ended. Return whether it has its Job."""

    async def has_job() -> bool:
        return f"{game}-peers" in await names(api, JOB, namespace)

    async def either() -> bool:
        return process.process.returncode is not None or await has_job()

    try:
        await eventually(either, 240)
    except AssertionError as error:
        raise AssertionError(f"it neither works nor ends:\n{process.output}") from error
    return await has_job()


async def working(
    api: Api, namespace: str, game: str, process: OperatorProcess, again: Callable[[], Awaitable[OperatorProcess]]
) -> OperatorProcess:
    """Wait for the game's Job, and return the process that made it: this one, or the next. The API server may list a
    new kind only after kopf has read which kinds there are; then the process asks for a restart.
    """
    if await made_or_ended(api, namespace, game, process):
        return process
    assert await process.exit_code() == LOST, process.output
    second = await again()
    assert await made_or_ended(api, namespace, game, second), second.output
    return second


@pytest.mark.usefixtures("without_definition")
async def test_an_operator_of_the_cluster_notices_a_definition_that_comes_and_goes(
    api: Api, namespace: str, tmp_path: Path
) -> None:
    async with api_proxy(api) as proxy, AsyncExitStack() as stack:
        config = proxy.kubeconfig(tmp_path / "config")

        async def again() -> OperatorProcess:
            return await stack.enter_async_context(operator_process(tmp_path, config))

        terminated, process = await again(), await again()
        for each in (terminated, process):
            await each.logs("Unresolved resources cannot be served")
        terminated.terminate()
        assert await terminated.exit_code() == STOPPED
        await install(api)
        await play(api, namespace, "g0")
        process = await working(api, namespace, "g0", process, again)
        await remove(api)
        before = len(proxy.requests)
        await install(api)
        await play(api, namespace, "g1")
        process = await working(api, namespace, "g1", process, again)
        process.terminate()
        assert await process.exit_code() == STOPPED
        written = [each for each in proxy.requests[before:] if each.is_write]
        assert [each.path for each in written if each.names("g0")] == []


@pytest.mark.usefixtures("without_definition")
async def test_an_operator_of_a_namespace_that_started_before_the_definition_asks_for_a_restart(
    api: Api, cluster_config: Path, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operator_module, "UNDELIVERED_SECONDS", 1.0)
    monkeypatch.setattr(informer, "LONGEST_DELAY", 0.5)
    async with operator(cluster_config, namespace, may_end=True) as running:
        await eventually(lambda: running.inner.readiness_problem() == "not in step, so nothing is written: SwarmGame")
        await install(api)
        await play(api, namespace, "g0")
        await running.wait()
        assert running.inner.readiness_problem().startswith("a game was not delivered by its watch")
        assert isinstance(running.error, BaseExceptionGroup)
        assert running.error.subgroup(WatchLost) is not None
        assert await names(api, JOB, namespace) == set()
        assert running.metrics.writes == 0

    async def has_job() -> bool:
        return "g0-peers" in await names(api, JOB, namespace)

    async with operator(cluster_config, namespace):
        await eventually(has_job)
