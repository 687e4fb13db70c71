"""An informer: keeps a store equal to the API server's objects of one kind.

It lists in pages, then watches, and lists again when the watch is too old. After every list, objects that it does not
contain are removed from the store, so nothing stays that was deleted while no watch was open. While the store may be
behind, `synced` is not set.

Why not kopf's indices: docs/decisions/0036-kopf-owns-the-process-and-the-games.md. Source:
k8s.io/client-go/tools/cache, Reflector.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable
from typing import Any, Protocol

import aiohttp

from swarmgame_common.logs import get_logger
from swarmgame_operator.api import METADATA, Api, ResourceKind
from swarmgame_operator.errors import Gone, OperatorError, Retry

log = get_logger(__name__)

SERVER_SECONDS = 300
"""How long the API server keeps a watch open."""
SILENCE_SECONDS = 75.0
"""A watch without a message for this long is broken: bookmarks come every minute."""
HEADER_SECONDS = 30.0
"""A watch that the API server does not accept for this long is broken."""
OPENING_SECONDS = 2.0
"""While a watch is not accepted for longer than this, the store may be behind."""
SHORTEST_SECONDS = 1.0
"""A watch that ends earlier, and without a message, has failed."""
LONGEST_DELAY = 30.0
RECONNECT_SECONDS = 0.1
REFUSALS = frozenset({403, 404, 405})
"""Answers that stay until a role or the cluster is changed; everything else passes by itself."""
QUIET_SECONDS = 0.5
"""A watch that was broken and is accepted again delivers what was missed, or that it is too old, at once: after this
long without a message the store is in step.
"""
CATCH_UP_SECONDS = 5.0
"""A watch that delivers without a pause counts as in step after this long."""


class InformerStore(Protocol):
    """A store that an informer fills."""

    def put(self, kind: ResourceKind, body: dict[str, Any]) -> None:
        """Store an object's state."""
        ...

    def remove(self, kind: ResourceKind, namespace: str, name: str, uid: str) -> None:
        """Remove an object; another of the same name may exist already."""
        ...

    def keep_only(self, kind: ResourceKind, namespace: str | None, names: set[tuple[str, str]]) -> None:
        """Remove all objects of the kind but these (namespace, name), in a namespace or (None) in all."""
        ...


class Informer:
    """Fills a store with the objects of one kind.

    Args:
        namespace: None for all.
        selector: of labels; other objects are ignored.
        metadata: request only the objects' metadata.
        page: objects per request; limits the memory while a list is read.
    """

    def __init__(
        self,
        api: Api,
        kind: ResourceKind,
        store: InformerStore,
        *,
        namespace: str | None = None,
        selector: str = "",
        metadata: bool = False,
        page: int = 250,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._api, self.kind, self._store = api, kind, store
        self.namespace, self._selector, self._metadata, self._page = namespace, selector, metadata, page
        self._clock = clock
        self._failures = 0
        self.synced = asyncio.Event()
        """Set while the store is in step with the API server: from a list on, until the watch breaks."""
        self.last_message = 0.0
        """Unix time of the API server's last message."""
        self.problem = ""
        """Why the last list or watch was refused for good; empty if it was not."""
        self.lists = 0

    async def run(self) -> None:
        """List and watch forever."""
        version = ""
        while True:
            try:
                if not version:
                    version = await self.list()
                version = await self.watch(version)
                await asyncio.sleep(RECONNECT_SECONDS)
            except OperatorError as error:
                if isinstance(error, Gone) or not isinstance(error, Retry):
                    version = ""
                await self._back_off(error)

    async def _back_off(self, error: OperatorError) -> None:
        """Wait after an error: longer each time until a message arrives, and at least as long as required."""
        self.synced.clear()
        self.problem = error.message if error.status in REFUSALS else ""
        if error.status:
            self.last_message = self._clock()  # an answer: the connection works
        self._failures += 1
        if isinstance(error, Gone) and self._failures == 1:
            return  # usual after an interruption: list at once
        delay = min(LONGEST_DELAY, 0.5 * 2.0 ** min(self._failures - 1, 16)) * (1 + random.random() / 2)
        if isinstance(error, Retry) and error.after is not None:
            delay = max(delay, error.after)
        log.warning(
            "watch broken", kind=self.kind.name, reason=error.reason, message=error.message, seconds=round(delay, 1)
        )
        await asyncio.sleep(delay)

    async def list(self) -> str:
        """Bring the store up to date. Return the version to watch from."""
        names: set[tuple[str, str]] = set()
        token = ""
        while True:
            page = await self._api.list_page(
                self.kind,
                self.namespace,
                selector=self._selector,
                limit=self._page,
                token=token,
                metadata=self._metadata,
            )
            for body in page.get("items") or ():
                self._store.put(self.kind, body)
                names.add((body["metadata"].get("namespace", ""), body["metadata"]["name"]))
            self.last_message = self._clock()
            version, token = str(page["metadata"]["resourceVersion"]), page["metadata"].get("continue") or ""
            del page
            if not token:
                break
            await asyncio.sleep(0)
        self._store.keep_only(self.kind, self.namespace, names)
        self.lists += 1
        self.problem = ""
        self.synced.set()
        return version

    async def watch(self, version: str) -> str:
        """Follow changes until the API server ends the watch. Return the version to continue from.

        Raises:
            Gone: a new list is needed.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "labelSelector": self._selector,
            "timeoutSeconds": round(SERVER_SECONDS * (0.9 + random.random() / 5)),
        }
        accept = METADATA if self._metadata else "application/json"
        progress = _Version(version)
        loop = asyncio.get_running_loop()
        late = loop.call_later(OPENING_SECONDS, self.synced.clear)
        try:
            async with self._api.lines(
                self.kind.path(self.namespace), query, accept=accept, header_seconds=HEADER_SECONDS
            ) as content:
                late.cancel()
                opened = loop.time()
                while True:
                    line = await self._line(content, opened + CATCH_UP_SECONDS)
                    if not line and progress.version == version and loop.time() - opened < SHORTEST_SECONDS:
                        raise Retry(None, "WatchEnded", "the API server ended the watch at once")
                    if not line:
                        return progress.version
                    self.last_message = self._clock()
                    self._store_event(json.loads(line), progress)
        except Retry as error:
            self.synced.clear()
            if isinstance(error, Gone) or progress.version == version:
                raise  # a new list is needed; or no message arrived: a failure, with back-off
            log.info("watch interrupted", kind=self.kind.name, reason=error.reason)
            return progress.version
        finally:
            late.cancel()

    async def _line(self, content: aiohttp.StreamReader, in_step_at: float) -> bytes:
        """Return the next line of the watch. Sets `synced` when none arrives for a moment, or when the time has come.

        Args:
            in_step_at: of the loop's clock.
        """
        async with asyncio.timeout(SILENCE_SECONDS):
            if self.synced.is_set():
                return await content.readline()
            loop = asyncio.get_running_loop()
            quiet = loop.call_at(min(in_step_at, loop.time() + QUIET_SECONDS), self.synced.set)
            try:
                return await content.readline()
            finally:
                quiet.cancel()

    def _store_event(self, event: dict[str, Any], progress: _Version) -> None:
        kind, body = event["type"], event["object"]
        if kind == "ERROR":
            if body.get("code") == 410:
                raise Gone(None, "Expired", str(body.get("message")), status=410)
            raise Retry(
                None,
                str(body.get("reason") or "WatchError"),
                str(body.get("message")),
                status=int(body.get("code") or 0),
            )
        metadata = body["metadata"]
        if kind in ("ADDED", "MODIFIED"):
            self._store.put(self.kind, body)
        elif kind == "DELETED":
            self._store.remove(self.kind, metadata.get("namespace", ""), metadata["name"], metadata.get("uid", ""))
        progress.version = str(metadata["resourceVersion"])
        self._failures = 0


class _Version:
    """The resource version up to which the store is complete."""

    def __init__(self, version: str) -> None:
        self.version = version
