"""Games on a real API server: their objects and status, and no writes once they are settled."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from operators import (
    RunningOperator,
    all_at_rest,
    eventually,
    manifest,
    names,
    operator,
    reconcile_all,
    settled,
)

from swarmgame_operator.api import CONFIG_MAP, DEPLOYMENT, GAME, JOB, KINDS, POD, SECRET, SERVICE, Api, ResourceKind
from swarmgame_operator.libp2p_keys import peer_id_of

EVENT_KIND = ResourceKind("Event", "events.k8s.io/v1", "events")


async def condition(api: Api, namespace: str, name: str, kind: str) -> dict[str, Any]:
    game = await api.get(GAME, namespace, name)
    found = ((game or {}).get("status") or {}).get("conditions") or ()
    return next((each for each in found if each["type"] == kind), {})


async def test_a_game_gets_its_children_and_its_job_gets_pods(api: Api, cluster_config: Path, namespace: str) -> None:
    async with operator(cluster_config, namespace) as running:
        await api.create(GAME, namespace, manifest())

        async def pods() -> bool:
            page = await api.list_page(POD, namespace, selector="swarmgame.dev/role=peer")
            return len(page["items"]) == 2

        await eventually(pods)
        await settled(running)
        assert "sums-peers" in await names(api, JOB, namespace)
        assert {"sums-peers", "sums-bootnode"} <= await names(api, SERVICE, namespace)
        assert {"sums-bootnode"} == await names(api, DEPLOYMENT, namespace)
        secret = await api.get(SECRET, namespace, "sums-peer-keys")
        assert secret is not None
        assert set(secret["data"]) == {"peer-0.key", "peer-1.key"}
        file = await api.get(CONFIG_MAP, namespace, "sums-game")
        assert file is not None
        ids = [peer_id_of(base64.b64decode(secret["data"][f"peer-{index}.key"])) for index in range(2)]
        assert file["data"]["peers"].split() == ids, "the game's own peers count from the start"
        assert (await condition(api, namespace, "sums", "Accepted"))["reason"] == "Valid"
        game = await api.get(GAME, namespace, "sums")
        assert game is not None
        assert game["status"]["bootnode"]["address"].startswith(
            f"/dns4/sums-bootnode.{namespace}.svc/tcp/31000/p2p/16Uiu2HA"
        )
        assert game["status"]["jobName"] == "sums-peers"

        async def reasons_of_events() -> list[str]:
            events = (await api.list_page(EVENT_KIND, namespace))["items"]
            return [each["reason"] for each in events if each["regarding"]["kind"] == "SwarmGame"]

        reasons = await eventually(reasons_of_events)
        assert len(reasons) == len(set(reasons))


async def test_a_settled_game_causes_no_writes_and_neither_does_a_restart(
    api: Api, cluster_config: Path, namespace: str
) -> None:
    async with operator(cluster_config, namespace) as first:
        for name in ("one", "two", "three"):
            await api.create(GAME, namespace, manifest(name))
        await eventually(lambda: len(list(first.cache.games())) == 3)
        await all_at_rest(first, api, namespace, 3)
        before, lists = first.metrics.writes, listed(first)
        assert [await reconcile_all(first) for _ in range(3)] == [3, 3, 3]
        assert first.metrics.writes == before
        assert listed(first) == lists, "events are read only of what does not start"
    async with operator(cluster_config, namespace) as second:
        await second.works()
        await eventually(lambda: len(list(second.cache.games())) == 3)
        assert [await reconcile_all(second) for _ in range(3)] == [3, 3, 3]
        assert second.metrics.writes == 0


def listed(running: RunningOperator) -> float:
    """Return the number of lists that the operator has requested."""
    return float(running.metrics.requests.labels("list", "200")._value.get())


@pytest.mark.parametrize(
    ("kind", "name", "edit"),
    [
        ("Service", "sums-bootnode", {"spec": {"publishNotReadyAddresses": False}}),
        ("Deployment", "sums-bootnode", {"spec": {"replicas": 5}}),
        ("ConfigMap", "sums-game", {"data": {"game.yaml": "{}"}}),
        ("Job", "sums-peers", {"spec": {"parallelism": 3, "completions": 3}}),
        ("Service", "sums-peers", {"metadata": {"labels": {"swarmgame.dev/role": None}}}),
        ("Job", "sums-peers", {"metadata": {"ownerReferences": None}}),
    ],
)
async def test_a_change_by_hand_is_reverted(
    api: Api, cluster_config: Path, namespace: str, kind: str, name: str, edit: dict[str, Any]
) -> None:
    async with operator(cluster_config, namespace) as running:
        await api.create(GAME, namespace, manifest())
        await eventually(lambda: running.cache.version_of((namespace, "sums"), KINDS["Job"], "sums-peers"))
        await settled(running)
        before = await api.get(KINDS[kind], namespace, name)
        assert before is not None
        await merge_as_another_manager(api, KINDS[kind], namespace, name, edit)

        async def restored() -> bool:
            now = await api.get(KINDS[kind], namespace, name)
            assert now is not None
            return all(_part(now, path) == _part(before, path) for path in _paths(edit))

        await eventually(restored)
        await settled(running)


async def test_a_change_while_no_operator_runs_is_reverted_by_the_next(
    api: Api, cluster_config: Path, namespace: str
) -> None:
    async with operator(cluster_config, namespace) as first:
        await api.create(GAME, namespace, manifest())
        await eventually(lambda: first.cache.version_of((namespace, "sums"), JOB, "sums-peers"))
        await settled(first)
    await merge_as_another_manager(api, DEPLOYMENT, namespace, "sums-bootnode", {"spec": {"replicas": 0}})
    await api.delete(SERVICE, namespace, "sums-peers", propagation="Background")
    async with operator(cluster_config, namespace):

        async def restored() -> bool:
            deployment = await api.get(DEPLOYMENT, namespace, "sums-bootnode")
            return (
                deployment is not None
                and deployment["spec"]["replicas"] == 1
                and "sums-peers" in await names(api, SERVICE, namespace)
            )

        await eventually(restored)


async def test_fields_of_other_managers_stay(api: Api, cluster_config: Path, namespace: str) -> None:
    async with operator(cluster_config, namespace) as running:
        await api.create(GAME, namespace, manifest())
        await all_at_rest(running, api, namespace, 1)
        before = running.metrics.writes
        await merge_as_another_manager(
            api, SERVICE, namespace, "sums-peers", {"metadata": {"labels": {"team": "blue"}, "annotations": {"a": "b"}}}
        )
        await reconcile_all(running)
        assert running.metrics.writes == before
        service = await api.get(SERVICE, namespace, "sums-peers")
        assert service is not None
        assert service["metadata"]["labels"]["team"] == "blue"


async def test_suspending_deletes_the_job_and_resuming_creates_it_with_the_same_keys(
    api: Api, cluster_config: Path, namespace: str
) -> None:
    async with operator(cluster_config, namespace) as running:
        await api.create(GAME, namespace, manifest())
        await eventually(lambda: running.cache.version_of((namespace, "sums"), JOB, "sums-peers"))
        await settled(running)
        keys = await api.get(SECRET, namespace, "sums-peer-keys")
        await merge_as_another_manager(api, GAME, namespace, "sums", {"spec": {"suspend": True}})

        async def gone() -> bool:
            return await api.get(JOB, namespace, "sums-peers") is None

        await eventually(gone, 60)

        async def suspended() -> bool:
            return (await condition(api, namespace, "sums", "Suspended")).get("reason") == "SuspendedByUser"

        await eventually(suspended)
        await merge_as_another_manager(api, GAME, namespace, "sums", {"spec": {"suspend": False}})

        async def back() -> bool:
            return await api.get(JOB, namespace, "sums-peers") is not None

        await eventually(back, 60)
        again = await api.get(SECRET, namespace, "sums-peer-keys")
        assert keys is not None
        assert again is not None
        assert again["data"] == keys["data"]


async def test_scaling_moves_the_job_and_never_loses_a_key(api: Api, cluster_config: Path, namespace: str) -> None:
    async with operator(cluster_config, namespace) as running:
        await api.create(GAME, namespace, manifest())
        await eventually(lambda: running.cache.version_of((namespace, "sums"), JOB, "sums-peers"))
        await settled(running)
        first = await api.get(SECRET, namespace, "sums-peer-keys")
        assert first is not None

        for replicas in (4, 1, 3):
            await api.merge(GAME, namespace, "sums", {"spec": {"replicas": replicas}}, subresource="scale")

            async def scaled(replicas: int = replicas) -> bool:
                job = await api.get(JOB, namespace, "sums-peers")
                return job is not None and (job["spec"]["parallelism"], job["spec"]["completions"]) == (
                    replicas,
                    replicas,
                )

            await eventually(scaled)
        last = await api.get(SECRET, namespace, "sums-peer-keys")
        assert last is not None
        assert set(last["data"]) == {f"peer-{index}.key" for index in range(4)}
        assert {name: last["data"][name] for name in first["data"]} == first["data"]
        await api.merge(GAME, namespace, "sums", {"spec": {"replicas": 0}}, subresource="scale")

        async def to_zero() -> bool:
            job = await api.get(JOB, namespace, "sums-peers")
            return (job is None or job["spec"].get("suspend") is True) and (
                await condition(api, namespace, "sums", "Suspended")
            ).get("reason") == "ScaledToZero"

        await eventually(to_zero, 60)


async def test_deleting_a_game_takes_everything_but_what_is_retained(
    api: Api, cluster_config: Path, namespace: str
) -> None:
    async with operator(cluster_config, namespace) as running:
        await api.create(GAME, namespace, manifest("kept"))
        await api.create(GAME, namespace, manifest("gone", identity={"retentionPolicy": "Delete"}))
        await eventually(lambda: len(list(running.cache.games())) == 2)
        await settled(running)
        for name in ("kept", "gone"):
            await api.delete(GAME, namespace, name, propagation="Background")

        async def left() -> list[tuple[str, str]]:
            kinds = [
                KINDS[kind] for kind in ("Job", "Pod", "Service", "Deployment", "ConfigMap", "Secret", "NetworkPolicy")
            ]
            pages = [(kind.name, await api.list_page(kind, namespace, selector="swarmgame.dev/game")) for kind in kinds]
            return sorted((kind, each["metadata"]["name"]) for kind, page in pages for each in page["items"])

        async def only_keys() -> bool:
            return await left() == [("Secret", "kept-bootnode-key"), ("Secret", "kept-peer-keys")]

        try:
            await eventually(only_keys, 60)
        except AssertionError:
            assert await left() == [("Secret", "kept-bootnode-key"), ("Secret", "kept-peer-keys")]


async def test_a_refused_pod_template_is_reported_with_the_servers_message_and_can_be_changed(
    api: Api, cluster_config: Path, namespace: str
) -> None:
    wrong = {**manifest()["spec"]["peers"], "podTemplate": {"spec": {"priority": "high"}}}
    async with operator(cluster_config, namespace):
        await api.create(GAME, namespace, manifest(peers=wrong))

        async def reasons() -> bool:
            found = await condition(api, namespace, "sums", "Accepted")
            return found.get("reason") == "InvalidPodTemplate" and "priority" in found["message"]

        await eventually(reasons)
        assert await api.get(JOB, namespace, "sums-peers") is None
        await merge_as_another_manager(api, GAME, namespace, "sums", {"spec": {"peers": {"podTemplate": None}}})

        async def made() -> bool:
            return await api.get(JOB, namespace, "sums-peers") is not None

        await eventually(made)


async def test_a_missing_secret_is_reported_and_found_once_it_exists(
    api: Api, cluster_config: Path, namespace: str
) -> None:
    async with operator(cluster_config, namespace):
        model = {"uri": "hf://org/name", "secretRef": {"name": "hub"}}
        await api.create(GAME, namespace, manifest(model=model))

        async def reason() -> str:
            return str((await condition(api, namespace, "sums", "Accepted")).get("reason"))

        async def missing() -> bool:
            return await reason() == "SecretNotFound"

        async def valid() -> bool:
            return await reason() == "Valid"

        await eventually(missing)
        await api.create(SECRET, namespace, {"metadata": {"name": "hub"}, "stringData": {"token": "t"}})
        await eventually(valid)


async def merge_as_another_manager(
    api: Api, kind: ResourceKind, namespace: str, name: str, patch: dict[str, Any]
) -> None:
    """Patch as another field manager, as `kubectl edit` does."""
    await api._call(
        "patch",
        "PATCH",
        kind.path(namespace, name),
        query={"fieldManager": "kubectl"},
        body=patch,
        content="application/merge-patch+json",
    )


def _paths(tree: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    return (
        [path]
        if not isinstance(tree, dict)
        else [each for key, below in tree.items() for each in _paths(below, (*path, key))]
    )


def _part(body: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        body = (body or {}).get(key)
    return body
