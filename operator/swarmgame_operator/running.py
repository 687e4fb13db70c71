"""The running operator: its parts put together, started in order, and stopped together.

Informers first; when all of them are in step, leadership, if there is any; only then workers, which alone write.
Invariant: nothing is written before the whole of what is watched has been seen once, and nothing by who does not lead.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from importlib.metadata import PackageNotFoundError, version
from uuid import uuid4

from swarmgame_operator.api import Api
from swarmgame_operator.errors import OperatorError, Retry
from swarmgame_operator.informer import Informer
from swarmgame_operator.leader import Leader
from swarmgame_operator.logs import log
from swarmgame_operator.metrics import Games, Metrics
from swarmgame_operator.observe import SELECTOR, WATCHED, Cache, Key
from swarmgame_operator.progress import Progress
from swarmgame_operator.queue import WorkQueue
from swarmgame_operator.reconcile import Reconciler
from swarmgame_operator.serving import serve
from swarmgame_operator.settings import Settings


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

    def __init__(self, settings: Settings, api: Api, metrics: Metrics) -> None:
        self._settings, self._api, self.metrics = settings, api, metrics
        self.queue: WorkQueue[Key] = WorkQueue(waited=metrics.latency.observe)
        self.cache = Cache(changed=self._changed)
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
        self.progress = Progress(self.cache, every=settings.progress_seconds, changed=self._changed)
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
        """Set once this operator leads and its workers run."""
        self.ports: tuple[int, int] = (0, 0)
        self._started = time.time()
        metrics.registry.register(Games(self.cache.games, self._gauges))

    def _changed(self, key: Key) -> None:
        self.queue.add_after(key, self._settings.debounce_seconds)

    async def run(self, stop: asyncio.Event) -> None:
        """Works until told to stop.

        Raises:
            Lost: leadership went to somebody else (inside an ExceptionGroup).
        """
        settings = self._settings
        async with AsyncExitStack() as stack:
            serving = serve(
                self.metrics.registry,
                metrics_port=settings.metrics_port,
                probe_port=settings.probe_port,
                alive=self.not_alive,
                ready=self.not_ready,
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
        log.info("in step", seconds=round(time.time() - self._started, 2), games=sum(1 for _ in self.cache.games()))
        reconciler = Reconciler(self._api, self.cache, self.progress, self._settings.defaults, version=cluster)
        if self.leader is not None:
            await self.leader.acquire()
        for key, _ in self.cache.games():
            self.queue.add(key)
        async with asyncio.TaskGroup() as group:
            if self.leader is not None:
                group.create_task(self.leader.hold(), name="lease")
            group.create_task(self.progress.run(), name="progress")
            for number in range(self._settings.workers):
                work = self.queue.work(
                    lambda key: self._look(reconciler, key),
                    failed=lambda reason: self.metrics.errors.labels(reason).inc(),
                )
                group.create_task(work, name=f"worker {number}")
            self.working.set()

    async def _look(self, reconciler: Reconciler, key: Key) -> float | None:
        result = "failed"
        with self.metrics.duration.time():
            try:
                again = await reconciler.look(key)
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

    def not_ready(self) -> str:
        """What is missing before the first look; nothing once all has been seen."""
        missing = sorted({informer.kind.name for informer in self.informers if not informer.synced.is_set()})
        return f"not listed yet: {', '.join(missing)}" if missing else ""

    def not_alive(self) -> str:
        """Why this process should be started again; nothing when all is well."""
        limit, now = self._settings.stale_seconds, time.time()
        if self.working.is_set() and self.queue.oldest > limit:
            return f"the oldest work has waited {self.queue.oldest:.0f} s; expected at most {limit:.0f}"
        deaf = sorted(
            {informer.kind.name for informer in self.informers if now - max(informer.heard, self._started) > limit}
        )
        return f"nothing heard for {limit:.0f} s of {', '.join(deaf)}" if deaf else ""

    def _gauges(self) -> Iterator[tuple[str, tuple[str, ...], float]]:
        yield "swarmgame_operator_queue_depth", (), float(self.queue.depth)
        yield "swarmgame_operator_queue_oldest_seconds", (), self.queue.oldest
        yield "swarmgame_operator_leader", (), float(self.working.is_set())
        heard: dict[str, float] = {}
        lists: dict[str, int] = {}
        for informer in self.informers:
            name = informer.kind.name
            heard[name] = min(heard.get(name, informer.heard), informer.heard)
            lists[name] = lists.get(name, 0) + informer.lists
        for name, when in heard.items():
            yield "swarmgame_operator_watch_last_event_timestamp_seconds", (name,), when
            yield "swarmgame_operator_watch_lists", (name,), float(lists[name])
