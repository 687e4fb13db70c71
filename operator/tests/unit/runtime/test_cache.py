"""The cache: which changes are reported, older states, and deleted objects."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import kopf
import pytest
import structlog

from swarmgame_operator import handlers
from swarmgame_operator.api import CONFIG_MAP, GAME, JOB, POD, SECRET, Api, ResourceKind
from swarmgame_operator.cache import ClusterCache, Key
from swarmgame_operator.metrics import OperatorMetrics
from swarmgame_operator.operator import Operator
from swarmgame_operator.settings import OperatorSettings

KEY = ("n", "g")
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def body(
    name: str = "x", version: int = 1, *, uid: str = "u", game: str | None = "g", fields: Any = None, **rest: Any
) -> dict[str, Any]:
    managed = [{"manager": "swarmgame-operator", "operation": "Apply", "fieldsV1": fields or {"f:data": {"f:a": {}}}}]
    return {
        "metadata": {
            "name": name,
            "namespace": "n",
            "uid": uid,
            "resourceVersion": str(version),
            "labels": {"swarmgame.dev/game": game} if game else {},
            "annotations": {"swarmgame.dev/intent-hash": "h"},
            "ownerReferences": [{"uid": "game-uid"}],
            "managedFields": managed,
        },
        **rest,
    }


@pytest.fixture
def changes() -> list[Key]:
    return []


@pytest.fixture
def cache(changes: list[Key]) -> ClusterCache:
    return ClusterCache(changed=changes.append)


def test_only_changes_that_a_plan_may_depend_on_are_reported(cache: ClusterCache, changes: list[Key]) -> None:
    cache.put(POD, body(status={"phase": "Pending"}))
    cache.put(POD, body(version=2, status={"phase": "Pending", "qosClass": "Burstable"}))
    assert changes == [KEY]
    cache.put(POD, body(version=3, status={"phase": "Running"}))
    assert changes == [KEY, KEY]


def test_an_object_that_cannot_be_read_is_skipped_counted_and_logged_once(
    cache: ClusterCache, changes: list[Key]
) -> None:
    cache.put(JOB, body(spec={"parallelism": 4}))
    broken = body(version=2)
    broken["metadata"]["ownerReferences"] = ["game"]
    other = {**broken, "metadata": {**broken["metadata"], "name": "y"}}
    with structlog.testing.capture_logs() as logged:
        for each in (broken, other, broken, other):
            cache.put(JOB, each)
    assert [(each["event"], each["name"]) for each in logged] == [("object skipped", "x"), ("object skipped", "y")]
    assert list(cache.unreadable) == [("Job", "n", "x"), ("Job", "n", "y")]
    assert cache.version_of(KEY, JOB, "x") == "u/1", "what was known of it stays"
    assert cache.version_of(KEY, JOB, "y") == ""
    cache.put(JOB, body(version=3))
    cache.keep_only(JOB, None, {("n", "x")})
    assert cache.unreadable == {}


def test_a_job_that_another_object_controls_is_not_the_games(cache: ClusterCache, changes: list[Key]) -> None:
    cache.put(JOB, body("g-peers", spec={"parallelism": 4}))
    assert cache.snapshot(KEY, NOW).job is not None
    theirs = body("g-peers", version=2, spec={"parallelism": 4})
    theirs["metadata"]["ownerReferences"] += [{"kind": "CronJob", "name": "c", "uid": "cu", "controller": True}]
    cache.put(JOB, theirs)
    assert len(changes) == 2
    snapshot = cache.snapshot(KEY, NOW)
    assert snapshot.job is None
    facts = snapshot.children["Job", "g-peers"]
    assert (facts.controller, facts.uid) == ("CronJob c", "u")


def test_an_own_write_is_not_reported_and_neither_is_its_watch_event(cache: ClusterCache, changes: list[Key]) -> None:
    cache.put(CONFIG_MAP, body(version=5), own_write=True)
    cache.put(CONFIG_MAP, body(version=5))
    assert changes == []
    assert ("ConfigMap", "x") in cache.snapshot(KEY, NOW).children


def test_an_older_state_does_not_replace_a_newer_one(cache: ClusterCache) -> None:
    cache.put(JOB, body(version=10, spec={"parallelism": 4}))
    cache.put(JOB, body(version=9, spec={"parallelism": 2}))
    assert cache.version_of(KEY, JOB, "x") == "u/10"


def test_the_deletion_of_an_object_does_not_remove_its_successor(cache: ClusterCache) -> None:
    cache.put(JOB, body(version=10, uid="new"))
    cache.remove(JOB, "n", "x", "old")
    assert cache.version_of(KEY, JOB, "x") == "new/10"
    cache.remove(JOB, "n", "x", "new")
    assert cache.version_of(KEY, JOB, "x") == ""


def test_an_object_that_moves_to_another_game_leaves_the_first(cache: ClusterCache, changes: list[Key]) -> None:
    cache.put(CONFIG_MAP, body())
    cache.put(CONFIG_MAP, body(version=2, game="other"))
    assert not cache.snapshot(KEY, NOW).children
    assert cache.snapshot(("n", "other"), NOW).children
    assert changes == [KEY, KEY, ("n", "other")]


def test_a_list_removes_what_it_lacks_in_its_namespace_only(cache: ClusterCache) -> None:
    cache.put(POD, body("a"))
    cache.put(POD, body("b"))
    cache.put(JOB, body("a"))
    cache.keep_only(POD, "elsewhere", set())
    assert len(cache.snapshot(KEY, NOW).pods) == 2
    cache.keep_only(POD, "n", {("n", "b")})
    assert [pod.name for pod in cache.snapshot(KEY, NOW).pods] == ["b"]
    assert cache.version_of(KEY, JOB, "a")


def test_drift_is_unknown_until_the_first_comparison_and_again_after_a_change(cache: ClusterCache) -> None:
    manifest = {
        "kind": "ConfigMap",
        "metadata": {"name": "x", "ownerReferences": [{"uid": "game-uid"}]},
        "data": {"a": "1"},
    }
    cache.put(CONFIG_MAP, body())
    assert cache.drift_unknown(KEY) == {("ConfigMap", "x")}
    assert cache.snapshot(KEY, NOW).children["ConfigMap", "x"].drift_unknown
    assert cache.detect_drift(KEY, manifest) == ()
    cache.put(CONFIG_MAP, body(version=2))
    child = cache.snapshot(KEY, NOW).children["ConfigMap", "x"]
    assert (child.drift_unknown, child.owners, child.intent_hash) == (False, ("game-uid",), "h")
    cache.put(CONFIG_MAP, body(version=3, fields={"f:data": {"f:b": {}}}))
    assert cache.snapshot(KEY, NOW).children["ConfigMap", "x"].drift_unknown
    assert cache.detect_drift(KEY, manifest) == ("data.a",)


def test_only_the_names_of_a_secrets_keys_are_kept(cache: ClusterCache) -> None:
    cache.put(SECRET, body("s", fields={"f:data": {"f:peer-0.key": {}}}))
    assert cache.snapshot(KEY, NOW).secrets == {"s": frozenset({"peer-0.key"})}


def test_a_game_is_cached_without_managed_fields(cache: ClusterCache, changes: list[Key]) -> None:
    game = body("g", game=None, spec={"a": 1})
    cache.put(GAME, game)
    changes.clear()
    cache.put_game(KEY, game)
    cache.put_game(KEY, game)
    record = cache.game(KEY)
    assert record is not None
    assert b"managedFields" not in record.raw_json
    assert record.body["spec"] == {"a": 1}
    assert changes == [KEY]


@pytest.mark.parametrize("existence_first", [True, False])
def test_a_game_counts_when_its_watch_and_the_informer_agree_on_its_uid(
    cache: ClusterCache, changes: list[Key], existence_first: bool
) -> None:
    def exists() -> None:
        cache.put(GAME, body("g", game=None, uid="new"))

    def delivered() -> None:
        cache.put_game(KEY, body("g", game=None, uid="new"))

    cache.put_game(KEY, body("g", game=None, uid="old"))
    for step in [exists, delivered] if existence_first else [delivered, exists]:
        assert cache.game(KEY) is None
        assert not list(cache.games())
        step()
    record = cache.game(KEY)
    assert record is not None
    assert record.uid == "new"
    assert changes[-1] == KEY


def test_a_game_whose_deletion_was_missed_is_removed_by_the_informers_list(
    cache: ClusterCache, changes: list[Key]
) -> None:
    cache.put(GAME, body("g", game=None))
    cache.put_game(KEY, body("g", game=None))
    changes.clear()
    cache.keep_only(GAME, None, set())
    assert cache.game(KEY) is None
    assert changes == [KEY]


def test_a_game_that_was_made_again_survives_the_late_deletion_of_its_predecessor(cache: ClusterCache) -> None:
    cache.put(GAME, body("g", game=None, uid="old"))
    cache.put_game(KEY, body("g", game=None, uid="old"))
    cache.put_game(KEY, body("g", game=None, uid="new", version=7))  # its watch is ahead of the informer
    cache.remove(GAME, "n", "g", "old")
    cache.forget_game(KEY, "old")
    cache.put(GAME, body("g", game=None, uid="new", version=7))
    record = cache.game(KEY)
    assert record is not None
    assert record.uid == "new"
    assert cache.undelivered_seconds() == 0


def test_the_late_answer_to_a_status_write_does_not_bring_a_deleted_game_back(cache: ClusterCache) -> None:
    cache.put(GAME, body("g", game=None))
    cache.put_game(KEY, body("g", game=None))
    cache.remove(GAME, "n", "g", "u")
    cache.put_game(KEY, body("g", game=None, version=9), own_write=True)
    assert not cache._games


@pytest.mark.parametrize("change", [{"spec": {"a": 2}}, {"labels": {"x": "y"}}])
def test_what_a_user_has_changed_before_a_status_write_is_seen_in_its_answer(
    cache: ClusterCache, changes: list[Key], change: dict[str, Any]
) -> None:
    def game(version: int, changed: dict[str, Any]) -> dict[str, Any]:
        made = body("g", game=None, version=version, spec=changed.get("spec", {"a": 1}))
        made["metadata"]["labels"] = changed.get("labels", {})
        return made

    cache.put(GAME, game(1, {}))
    cache.put_game(KEY, game(1, {}))
    changes.clear()
    cache.put_game(KEY, {**game(2, {}), "status": {"round": 1}}, own_write=True)
    assert changes == []  # nothing but our own write
    answer = {**game(4, change), "status": {"round": 2}}
    cache.put_game(KEY, answer, own_write=True)
    assert changes == [KEY]
    cache.put_game(KEY, game(3, change))  # the events of both are older, or known
    cache.put_game(KEY, answer)
    assert changes == [KEY]


def test_what_a_controller_has_done_before_a_write_is_seen_in_its_answer(
    cache: ClusterCache, changes: list[Key]
) -> None:
    cache.put(JOB, body("j", version=1, status={}))
    changes.clear()
    cache.put(JOB, body("j", version=2, status={}), own_write=True)
    assert changes == []
    cache.put(JOB, body("j", version=4, status={"active": 2, "ready": 2}), own_write=True)
    assert changes == [KEY]


def test_a_game_that_kopf_does_not_deliver_is_noticed_from_the_time_it_exists() -> None:
    now = 100.0
    cache = ClusterCache(changed=lambda key: None, clock=lambda: now)
    assert cache.undelivered_seconds() == 0
    cache.put(GAME, body("g", game=None))
    cache.put(GAME, body("other", game=None))
    cache.put_game(("n", "other"), body("other", game=None))
    now = 170.0
    assert cache.undelivered_seconds() == 70
    cache.put_game(KEY, body("g", game=None))
    assert cache.undelivered_seconds() == 0
    cache.put(GAME, body("g", game=None, uid="made again"))
    now = 175.0
    assert cache.undelivered_seconds() == 5
    cache.remove(GAME, "n", "g", "made again")
    assert cache.undelivered_seconds() == 0


def test_a_watch_that_delivers_other_games_is_not_silent() -> None:
    now = 100.0
    cache = ClusterCache(changed=lambda key: None, clock=lambda: now)
    assert cache.silent_seconds() == 0
    cache.put(GAME, body("g", game=None))
    now = 170.0
    assert cache.silent_seconds() == 70
    cache.put_game(("n", "other"), body("other", game=None))
    now = 190.0
    assert (cache.undelivered_seconds(), cache.silent_seconds()) == (90, 20)
    cache.put_game(KEY, body("g", game=None))
    assert cache.silent_seconds() == 0


async def test_liveness_fails_when_work_or_watches_are_too_old(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running = Operator(OperatorSettings(stale_seconds=10), Api(None), OperatorMetrics("1"))
    assert running.liveness_problem() == ""
    assert running.readiness_problem().startswith("not in step, so nothing is written: ConfigMap")
    for informer in running.informers:
        informer.synced.set()
        informer.last_message = running._started
    assert running.readiness_problem() == ""
    running._started -= 100
    for informer in running.informers:
        informer.last_message -= 100 if informer.kind is POD else 0
    assert running.liveness_problem() == "watch stalled for 90 s: Pod", "a quiet watch has a message every minute"
    for informer in running.informers:
        informer.last_message += 100
    assert running.liveness_problem() == ""
    running.cache.clock = lambda: 100.0
    running.cache.put(GAME, body("never delivered", game=None))
    running.cache.clock = lambda: 101.0
    assert running.readiness_problem() == "a game was not delivered by its watch for 1 s"
    running.cache.clock = lambda: 161.0
    assert running.liveness_problem().startswith("a game was not delivered by its watch for 61 s")
    running.informers[0].synced.clear()
    assert running.liveness_problem() == ""  # the API server is away, and a restart would not help
    running.informers[0].synced.set()
    running.cache.remove(GAME, "n", "never delivered", "")
    running.working.set()
    loop = asyncio.get_running_loop()
    now = loop.time()
    monkeypatch.setattr(loop, "time", lambda: now)
    running.queue.add(KEY)
    monkeypatch.setattr(loop, "time", lambda: now + 60)
    assert running.liveness_problem().startswith("the oldest work has waited 60 s")
    with pytest.raises(kopf.PermanentError, match="the oldest work has waited 60 s"):  # kopf answers with 500
        await handlers.alive(memo=kopf.Memo(operator=running))
    monkeypatch.undo()
    running.working.clear()
    assert await handlers.alive(memo=kopf.Memo(operator=running)) == "ok"


def child_of(uid: str, kind: ResourceKind, name: str, **rest: Any) -> dict[str, Any]:
    made = body(name, uid=f"{kind.name} of {uid}", **rest)
    made["metadata"]["ownerReferences"] = [{"kind": "SwarmGame", "name": "g", "uid": uid, "controller": True}]
    made["metadata"]["creationTimestamp"] = "2026-01-31T10:00:00Z" if uid == "old" else "2026-01-31T12:00:00Z"
    return made


def pod_of(name: str, created: str) -> dict[str, Any]:
    made = body(name, uid=name, status={"phase": "Running", "podIP": "192.0.2.1"})
    made["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
    made["metadata"]["labels"]["swarmgame.dev/role"] = "peer"
    made["metadata"]["creationTimestamp"] = created
    return made


def test_a_game_made_again_at_once_sees_nothing_of_what_its_predecessor_leaves(cache: ClusterCache) -> None:
    game = body("g", game=None, uid="new")
    game["metadata"]["creationTimestamp"] = "2026-01-31T11:00:00Z"
    cache.put(GAME, game)
    cache.put_game(KEY, game)
    cache.put(JOB, child_of("old", JOB, "g-peers"))
    cache.put(SECRET, child_of("old", SECRET, "g-peer-keys", fields={"f:data": {"f:peer-0.key": {}}}))
    cache.put(POD, pod_of("g-peers-0-a", "2026-01-31T10:00:01Z"))
    seen = cache.snapshot(KEY, NOW)
    assert (seen.job, seen.pods, seen.secrets) == (None, (), {})
    assert {place: each.deleting for place, each in seen.children.items()} == {
        ("Job", "g-peers"): True,
        ("Secret", "g-peer-keys"): True,
    }
    assert not cache.can_be_polled(KEY)
    assert cache.pods(KEY, "peer") == []
    cache.remove(JOB, "n", "g-peers", "")
    assert cache.snapshot(KEY, NOW).pods == (), "pods go after their Job"
    cache.put(JOB, child_of("new", JOB, "g-peers"))
    cache.put(POD, pod_of("g-peers-0-b", "2026-01-31T12:00:01Z"))
    seen = cache.snapshot(KEY, NOW)
    assert seen.job is not None
    assert [pod.name for pod in seen.pods] == ["g-peers-0-b"]
    assert not seen.children["Job", "g-peers"].deleting
    assert cache.can_be_polled(KEY)


def test_a_game_made_again_keeps_the_objects_that_were_orphaned_for_it(cache: ClusterCache) -> None:
    game = body("g", game=None, uid="new")
    game["metadata"]["creationTimestamp"] = "2026-01-31T11:00:00Z"
    cache.put(GAME, game)
    cache.put_game(KEY, game)
    orphan = child_of("old", JOB, "g-peers")
    del orphan["metadata"]["ownerReferences"]
    cache.put(JOB, orphan)
    cache.put(POD, pod_of("g-peers-0-a", "2026-01-31T10:00:01Z"))
    seen = cache.snapshot(KEY, NOW)
    assert seen.job is not None
    assert [pod.name for pod in seen.pods] == ["g-peers-0-a"]


async def test_workers_start_when_the_only_watched_scope_is_refused_so_that_games_say_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("swarmgame_operator.operator.IN_STEP_SECONDS", 0.0)
    running = Operator(OperatorSettings(), Api(None), OperatorMetrics("1"))
    waiting = asyncio.create_task(running._any_in_step())
    for _turn in range(20):
        await asyncio.sleep(0)
    assert not waiting.done(), "a list that takes long is no refusal"
    running.informers[2].problem = 'jobs.batch is forbidden: User "x" cannot list resource "jobs"'
    for _turn in range(20):
        await asyncio.sleep(0)
    refused = waiting.done()
    waiting.cancel()
    assert refused
    assert running._problem("n") == ("Job", running.informers[2].problem)
    assert running.readiness_problem(), "nothing is written but the condition"
