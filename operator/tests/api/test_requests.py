"""Requests of an operator, as the API server receives them: no write without a reason, no Secret's value, nothing of
kopf's in the objects.
"""

from __future__ import annotations

import json
from pathlib import Path

from api_proxy import Request, api_proxy
from operators import all_at_rest, eventually, manifest, operator, reconcile_all, settled

from swarmgame_operator.api import GAME, JOB, SECRET, Api


def watches(request: Request) -> bool:
    return request.is_watch


async def test_a_cold_start_with_settled_games_writes_nothing_and_neither_does_the_renewal_of_every_watch(
    api: Api, cluster_config: Path, namespace: str, tmp_path: Path
) -> None:
    async with operator(cluster_config, namespace) as first:
        for name in ("one", "two", "three"):
            await api.create(GAME, namespace, manifest(name))
        await eventually(lambda: len(list(first.cache.games())) == 3)
        await all_at_rest(first, api, namespace, 3)
    async with api_proxy(api) as proxy, operator(proxy.kubeconfig(tmp_path / "config"), namespace) as second:
        await second.works()
        await eventually(lambda: len(list(second.cache.games())) == 3)
        assert await reconcile_all(second) == 3
        assert await reconcile_all(second) == 3
        # An idle operator only opens its watches again when they end.
        before = proxy.count(watches)
        proxy.cut(watches)
        await eventually(lambda: proxy.count(watches) >= 2 * before)
        await eventually(lambda: not second.inner.readiness_problem())
        assert await reconcile_all(second) == 3
        written = [request for request in proxy.requests if request.method != "GET"]
        assert [(each.method, each.path) for each in written] == []
        assert proxy.count(lambda request: request.by_kopf) > 0


async def test_a_game_carries_neither_annotation_nor_finalizer_of_kopf_and_its_events_are_posted_once(
    api: Api, cluster_config: Path, namespace: str, tmp_path: Path
) -> None:
    async with api_proxy(api) as proxy, operator(proxy.kubeconfig(tmp_path / "config"), namespace) as running:
        made = await api.create(GAME, namespace, manifest())
        await eventually(lambda: running.cache.version_of((namespace, "sums"), JOB, "sums-peers"))
        await settled(running)
        game = await api.get(GAME, namespace, "sums")
        assert game is not None
        assert game["metadata"]["uid"] == made["metadata"]["uid"]
        assert "annotations" not in game["metadata"]
        assert "finalizers" not in game["metadata"]
        assert "kopf" not in json.dumps(game)
        to_game = {
            (request.method, request.path.rpartition("/")[2])
            for request in proxy.writes
            if "/swarmgames/" in request.path
        }
        assert to_game == {("PATCH", "status")}

        def posted() -> list[tuple[str, str]]:
            events = [
                json.loads(request.body)
                for request in proxy.requests
                if request.method == "POST" and request.path.endswith("/events")
            ]
            assert all(event["involvedObject"]["uid"] == made["metadata"]["uid"] for event in events)
            return [(event["reason"], event["message"]) for event in events]

        async def stored() -> list[tuple[str, str]]:
            events = await api._call("list", "GET", f"/api/v1/namespaces/{namespace}/events")
            of_game = [each for each in events["items"] if each["involvedObject"]["kind"] == "SwarmGame"]
            return [(each["reason"], each["message"]) for each in of_game]

        await reconcile_all(running)
        published = running.inner.events._published  # kopf posts them one after another, in the background

        async def all_stored() -> bool:
            return 0 < len(published) == len(await stored())

        await eventually(all_stored)
    assert len(posted()) == len(set(posted()))
    assert sorted(await stored()) == sorted(posted())


async def test_no_list_and_no_watch_brings_the_value_of_a_secret(
    api: Api, cluster_config: Path, namespace: str, tmp_path: Path
) -> None:
    async with api_proxy(api) as proxy:
        proxy.kept = lambda request: request.plural == "secrets"
        async with operator(proxy.kubeconfig(tmp_path / "config"), namespace) as running:
            await api.create(GAME, namespace, manifest())
            await eventually(lambda: running.cache.version_of((namespace, "sums"), JOB, "sums-peers"))
            await settled(running)
            # Delivered by a watch: made, changed; and after a break by a list.
            await api.merge(SECRET, namespace, "sums-peer-keys", {"metadata": {"annotations": {"a": "b"}}})
            await eventually(lambda: b'"a":"b"' in b"".join(part for _, part in proxy.answers))
        async with operator(proxy.kubeconfig(tmp_path / "config"), namespace) as running:
            await settled(running)
        of_secrets = [request for request in proxy.requests if request.plural == "secrets"]
        assert {request.is_watch for request in of_secrets} == {True, False}
        assert not any(request.by_kopf for request in of_secrets)
        for request in of_secrets:
            kind = "PartialObjectMetadata" if request.is_watch else "PartialObjectMetadataList"
            assert f"as={kind};g=meta.k8s.io;v=v1" in request.headers["Accept"].split(",")[0]
        delivered = b"".join(part for _, part in proxy.answers)
        assert b"sums-peer-keys" in delivered
        assert b'"data"' not in delivered
        secret = await api.get(SECRET, namespace, "sums-peer-keys")
        assert secret is not None
        assert not any(value.encode() in delivered for value in secret["data"].values())
