"""An operator under kopf, against a real API server, with its requests counted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import kopf

from swarmgame_operator import handlers  # noqa: F401  # registers them
from swarmgame_operator.api import DEPLOYMENT, GAME, JOB, POD, Api, ResourceKind, connect
from swarmgame_operator.cache import SELECTOR, ClusterCache
from swarmgame_operator.errors import OperatorError
from swarmgame_operator.metrics import OperatorMetrics
from swarmgame_operator.operator import Operator
from swarmgame_operator.plan.game_context import GAME_LABEL
from swarmgame_operator.plan.status_changes import COUNTS_SECONDS
from swarmgame_operator.settings import OperatorSettings

Result = TypeVar("Result")
Connect = Callable[[Callable[[str, str], None]], Awaitable[Api]]
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


class RunningOperator:
    """An operator in a thread of its own, as `kopf.operator` cancels every task of its loop when it ends.

    Its figures and its cache may be read from other threads; everything else is run in its loop.
    """

    def __init__(self, settings: OperatorSettings, kubeconfig: str, connection: Connect | None = None) -> None:
        self.memo = kopf.Memo(
            settings=settings, connect=connection or partial(connect, config_file=kubeconfig), ended=self.end
        )
        self._clusterwide, self._namespaces = not settings.watch_namespaces, settings.watch_namespaces
        self._stop, self._ready = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="operator", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.error: BaseException | None = None
        self.tasks_left: list[str] = []
        """Tasks that ran in its loop when it had ended."""

    def _run(self) -> None:
        async def run() -> None:
            self._loop = asyncio.get_running_loop()
            try:
                await kopf.operator(
                    memo=self.memo,
                    clusterwide=self._clusterwide,
                    namespaces=self._namespaces,
                    standalone=True,
                    stop_flag=self._stop,
                    ready_flag=self._ready,
                )
            finally:
                self._stop.set()  # a thread of the loop waits for it
                own = asyncio.current_task()
                self.tasks_left = [task.get_name() for task in asyncio.all_tasks() if task is not own]

        try:
            asyncio.run(run())
            self.error = self.inner.failure
        except Exception as error:  # noqa: BLE001  # the block's end raises it
            self.error = error
        finally:
            self._ready.set()

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Stop as SIGTERM does, without waiting."""
        self._stop.set()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    async def started(self) -> None:
        """Wait until the start-up handlers have run, or failed."""
        await asyncio.to_thread(self._ready.wait)

    async def wait(self, seconds: float = 30.0) -> None:
        """Wait until it has ended."""
        await asyncio.to_thread(self._thread.join, seconds)
        assert not self.alive, "the operator does not end"

    async def call(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine in the operator's loop."""
        assert self._loop is not None
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._loop))

    async def works(self, seconds: float = 30.0) -> None:
        """Wait until it leads and its workers run."""
        await eventually(lambda: "operator" in self.memo and self.inner.working.is_set(), seconds)

    @property
    def inner(self) -> Operator:
        found: Operator = self.memo.operator
        return found

    @property
    def metrics(self) -> OperatorMetrics:
        return self.inner.metrics

    @property
    def cache(self) -> ClusterCache:
        return self.inner.cache


@asynccontextmanager
async def operator(
    kubeconfig: Path, namespace: str = "", *, connection: Connect | None = None, may_end: bool = False, **settings: Any
) -> AsyncIterator[RunningOperator]:
    """Run an operator of one namespace, or (empty) of all, and stop it as SIGTERM does when the block ends.

    Args:
        connection: makes its connection to the API server; else the kubeconfig does.
        may_end: it may end by itself in the block; else its error is raised at the block's end.
    """
    quick: dict[str, Any] = {"metrics_port": 0, "probe_port": 0, "debounce_seconds": 0.02, "progress_seconds": 0}
    watched = {"watch_namespaces": (namespace,) if namespace else ()}
    chosen = OperatorSettings(**{**quick, **watched, **settings})
    running = RunningOperator(chosen, str(kubeconfig), connection)
    running.start()
    await running.started()
    try:
        yield running
        if not may_end and not running.alive and running.error is not None:
            raise running.error
    finally:
        running.end()
        await running.wait()


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


async def settled(running: RunningOperator, seconds: float = 30.0) -> None:
    """Wait until every game has been reconciled twice more without a single write, also of counts that waited."""
    await running.works(seconds)
    await _quiet(running)
    await asyncio.sleep(1.1 * COUNTS_SECONDS)
    await _quiet(running)


async def _quiet(running: RunningOperator) -> None:
    quiet = 0
    for _ in range(200):
        before = running.metrics.writes  # with the renewals of a lease, so the two rounds follow each other at once
        await reconcile_all(running)
        quiet = quiet + 1 if running.metrics.writes == before else 0
        if quiet == 2:
            return
    raise AssertionError("the operator keeps writing")


async def reconcile_all(running: RunningOperator) -> int:
    """Reconcile every game once more. Return the number of games."""
    done = running.metrics.reconciles.labels("done")
    before = done._value.get()
    queue = running.inner.queue

    async def add() -> int:
        keys = [key for key, _ in running.cache.games()]
        for key in keys:
            queue.add(key)
        return len(keys)

    count = await running.call(add())
    await eventually(lambda: done._value.get() >= before + count and queue.depth == 0)
    return count


async def names(api: Api, kind: ResourceKind, namespace: str) -> set[str]:
    """Return the names of all objects of a kind."""
    page = await api.list_page(kind, namespace)
    return {each["metadata"]["name"] for each in page["items"]}


async def all_at_rest(running: RunningOperator, api: Api, namespace: str, count: int) -> None:
    """Wait until the controllers are at rest with so many games, the operator knows what they did, and it is settled.
    From then on nothing but a change of a game or of a child causes a write.
    """
    await eventually(lambda: controllers_at_rest(api, namespace, count), 60)
    await eventually(lambda: caught_up(running, api, namespace))
    await settled(running)


async def caught_up(running: RunningOperator, api: Api, namespace: str) -> bool:
    """Return whether the operator's cache has the present version of all Jobs, Deployments and pods of games."""
    for kind in (JOB, DEPLOYMENT, POD):
        for each in (await api.list_page(kind, namespace, selector=SELECTOR))["items"]:
            metadata = each["metadata"]
            key = (namespace, metadata["labels"][GAME_LABEL])
            present = f"{metadata['uid']}/{metadata['resourceVersion']}"
            if running.cache.version_of(key, kind, metadata["name"]) != present:
                return False
    return True


async def collector_knows_games(api: Api) -> None:
    """Wait until the garbage collector acts on games, by a game that only it can delete. It finds a new kind within
    30 s; until then no object of a deleted game is deleted.
    """

    async def made() -> bool:
        try:
            await api.create(GAME, "default", manifest("probe"))
        except OperatorError as error:  # 404 or 429 while the API server sets up the kind
            if error.status not in (404, 409, 429):
                raise
            return error.status == 409
        return True

    async def gone() -> bool:
        return await api.get(GAME, "default", "probe") is None

    await eventually(made)
    await api.delete(GAME, "default", "probe", propagation="Foreground")
    await eventually(gone, 90)


async def controllers_at_rest(api: Api, namespace: str, count: int) -> bool:
    """Return whether the controllers have made the pods of all games, and have counted them in the objects' status."""
    jobs = [each.get("status") or {} for each in (await api.list_page(JOB, namespace))["items"]]
    bootnodes = [each.get("status") or {} for each in (await api.list_page(DEPLOYMENT, namespace))["items"]]
    return (
        sum(status.get("active", 0) == 2 and "ready" in status for status in jobs) == count
        and sum(status.get("unavailableReplicas") == 1 for status in bootnodes) == count
    )
