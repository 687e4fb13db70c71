"""An informer: keeps a store equal to what the API server has of one kind, for ever.

It lists in pages, then watches, and lists again when the watch is too old. It knows nothing of what the objects mean.
Invariant: after every list, what the list does not have is taken from the store, so that nothing that was deleted while
we were deaf stays in it.

Why not kopf's indices: see docs/decisions/0020-informer-instead-of-kopf.md. Source: k8s.io/client-go/tools/cache, Reflector.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable
from typing import Any, Protocol

from swarmgame_operator.api import METADATA, Api, Kind
from swarmgame_operator.errors import Gone, OperatorError, Retry
from swarmgame_operator.logs import log

SERVER_SECONDS = 300
"""How long the API server keeps a watch open."""
SILENCE_SECONDS = 75.0
"""A watch that says nothing for this long is dead: bookmarks come every minute."""
LONGEST_DELAY = 30.0
RECONNECT_SECONDS = 0.1


class Store(Protocol):
    """What an informer feeds."""

    def put(self, kind: Kind, body: dict[str, Any]) -> None:
        """There is this object, in this state."""
        ...

    def remove(self, kind: Kind, namespace: str, name: str, uid: str) -> None:
        """This object is gone; another of the same name may be there already."""
        ...

    def keep_only(self, kind: Kind, namespace: str | None, names: set[tuple[str, str]]) -> None:
        """These (namespace, name) are all there are of the kind, in a namespace or (None) everywhere."""
        ...


class Informer:
    """Feeds a store with one kind.

    Args:
        namespace: None for all.
        selector: of labels; objects that do not match do not exist for us.
        metadata: ask for metadata alone; nothing else of the objects ever reaches this process.
        page: objects a request; bounds what is in memory while a list is read.
    """

    def __init__(
        self,
        api: Api,
        kind: Kind,
        store: Store,
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
        self.heard = 0.0
        """When the API server last said anything, in Unix seconds."""
        self.lists = 0

    async def run(self) -> None:
        """Never returns."""
        version = ""
        while True:
            try:
                if not version:
                    version = await self.list()
                version = await self.watch(version)
                await asyncio.sleep(RECONNECT_SECONDS)
            except Gone:
                version = ""
            except OperatorError as error:
                if not isinstance(error, Retry):
                    version = ""
                delay = min(LONGEST_DELAY, 0.5 * 2.0 ** min(self._failures, 16)) * (1 + random.random() / 2)
                self._failures += 1
                log.warning(
                    "watch broken",
                    kind=self.kind.name,
                    reason=error.reason,
                    message=error.message,
                    seconds=round(delay, 1),
                )
                await asyncio.sleep(delay)

    async def list(self) -> str:
        """Brings the store up to date; returns the version to watch from."""
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
            self.heard = self._clock()
            version, token = str(page["metadata"]["resourceVersion"]), page["metadata"].get("continue") or ""
            del page
            if not token:
                break
            await asyncio.sleep(0)
        self._store.keep_only(self.kind, self.namespace, names)
        self.lists += 1
        self.synced.set()
        return version

    async def watch(self, version: str) -> str:
        """Follows changes until the API server ends the watch; returns the version to go on from.

        Raises:
            Gone: list again.
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
        try:
            async with self._api.lines(self.kind.path(self.namespace), query, accept=accept) as content:
                while True:
                    async with asyncio.timeout(SILENCE_SECONDS):
                        line = await content.readline()
                    if not line:
                        return progress.version
                    self.heard = self._clock()
                    self._failures = 0
                    self._take(json.loads(line), progress)
        except Gone:
            raise
        except Retry as error:
            if progress.version == version:
                raise  # nothing came of it: count it as a failure
            log.info("watch interrupted", kind=self.kind.name, reason=error.reason)
            return progress.version

    def _take(self, event: dict[str, Any], progress: _Version) -> None:
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


class _Version:
    """The resource version up to which the store is complete."""

    def __init__(self, version: str) -> None:
        self.version = version
