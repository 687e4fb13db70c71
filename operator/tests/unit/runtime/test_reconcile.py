"""The reconciler with an API server in memory: when a status is written, a game whose plan fails, and one whose key
cannot be used.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import itertools
from datetime import UTC, datetime
from typing import Any

import looptime
import pytest
import structlog
from plan_fixtures import DEFAULTS, body

from swarmgame_api.resource import GameResource
from swarmgame_api.status import Condition, PeerCounts, SwarmGameStatus
from swarmgame_operator import reconcile
from swarmgame_operator.api import GAME, SECRET, Api
from swarmgame_operator.attempt import ReconcileMemo
from swarmgame_operator.cache import ClusterCache
from swarmgame_operator.errors import Retry
from swarmgame_operator.events import Events
from swarmgame_operator.plan import Deletion, Plan
from swarmgame_operator.plan.status_changes import COUNTS_SECONDS
from swarmgame_operator.queue import WorkQueue
from swarmgame_operator.reconcile import Reconciler
from swarmgame_operator.status_poller import StatusPoller

NOW = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)
KEY, OTHER = ("lab", "sums"), ("lab", "words")


class Games(Api):
    """An API server that stores the status of games, has Secrets, and takes no other write."""

    def __init__(self, *games: dict[str, Any]) -> None:
        super().__init__(None)
        self.games = {each["metadata"]["name"]: each for each in games}
        self.secrets: dict[str, dict[str, Any]] = {}
        self.patches: list[tuple[float, dict[str, Any]]] = []
        """When each status was written, by the loop's clock, and the patch."""
        self.deletions: list[tuple[float, str]] = []

    async def delete(self, kind: Any, namespace: Any, name: str, *, propagation: str, uid: str = "") -> None:
        self.deletions.append((asyncio.get_running_loop().time(), name))

    async def get(self, kind: Any, namespace: Any, name: str, *, metadata: bool = False) -> dict[str, Any] | None:
        assert kind == SECRET
        return self.secrets.get(name)

    async def merge(self, kind: Any, namespace: Any, name: str, patch: Any, *, subresource: str = "") -> dict[str, Any]:
        assert (kind, subresource) == (GAME, "status")
        self.patches.append((asyncio.get_running_loop().time(), patch["status"]))
        game = self.games[name]
        version = str(int(game["metadata"]["resourceVersion"]) + 1)
        status = merged(game["status"], patch["status"])
        self.games[name] = {**game, "metadata": {**game["metadata"], "resourceVersion": version}, "status": status}
        return copy.deepcopy(self.games[name])


def merged(document: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """Return the document with a merge patch (RFC 7396)."""
    found = dict(document)
    for key, value in patch.items():
        if isinstance(value, dict):
            old = found.get(key)
            value = merged(old if isinstance(old, dict) else {}, value)
        found[key] = value
    return {key: value for key, value in found.items() if value is not None}


def reconciler(*names: str) -> tuple[Reconciler, Games]:
    """Return a reconciler and its API server, with suspended games of these names."""
    bodies = [body({"suspend": True}, name=name, resourceVersion="1") for name in names]
    for number, each in enumerate(bodies):
        each["metadata"]["uid"] = f"u{number}"
    api, cache = Games(*bodies), ClusterCache(changed=lambda key: None)
    for each in bodies:
        cache.put(GAME, each)
        cache.put_game(("lab", each["metadata"]["name"]), each)
    poller = StatusPoller(cache, every=0, changed=lambda key: None)
    return Reconciler(api, cache, poller, DEFAULTS, Events(), version=(1, 36), now=lambda: NOW), api


def degraded(api: Games, name: str) -> dict[str, Any]:
    return next(each for each in api.games[name]["status"]["conditions"] if each["type"] == "Degraded")


async def test_a_plan_that_fails_is_said_by_its_game_logged_once_and_no_matter_of_other_games(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, api = reconciler("sums", "words")

    broken = {"sums"}

    def plan(game: Any, observed: Any, defaults: Any) -> Plan:
        if game.name in broken:
            raise ZeroDivisionError("no rounds")
        return Plan(game.status)

    monkeypatch.setattr(reconcile, "build_plan", plan)
    with structlog.testing.capture_logs() as logged:
        for _ in range(3):
            with pytest.raises(Retry) as error:
                await found.reconcile(KEY)
            assert (error.value.reason, error.value.after) == ("PlanFailed", None), "the queue backs off"
        assert await found.reconcile(OTHER) is None
    condition = degraded(api, "sums")
    assert (condition["status"], condition["reason"]) == ("True", "PlanFailed")
    assert "ZeroDivisionError: no rounds." in condition["message"]
    assert [each["event"] for each in logged if each["log_level"] == "error"] == ["plan failed"]
    with structlog.testing.capture_logs() as logged:
        broken.clear()
        assert await found.reconcile(KEY) is None
        broken.add("sums")
        with pytest.raises(Retry):
            await found.reconcile(KEY)
    assert [each["event"] for each in logged if each["log_level"] == "error"] == ["plan failed"], "it is a new one"


@pytest.mark.parametrize("size", [35, 37])
async def test_a_bootnodes_key_of_another_length_is_said_by_the_game(size: int) -> None:
    found, api = reconciler("sums")
    body = {
        "metadata": {
            "name": "sums-bootnode-key",
            "namespace": "lab",
            "uid": "s",
            "resourceVersion": "5",
            "labels": {"swarmgame.dev/game": "sums", "app.kubernetes.io/managed-by": "swarmgame-operator"},
        },
        "data": {"bootnode.key": base64.b64encode(bytes(size)).decode()},
    }
    api.secrets["sums-bootnode-key"] = body
    found._cache.put(SECRET, body)
    game = api.games["sums"]
    observed = await found._observe(KEY, GameResource.parse(game), ReconcileMemo("u0"))
    assert (observed.bootnode_peer, observed.bootnode_key_unusable) == ("", True)


READY, WAITING = ("True", "PeersReady"), ("False", "WaitingForPeers")


def status(ready: int, state: tuple[str, str] = WAITING, **fields: Any) -> SwarmGameStatus:
    """Return the status of a game with this many ready peers."""
    condition = Condition(
        type="Ready",
        status=state[0],
        reason=state[1],
        message=f"{ready} of 8 peers are ready.",
        observed_generation=1,
        last_transition_time="2026-01-31T12:00:00Z",
    )
    return SwarmGameStatus(
        observed_generation=1, peers=PeerCounts(desired=8, ready=ready), conditions=(condition,), **fields
    )


def written_at(
    monkeypatch: pytest.MonkeyPatch,
    changes: list[tuple[float, Plan]],
    *,
    seconds: float = 10.0,
) -> tuple[Games, list[float]]:
    """Run the operator's queue in virtual time while a game's plan changes at these times. Return the API server, and
    when it was reconciled.
    """
    reconciled: list[float] = []

    async def scenario() -> Games:
        found, api = reconciler("sums")
        now = asyncio.get_running_loop().time
        queue: WorkQueue[tuple[str, str]] = WorkQueue(jitter=lambda: 0.0)

        def plan(game: Any, observed: Any, defaults: Any) -> Plan:
            reconciled.append(now())
            return next(each for when, each in reversed(changes) if when <= now() + 1e-6)

        monkeypatch.setattr(reconcile, "build_plan", plan)
        worker = asyncio.create_task(queue.work(found.reconcile))
        for when, _ in changes:
            asyncio.get_running_loop().call_at(when, queue.add, KEY)
        await asyncio.sleep(seconds)
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
        return api

    loop = looptime.patch_event_loop(asyncio.new_event_loop(), start=0.0)
    try:
        return loop.run_until_complete(scenario()), reconciled
    finally:
        loop.close()


def times(api: Games) -> list[float]:
    return [round(when, 2) for when, _ in api.patches]


def test_counts_that_change_often_are_written_once_a_second_and_all_of_them_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes = [(0.0, Plan(status(0))), *((0.3 * ready, Plan(status(ready))) for ready in range(1, 9))]
    api, _ = written_at(monkeypatch, changes)
    # The first status is new. Ready peers follow from 0.3 to 2.4 s; each is written within a second.
    assert times(api) == [0.0, 1.3, 2.5]
    assert api.games["sums"]["status"]["peers"]["ready"] == 8
    assert api.games["sums"]["status"]["conditions"][0]["message"] == "8 of 8 peers are ready."


@pytest.mark.parametrize("gap", [0.05, 0.4, 0.99, 1.0, 1.5, 3.0])
def test_no_count_is_written_later_than_a_second_and_no_two_within_one(
    monkeypatch: pytest.MonkeyPatch, gap: float
) -> None:
    changes = [(gap * ready, Plan(status(ready))) for ready in range(9)]
    api, _ = written_at(monkeypatch, changes, seconds=60.0)
    written = [(when, patch["peers"]["ready"]) for when, patch in api.patches]
    for when, plan in changes:
        shown = next(at for at, ready in written if ready >= plan.status.peers.ready)
        assert shown <= when + COUNTS_SECONDS + 0.02
    assert all(later - earlier >= COUNTS_SECONDS - 0.02 for (earlier, _), (later, _) in itertools.pairwise(written[1:]))


@pytest.mark.parametrize(
    "after",
    [
        status(3, READY),
        status(3, ("False", "WaitingForBootnode")),
        status(3, start_time="2026-01-31T12:00:00Z"),
        status(3, job_name="sums-peers"),
        status(3).model_copy(update={"observed_generation": 2}),
    ],
    ids=["status", "reason", "start", "new field", "generation"],
)
def test_what_scripts_wait_for_is_written_at_once_with_the_counts_that_waited(
    monkeypatch: pytest.MonkeyPatch, after: SwarmGameStatus
) -> None:
    api, _ = written_at(monkeypatch, [(0.0, Plan(status(1))), (2.0, Plan(status(2))), (2.2, Plan(after))])
    assert times(api) == [0.0, 2.2]
    assert api.games["sums"]["status"]["peers"]["ready"] == 3


def test_counts_that_change_back_are_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    api, reconciled = written_at(
        monkeypatch, [(0.0, Plan(status(2))), (2.0, Plan(status(3))), (2.5, Plan(status(2))), (4.0, Plan(status(3)))]
    )
    assert times(api) == [0.0, 5.0], "the later change waits a second of its own"
    assert len(reconciled) <= 7, "each change, and the end of each wait"


def test_counts_are_written_before_what_was_refused_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[float] = []

    async def refuse(self: Any, *arguments: Any, **options: Any) -> None:
        found.append(asyncio.get_running_loop().time())
        raise Retry(3.0, "TooManyRequests") if len(found) == 1 else Retry(100.0, "TooManyRequests")

    monkeypatch.setattr(Games, "delete", refuse)
    removal = (Deletion("Service", "sums-bootnode"),)
    api, _ = written_at(monkeypatch, [(0.0, Plan(status(1))), (2.0, Plan(status(2), deletions=removal))], seconds=6.0)
    assert [round(each, 2) for each in found] == [2.0, 5.0]
    assert times(api) == [0.0, 2.0]


def test_the_status_is_written_before_the_peers_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    removal = (Deletion("Job", "sums-peers"),)
    api, _ = written_at(monkeypatch, [(0.0, Plan(status(1))), (2.0, Plan(status(2), deletions=removal))])
    assert times(api) == [0.0, 2.0]
    assert api.deletions[0] == (2.0, "sums-peers")
