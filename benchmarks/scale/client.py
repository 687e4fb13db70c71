"""The users: they apply games at a fixed pace, and a watch records when each game's Job or pods appear.

Times are this process's monotonic clock, from the apply's answer to the watch's event, so that the watch's delay
counts against the operator. Invariant: the pace does not depend on the answers (open loop).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kubernetes.aio import client as kubernetes_client
from kubernetes.aio import config as kubernetes_config

from scale.cluster import NAMESPACES
from swarmgame_operator.api import GAME, JOB, METADATA, POD, Api, ResourceKind

Key = tuple[str, str]
GAME_LABEL = "swarmgame.dev/game"
ROLE_LABEL = "swarmgame.dev/role"


def manifest(key: Key, peers: int) -> dict[str, Any]:
    """Return a small game. A round may take an hour, so that no game is stalled during the measurement."""
    spec = {
        "game": {
            "maxRounds": 10,
            "data": {"use": "reasoning-gym", "with": {"environments": [{"name": "chain_sum"}], "questionsPerRound": 2}},
            "rewards": {"use": "reasoning-gym"},
            "trainer": {"use": "grpo"},
            "progression": {"stageDeadlineSeconds": 3600},
        },
        "model": {"uri": "builtin://tiny"},
        "peers": {"replicas": peers, "image": "localhost/worker:none"},
    }
    return {"apiVersion": GAME.api, "kind": GAME.name, "metadata": {"name": key[1], "namespace": key[0]}, "spec": spec}


def keys(first: int, last: int, prefix: str = "game") -> list[Key]:
    """Return names of games, spread over the namespaces."""
    return [(NAMESPACES[number % len(NAMESPACES)], f"{prefix}-{number:05}") for number in range(first, last)]


@dataclass
class Arrivals:
    """The times at which each game's objects appeared, in order."""

    times: dict[Key, list[float]] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def until(self, games: Sequence[Key], count: int, seconds: float) -> None:
        """Wait until each of these games has this many."""
        async with asyncio.timeout(seconds):
            while any(len(self.times.get(key, ())) < count for key in games):
                self.changed.clear()
                await self.changed.wait()


class Client:
    """An administrator's connection."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.api = Api(connection)
        self._games = kubernetes_client.CustomObjectsApi(connection)

    async def create(self, body: dict[str, Any]) -> None:
        """Makes a cluster-wide object of a few kinds."""
        group, _, version = body["apiVersion"].rpartition("/")
        plural = {"MutatingAdmissionPolicy": "mutatingadmissionpolicies"}.get(body["kind"], f"{body['kind'].lower()}s")
        await self.api.create(
            ResourceKind(body["kind"], f"{group}/{version}" if group else version, plural), None, body
        )

    async def apply(self, key: Key, peers: int) -> float:
        """Makes a game; the time of the answer."""
        group, version = GAME.api.split("/")
        await self._games.create_namespaced_custom_object(
            group, version, key[0], GAME.plural, manifest(key, peers), field_manager="kubectl"
        )
        return time.monotonic()

    async def not_ready(self) -> int:
        """Return the number of games that are not Ready at their present generation."""
        token, missing = "", 0
        while True:
            page = await self.api.list_page(GAME, None, limit=250, token=token)
            missing += sum(not _ready(game) for game in page["items"])
            token = page["metadata"].get("continue") or ""
            if not token:
                return missing

    async def count(self, kind: ResourceKind) -> int:
        page = await self.api.list_page(kind, None, limit=1, metadata=True)
        return len(page["items"]) + int(page["metadata"].get("remainingItemCount") or 0)


def _ready(game: dict[str, Any]) -> bool:
    status = game.get("status") or {}
    conditions = {each["type"]: each["status"] for each in status.get("conditions") or ()}
    return conditions.get("Ready") == "True" and status.get("observedGeneration") == game["metadata"]["generation"]


@asynccontextmanager
async def connected(kubeconfig: Path) -> AsyncIterator[Client]:
    configuration = kubernetes_client.Configuration()
    await kubernetes_config.load_kube_config(config_file=str(kubeconfig), client_configuration=configuration)
    connection = kubernetes_client.ApiClient(configuration=configuration)
    try:
        yield Client(connection)
    finally:
        await connection.close()


@asynccontextmanager
async def arrivals(client: Client, kind: ResourceKind) -> AsyncIterator[Arrivals]:
    """Watch the creation of peers' Jobs or pods while the block runs."""
    assert kind in (JOB, POD)
    page = await client.api.list_page(kind, None, limit=1, metadata=True)
    found = Arrivals()
    task = asyncio.create_task(_watch(client, kind, page["metadata"]["resourceVersion"], found))
    try:
        yield found
        if task.done():
            task.result()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _watch(client: Client, kind: ResourceKind, version: str, found: Arrivals) -> None:
    query = {"watch": "true", "resourceVersion": version, "labelSelector": f"{ROLE_LABEL}=peer", "timeoutSeconds": 3600}
    async with client.api.lines(kind.path(None), query, accept=METADATA) as content:
        while line := await content.readline():
            when, event = time.monotonic(), json.loads(line)
            if event["type"] == "ERROR":
                raise SystemExit(f"the watch of {kind.plural} ended: {event['object'].get('message')}")
            if event["type"] == "ADDED":
                metadata = event["object"]["metadata"]
                found.times.setdefault((metadata["namespace"], metadata["labels"][GAME_LABEL]), []).append(when)
                found.changed.set()
    raise SystemExit(f"the watch of {kind.plural} ended")


async def apply_at(
    client: Client, games: Sequence[Key], *, peers: int, a_second: float
) -> tuple[dict[Key, float], dict[Key, float]]:
    """Apply games at a pace; return when each was due, and when it was answered."""
    begin = asyncio.get_running_loop().time()
    due = {key: begin + number / a_second for number, key in enumerate(games)}

    async def one(key: Key) -> tuple[Key, float]:
        await asyncio.sleep(due[key] - asyncio.get_running_loop().time())
        return key, await client.apply(key, peers)

    return due, dict(await asyncio.gather(*(one(key) for key in games)))
