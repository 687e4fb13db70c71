"""The operator: its components, started in order and stopped together. kopf starts and stops it (`handlers`).

Informers start first, then the leader election, then the workers. Invariants: only workers write, and they start after
the cache of a namespace has synced and this operator leads; a reconciliation begins only while every watch of its
game's namespace is in step. A namespace whose watches are refused holds up no other.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from importlib.metadata import PackageNotFoundError, version
from uuid import uuid4

from swarmgame_common.logs import get_logger
from swarmgame_operator.api import JOB, Api
from swarmgame_operator.cache import SELECTOR, WATCHED, ClusterCache, Key
from swarmgame_operator.errors import OperatorError, Retry, WatchLost
from swarmgame_operator.events import Events
from swarmgame_operator.informer import SILENCE_SECONDS, Informer
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
IN_STEP_SECONDS = 10.0
"""How long a worker waits for the watches of a namespace; later the namespace's games only get a condition."""
QUIET_WATCH_SECONDS = SILENCE_SECONDS + 15.0
"""The API server sends a bookmark every minute, and an informer opens a watch anew that misses one: a shorter
`stale_seconds` would restart a healthy operator.
"""


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
        self.queue: WorkQueue[Key] = WorkQueue(waited=metrics.latency.observe, urgent=self._has_no_job)
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
        self.poller = StatusPoller(
            self.cache,
            every=settings.progress_seconds,
            changed=self._changed,
            proxy=api if settings.through_api_server else None,
        )
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
        self._behind: dict[str, float] = {}
        """Namespaces whose watches are out of step, and since when (monotonic)."""
        metrics.registry.register(GameCollector(self.cache.games, self._gauges))

    def _changed(self, key: Key) -> None:
        self.queue.add_after(key, self._settings.debounce_seconds)

    def _has_no_job(self, key: Key) -> bool:
        """Return whether a game's peers have no Job yet. Its user waits for pods; the status of a running game may be a
        little older.
        """
        return not self.cache.version_of(key, JOB, f"{key[1]}-peers")

    async def start(self, ended: Callable[[], None]) -> None:
        """Start, and return at once.

        Args:
            ended: called if it ends by itself; `failure` says why.
        """
        self._stack.push_async_callback(self.api.close)
        serving = serve(
            self.metrics.registry,
            port=self._settings.metrics_port,
            ready=self.readiness_problem,
            local_metrics=self._settings.local_metrics,
        )
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
            group.create_task(self._deliveries(), name="deliveries")

    async def _deliveries(self) -> None:
        """Raise `WatchLost` when games exist and kopf delivers none. kopf reads which kinds there are when the CRD
        changes; the API server may list a new kind a moment later, and then kopf never watches it (kopf 1.45).
        """
        while True:
            await asyncio.sleep(UNDELIVERED_SECONDS / 20)
            waiting = self.cache.silent_seconds()
            if waiting > UNDELIVERED_SECONDS and self._served():
                raise WatchLost(
                    f"no game was delivered for {waiting:.0f} s, and one waits; was the CRD made meanwhile?"
                )

    async def _work(self) -> None:
        cluster = await self._version()
        await self._any_in_step()
        if self._served():
            games = sum(1 for _ in self.cache.games())
            log.info("cache synced", seconds=round(time.time() - self._started, 2), games=games)
        else:
            log.warning("no namespace is served; the games say why", kinds=self.unserved())
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
        try:
            async with asyncio.timeout(0.0 if self._late(key[0]) else IN_STEP_SECONDS):
                await self._in_step(key[0])
            self._behind.pop(key[0], None)
            problem = None
        except TimeoutError:
            self._behind.setdefault(key[0], time.monotonic() - IN_STEP_SECONDS)
            problem = self._problem(key[0])
        result = "failed"
        with self.metrics.duration.time():
            try:
                if problem is not None:
                    await reconciler.report_unserved(key, *problem)
                    raise Retry(IN_STEP_SECONDS, "NotInStep", f"the watch of {problem[0]} is not in step")
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

    def _late(self, namespace: str) -> bool:
        """Return whether the watches of a namespace have been out of step for long: then no worker waits for them."""
        return time.monotonic() - self._behind.get(namespace, math.inf) >= IN_STEP_SECONDS

    def _problem(self, namespace: str) -> tuple[str, str]:
        """Return a kind of a namespace whose watch is not in step, and why."""
        behind = [each for each in self._watching(namespace) if not each.synced.is_set()]
        found = next((each for each in behind if each.problem), behind[0] if behind else self.informers[0])
        return found.kind.name, found.problem

    def _watching(self, namespace: str) -> list[Informer]:
        return [each for each in self.informers if each.namespace in (None, namespace)]

    async def _in_step(self, namespace: str) -> None:
        """Wait until every watch of a namespace is in step. What a watch has not delivered may be the deletion of a
        game, whose objects would be created again.
        """
        while behind := [each for each in self._watching(namespace) if not each.synced.is_set()]:
            await behind[0].synced.wait()

    async def _any_in_step(self) -> None:
        """Wait until every watch of one namespace is in step, or of all that are watched together; or until a watch of
        each is refused, because only workers can say so in the games' status.
        """
        scopes = self._settings.watch_namespaces or ("",)
        waits = [asyncio.create_task(self._in_step(name)) for name in scopes]
        done: set[asyncio.Task[None]] = set()
        try:
            while not done and not all(self._problem(name)[1] for name in scopes):
                done, _ = await asyncio.wait(waits, timeout=IN_STEP_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()

    def unserved(self) -> dict[str, list[str]]:
        """Return the kinds whose watch is not in step, by namespace; the empty name stands for all namespaces."""
        found: dict[str, list[str]] = {}
        for each in self.informers:
            if not each.synced.is_set():
                found.setdefault(each.namespace or "", []).append(each.kind.name)
        return found

    def _served(self) -> bool:
        """Return whether every watch of a namespace is in step."""
        return len(self.unserved()) < len(self._settings.watch_namespaces or ("",))

    def readiness_problem(self) -> str:
        """Return why nothing is written, or that games are missing; empty if neither is so. One namespace that is
        served is enough: the log and the metrics name the others.
        """
        if not self._served():
            kinds = sorted({kind for each in self.unserved().values() for kind in each})
            return f"not in step, so nothing is written: {', '.join(kinds)}"
        waiting = self.cache.undelivered_seconds()
        return f"a game was not delivered by its watch for {waiting:.0f} s" if waiting else ""

    def liveness_problem(self) -> str:
        """Return why this process should be restarted; empty if it is healthy."""
        limit, now = self._settings.stale_seconds, time.time()
        if self.working.is_set() and self.queue.oldest > limit:
            return f"the oldest work has waited {self.queue.oldest:.0f} s; expected at most {limit:.0f}"
        waiting = self.cache.undelivered_seconds()
        if waiting > UNDELIVERED_SECONDS and self._served():
            return f"a game was not delivered by its watch for {waiting:.0f} s; was the CRD made after the start?"
        quiet = max(limit, QUIET_WATCH_SECONDS)
        stale_watches = sorted(
            {each.kind.name for each in self.informers if now - max(each.last_message, self._started) > quiet}
        )
        return f"watch stalled for {quiet:.0f} s: {', '.join(stale_watches)}" if stale_watches else ""

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
        for name in last:
            unreadable = sum(1 for kind, _, _ in list(self.cache.unreadable) if kind == name)
            yield "swarmgame_operator_unreadable_objects", (name,), float(unreadable)
        for name, when in last.items():
            yield "swarmgame_operator_watch_last_event_timestamp_seconds", (name,), when
            yield "swarmgame_operator_watch_lists", (name,), float(lists[name])
            yield "swarmgame_operator_watch_synced", (name,), float(synced[name])
