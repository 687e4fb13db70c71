"""The operator: its components, started in order and stopped together.

Informers start first, then the leader election, then the workers. Invariant: only workers write, and they start after
the cache has synced and this operator leads.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from importlib.metadata import PackageNotFoundError, version
from uuid import uuid4

from swarmgame_common.logs import get_logger
from swarmgame_operator.api import Api
from swarmgame_operator.cache import SELECTOR, WATCHED, ClusterCache, Key
from swarmgame_operator.errors import OperatorError, Retry
from swarmgame_operator.informer import Informer
from swarmgame_operator.leader import Leader
from swarmgame_operator.metrics import GameCollector, OperatorMetrics
from swarmgame_operator.queue import WorkQueue
from swarmgame_operator.reconcile import Reconciler
from swarmgame_operator.serving import serve
from swarmgame_operator.settings import OperatorSettings
from swarmgame_operator.status_poller import StatusPoller

log = get_logger(__name__)


def package_version() -> str:
    try:
        return version("swarmgame")
    except PackageNotFoundError:
        return "unknown"


class Operator:
    """One operator.

    Args:
        api: not closed here. Its requests should be counted by `metrics`.
    """

    def __init__(self, settings: OperatorSettings, api: Api, metrics: OperatorMetrics) -> None:
        self._settings, self._api, self.metrics = settings, api, metrics
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
        self.ports: tuple[int, int] = (0, 0)
        self._started = time.time()
        metrics.registry.register(GameCollector(self.cache.games, self._gauges))

    def _changed(self, key: Key) -> None:
        self.queue.add_after(key, self._settings.debounce_seconds)

    async def run(self, stop: asyncio.Event) -> None:
        """Run until `stop` is set.

        Raises:
            Lost: another operator leads (inside an ExceptionGroup).
        """
        settings = self._settings
        async with AsyncExitStack() as stack:
            serving = serve(
                self.metrics.registry,
                metrics_port=settings.metrics_port,
                probe_port=settings.probe_port,
                alive=self.liveness_problem,
                ready=self.readiness_problem,
            )
            self.ports = await stack.enter_async_context(serving)
            if self.leader is not None:
                stack.push_async_callback(self.leader.release)
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(informer.run(), name=f"informer {informer.kind.name}")
                    for informer in self.informers
                ]
                tasks.append(group.create_task(self._work(), name="work"))
                await stop.wait()
                for task in tasks:
                    task.cancel()
        log.info("stopped")

    async def _work(self) -> None:
        cluster = await self._version()
        for informer in self.informers:
            await informer.synced.wait()
        log.info(
            "cache synced", seconds=round(time.time() - self._started, 2), games=sum(1 for _ in self.cache.games())
        )
        reconciler = Reconciler(self._api, self.cache, self.poller, self._settings.defaults, version=cluster)
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
                return await self._api.version()
            except OperatorError as error:
                log.warning("no API server yet", reason=error.reason, message=error.message)
            await asyncio.sleep(delay)
            delay = min(30.0, delay * 2)

    def readiness_problem(self) -> str:
        """Return the kinds that were not listed yet; empty once the cache has synced."""
        missing = sorted({informer.kind.name for informer in self.informers if not informer.synced.is_set()})
        return f"not listed yet: {', '.join(missing)}" if missing else ""

    def liveness_problem(self) -> str:
        """Return why this process should be restarted; empty if it is healthy."""
        limit, now = self._settings.stale_seconds, time.time()
        if self.working.is_set() and self.queue.oldest > limit:
            return f"the oldest work has waited {self.queue.oldest:.0f} s; expected at most {limit:.0f}"
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
        for informer in self.informers:
            name = informer.kind.name
            last[name] = min(last.get(name, informer.last_message), informer.last_message)
            lists[name] = lists.get(name, 0) + informer.lists
        for name, when in last.items():
            yield "swarmgame_operator_watch_last_event_timestamp_seconds", (name,), when
            yield "swarmgame_operator_watch_lists", (name,), float(lists[name])
