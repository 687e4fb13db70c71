"""An operator in the test's own event loop, against a real API server, with its requests counted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from swarmgame_operator.api import GAME, Api, ResourceKind, connect
from swarmgame_operator.metrics import OperatorMetrics
from swarmgame_operator.operator import Operator
from swarmgame_operator.settings import OperatorSettings

SPEC: dict[str, Any] = {
    "game": {
        "maxRounds": 10,
        "data": {"use": "reasoning-gym", "with": {"environments": [{"name": "chain_sum"}], "questionsPerRound": 2}},
        "rewards": {"use": "reasoning-gym"},
        "trainer": {"use": "grpo"},
    },
    "model": {"uri": "builtin://tiny"},
    "peers": {"replicas": 2, "image": "localhost/worker:test"},
}


def manifest(name: str = "sums", **spec: Any) -> dict[str, Any]:
    """Return a small game; keywords replace blocks of its spec."""
    return {"apiVersion": GAME.api, "kind": GAME.name, "metadata": {"name": name}, "spec": {**SPEC, **spec}}


@asynccontextmanager
async def operator(kubeconfig: Path, namespace: str = "", **settings: Any) -> AsyncIterator[Operator]:
    """Run an operator of one namespace, or (empty) of all, and stop it as SIGTERM does when the block ends."""
    metrics = OperatorMetrics("test")
    api = await connect(metrics.requested, config_file=str(kubeconfig))
    quick: dict[str, Any] = {"metrics_port": 0, "probe_port": 0, "debounce_seconds": 0.02, "progress_seconds": 0}
    chosen = OperatorSettings(watch_namespaces=(namespace,) if namespace else (), **{**quick, **settings})
    stop = asyncio.Event()
    running = Operator(chosen, api, metrics)
    task = asyncio.create_task(running.run(stop))
    try:
        yield running
        if task.done():
            task.result()
    finally:
        stop.set()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await api.close()


async def eventually(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Wait for the first true value of a condition, which may be a coroutine function, and return it.

    Raises:
        AssertionError: it was never true; with its last value.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        if loop.time() > end:
            raise AssertionError(f"not true after {seconds:.0f} s; last value: {value!r}")
        await asyncio.sleep(0.05)


async def settled(running: Operator, seconds: float = 30.0) -> None:
    """Wait until every game has been reconciled twice more without a single write."""
    await asyncio.wait_for(running.working.wait(), seconds)
    quiet = 0
    for _ in range(200):
        before = running.metrics.writes
        await reconcile_all(running)
        quiet = quiet + 1 if running.metrics.writes == before else 0
        if quiet == 2:
            return
    raise AssertionError("the operator keeps writing")


async def reconcile_all(running: Operator) -> int:
    """Reconcile every game once more. Return the number of games."""
    keys = [key for key, _ in running.cache.games()]
    done = running.metrics.reconciles.labels("done")
    before = done._value.get()
    for key in keys:
        running.queue.add(key)
    await eventually(lambda: done._value.get() >= before + len(keys) and running.queue.depth == 0)
    return len(keys)


async def names(api: Api, kind: ResourceKind, namespace: str) -> set[str]:
    """Return the names of all objects of a kind."""
    page = await api.list_page(kind, namespace)
    return {each["metadata"]["name"] for each in page["items"]}
