"""Games that are deleted, or deleted and made again, while the operator cannot see it: nothing of a dead game is
written.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from api_proxy import api_proxy
from api_servers import ApiServer
from operators import eventually, manifest, names, operator, settled

from swarmgame_operator.api import (
    CONFIG_MAP,
    DEPLOYMENT,
    GAME,
    JOB,
    NETWORK_POLICY,
    SECRET,
    SERVICE,
    Api,
    ResourceKind,
    connect,
)

CHILDREN = (JOB, DEPLOYMENT, SERVICE, CONFIG_MAP, NETWORK_POLICY, SECRET)


async def children(api: Api, namespace: str, game: str) -> list[tuple[ResourceKind, dict[str, Any]]]:
    """Return all objects of a game but its pods."""
    selector = f"swarmgame.dev/game={game}"
    pages = [(kind, await api.list_page(kind, namespace, selector=selector)) for kind in CHILDREN]
    return [(kind, each) for kind, page in pages for each in page["items"]]


async def delete_with_children(api: Api, namespace: str, game: str) -> None:
    """Delete a game, then its children as the garbage collector does, and its retained keys."""
    await api.delete(GAME, namespace, game, propagation="Background")
    for kind, each in await children(api, namespace, game):
        await api.delete(kind, namespace, each["metadata"]["name"], propagation="Background")


async def test_after_an_outage_only_what_exists_is_written(
    api: Api, cluster_config: Path, api_server_with_controllers: ApiServer, namespace: str, tmp_path: Path
) -> None:
    every = ("kept", "dead-1", "dead-2", "deleted-keys", "without-job", "again")
    async with api_proxy(api) as proxy, operator(proxy.kubeconfig(tmp_path / "config"), namespace) as running:
        for name in every:
            policy = "Delete" if name == "dead-2" else "Retain"
            await api.create(GAME, namespace, manifest(name, identity={"retentionPolicy": policy}))
        await eventually(lambda: len(list(running.cache.games())) == len(every))

        async def complete() -> bool:
            return await names(api, JOB, namespace) == {f"{name}-peers" for name in every}

        await eventually(complete, 60)
        await settled(running)
        before = {name: uid for name in every for uid in [await uid_of(api, namespace, name)]}
        server = api_server_with_controllers
        away = server.away()
        kubeconfig = await asyncio.to_thread(away.__enter__)
        try:
            proxy.cut()
            await eventually(lambda: not any(each.synced.is_set() for each in running.inner.informers))
            meanwhile = await connect(config_file=str(kubeconfig))
            for name in ("dead-1", "dead-2", "deleted-keys", "again"):
                await delete_with_children(meanwhile, namespace, name)
            await meanwhile.delete(JOB, namespace, "without-job-peers", propagation="Background")
            await meanwhile.create(GAME, namespace, manifest("again"))
            await meanwhile.close()
        finally:
            await asyncio.to_thread(away.__exit__, None, None, None)
        returned = len(proxy.requests)

        async def back() -> bool:
            return await names(api, JOB, namespace) == {f"{name}-peers" for name in ("kept", "without-job", "again")}

        await eventually(back, 90)
        await eventually(lambda: {key[1] for key, _ in running.cache.games()} == {"kept", "without-job", "again"})
        await settled(running)
        assert running.alive
        written = [each for each in proxy.requests[returned:] if each.is_write]
        for name in ("dead-1", "dead-2", "deleted-keys"):
            assert [each.path for each in written if each.names(name)] == []
            assert await children(api, namespace, name) == []
        assert [each.path for each in written if before["again"].encode() in each.body] == []
        now = await uid_of(api, namespace, "again")
        assert now != before["again"]
        for _, child in await children(api, namespace, "again"):
            assert {owner["uid"] for owner in child["metadata"].get("ownerReferences") or ()} <= {now}
        job = await api.get(JOB, namespace, "again-peers")
        assert job is not None
        assert [owner["uid"] for owner in job["metadata"]["ownerReferences"]] == [now]


async def uid_of(api: Api, namespace: str, name: str) -> str:
    game = await api.get(GAME, namespace, name)
    assert game is not None
    return str(game["metadata"]["uid"])


async def test_no_keys_are_made_for_a_game_whose_deletion_no_watch_has_delivered(
    api: Api, cluster_config: Path, namespace: str, tmp_path: Path
) -> None:
    async with api_proxy(api) as proxy, operator(proxy.kubeconfig(tmp_path / "config"), namespace) as running:
        await api.create(GAME, namespace, manifest("g0"))

        async def has_job() -> bool:
            return "g0-peers" in await names(api, JOB, namespace)

        await eventually(has_job)
        await settled(running)
        proxy.frozen = lambda request: request.plural == "swarmgames"
        before = len(proxy.writes)
        await api.delete(GAME, namespace, "g0", propagation="Background")
        for secret in ("g0-bootnode-key", "g0-peer-keys"):
            await api.delete(SECRET, namespace, secret, propagation="Background")
        refused = running.metrics.errors.labels("GameDeleted")
        await eventually(lambda: refused._value.get() >= 2)
        assert [key[1] for key, _ in running.cache.games()] == ["g0"]
        proxy.frozen = lambda request: False
        await eventually(lambda: not list(running.cache.games()))
        # Other children may be made again; they have an owner, and the garbage collector deletes them.
        assert [each.path for each in proxy.writes[before:] if "/secrets" in each.path] == []
        assert await names(api, SECRET, namespace) == set()
