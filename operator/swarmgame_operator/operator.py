"""The operator: its components, started in order and stopped together. kopf starts and stops it (`handlers`).

Informers start first, then the leader election, then the workers. Invariants: only workers write, and they start after
the cache has synced and this operator leads; a reconciliation begins only while every watch is in step.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from importlib.metadata import PackageNotFoundError, version
from uuid import uuid4

from swarmgame_common.logs import get_logger
from swarmgame_operator.api import Api
from swarmgame_operator.cache import SELECTOR, WATCHED, ClusterCache, Key
from swarmgame_operator.errors import OperatorError, Retry
from swarmgame_operator.events import Events
from swarmgame_operator.informer import Informer
from swarmgame_operator.leader import Leader
from swarmgame_operator.metrics import GameCollector, OperatorMetrics
from swarmgame_operator.queue import WorkQueue
from swarmgame_operator.reconcile import Reconciler
from swarmgame_operator.serving import serve
from swarmgame_operator.settings import OperatorSettings
from swarmgame_operator.status_poller import StatusPoller

log = get_logger(__name__)

UNDELIVERED_SECONDS = 60.0
"""A game that exists and that kopf has not delivered for this long: its watch does not work, and a new process does."""


def package_version() -> str:
    try:
        return version("swarmgame")
    except PackageNotFoundError:
        return "unknown"


class Operator:
    """One operator.

    Args:
        api: closed by `stop`. Its requests should be counted by `metrics`.
    """

    def __init__(self, settings: OperatorSettings, api: Api, metrics: OperatorMetrics) -> None:
        self._settings, self.api, self.metrics = settings, api, metrics
        self.failure: BaseException | None = None
        """Why it ended by itself; None while it runs, and when it was stopped."""
        self.events = Events()
        self._stack = AsyncExitStack()
        self._task: asyncio.Task[None] | None = None
        self.queue: WorkQueue[Key] = WorkQueue(waited=metrics.latency.observe)
        self.cache = ClusterCache(changed=self._changed)
        self.informers = [
            Informer(
                api,
                kind,
                self.cache,
                namespace=namespace,
                selector="" if kind.name == "SwarmGame" else SELECTOR,
                metadata=metadata,
            )
            for namespace in settings.watch_namespaces or (None,)
            for kind, metadata in WATCHED.items()
        ]
        self.poller = StatusPoller(self.cache, every=settings.progress_seconds, changed=self._changed)
        self.leader = (
            Leader(
                api,
                namespace=settings.lease_namespace,
                name=settings.lease_name,
                identity=f"{os.environ.get('HOSTNAME', 'operator')}_{uuid4().hex[:12]}",
                seconds=settings.lease_seconds,
            )
            if settings.lease_namespace
            else None
        )
        self.working = asyncio.Event()
        """Set when this operator leads and its workers run."""
        self.port = 0
        """Of /metrics and /readyz."""
        self._started = time.time()
        metrics.registry.register(GameCollector(self.cache.games, self._gauges))

    def _changed(self, key: Key) -> None:
        self.queue.add_after(key, self._settings.debounce_seconds)

    async def start(self, ended: Callable[[], None]) -> None:
        """Start, and return at once.

        Args:
            ended: called if it ends by itself; `failure` says why.
        """
        self._stack.push_async_callback(self.api.close)
        serving = serve(self.metrics.registry, port=self._settings.metrics_port, ready=self.readiness_problem)
        self.port = await self._stack.enter_async_context(serving)
        if self.leader is not None:
            self._stack.push_async_callback(self.leader.release)

        def done(task: asyncio.Task[None]) -> None:
            if not task.cancelled():
                self.failure = task.exception()
                ended()

        self._task = asyncio.create_task(self._run(), name="operator")
        self._task.add_done_callback(done)

    async def stop(self) -> None:
        """Stop everything, release the Lease, and close the connection."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self.working.clear()
        await self._stack.aclose()
        log.info("stopped")

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for informer in self.informers:
                group.create_task(informer.run(), name=f"informer {informer.kind.name}")
            group.create_task(self._work(), name="work")

    async def _work(self) -> None:
        cluster = await self._version()
        await self._in_step()
        log.info(
            "cache synced", seconds=round(time.time() - self._started, 2), games=sum(1 for _ in self.cache.games())
        )
        reconciler = Reconciler(
            self.api, self.cache, self.poller, self._settings.defaults, self.events, version=cluster
        )
        if self.leader is not None:
            await self.leader.acquire()
        for key, _ in self.cache.games():
            self.queue.add(key)
        async with asyncio.TaskGroup() as group:
            if self.leader is not None:
                group.create_task(self.leader.hold(), name="lease")
            group.create_task(self.poller.run(), name="status poller")
            for number in range(self._settings.workers):
                work = self.queue.work(
                    lambda key: self._reconcile(reconciler, key),
                    failed=lambda reason: self.metrics.errors.labels(reason).inc(),
                )
                group.create_task(work, name=f"worker {number}")
            self.working.set()

    async def _reconcile(self, reconciler: Reconciler, key: Key) -> float | None:
        await self._in_step()
        result = "failed"
        with self.metrics.duration.time():
            try:
                again = await reconciler.reconcile(key)
                result = "done"
            except Retry:
                result = "retry"
                raise
            finally:
                self.metrics.reconciles.labels(result).inc()
        return again

    async def _version(self) -> tuple[int, int]:
        delay = 0.5
        while True:
            try:
                return await self.api.version()
            except OperatorError as error:
                log.warning("no API server yet", reason=error.reason, message=error.message)
            await asyncio.sleep(delay)
            delay = min(30.0, delay * 2)

    async def _in_step(self) -> None:
        """Wait until every watch is in step. What a watch has not delivered may be the deletion of a game, whose
        objects would be created again.
        """
        while behind := [informer for informer in self.informers if not informer.synced.is_set()]:
            await behind[0].synced.wait()

    def readiness_problem(self) -> str:
        """Return the kinds whose watch is not in step, or that games are missing; empty if nothing is."""
        behind = sorted({informer.kind.name for informer in self.informers if not informer.synced.is_set()})
        if behind:
            return f"not in step, so nothing is written: {', '.join(behind)}"
        waiting = self.cache.undelivered_seconds()
        return f"a game was not delivered by its watch for {waiting:.0f} s" if waiting else ""

    def liveness_problem(self) -> str:
        """Return why this process should be restarted; empty if it is healthy."""
        limit, now = self._settings.stale_seconds, time.time()
        if self.working.is_set() and self.queue.oldest > limit:
            return f"the oldest work has waited {self.queue.oldest:.0f} s; expected at most {limit:.0f}"
        waiting = self.cache.undelivered_seconds()
        if waiting > UNDELIVERED_SECONDS and all(each.synced.is_set() for each in self.informers):
            return f"a game was not delivered by its watch for {waiting:.0f} s; was the CRD made after the start?"
        stale_watches = sorted(
            {each.kind.name for each in self.informers if now - max(each.last_message, self._started) > limit}
        )
        return f"watch stalled for {limit:.0f} s: {', '.join(stale_watches)}" if stale_watches else ""

    def _gauges(self) -> Iterator[tuple[str, tuple[str, ...], float]]:
        yield "swarmgame_operator_queue_depth", (), float(self.queue.depth)
        yield "swarmgame_operator_queue_oldest_seconds", (), self.queue.oldest
        yield "swarmgame_operator_leader", (), float(self.working.is_set())
        last: dict[str, float] = {}
        lists: dict[str, int] = {}
        synced: dict[str, bool] = {}
        for informer in self.informers:
            name = informer.kind.name
            last[name] = min(last.get(name, informer.last_message), informer.last_message)
            lists[name] = lists.get(name, 0) + informer.lists
            synced[name] = synced.get(name, True) and informer.synced.is_set()
        for name, when in last.items():
            yield "swarmgame_operator_watch_last_event_timestamp_seconds", (name,), when
            yield "swarmgame_operator_watch_lists", (name,), float(lists[name])
            yield "swarmgame_operator_watch_synced", (name,), float(synced[name])
