"""A namespace that is deleted while a game runs in it is not blocked."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from operators import eventually, manifest, operator, settled

from swarmgame_operator.api import GAME, POD, Api, ResourceKind
from swarmgame_operator.errors import NotFound

NAMESPACE = ResourceKind("Namespace", "v1", "namespaces")


async def test_a_failed_peer_does_not_keep_its_namespace(api: Api, cluster_config: Path, namespace: str) -> None:
    async with operator(cluster_config, namespace) as running:
        await api.create(GAME, namespace, manifest())

        async def pods() -> list[str]:
            page = await api.list_page(POD, namespace, selector="swarmgame.dev/role=peer")
            return [each["metadata"]["name"] for each in page["items"]]

        async def two() -> bool:
            return len(await pods()) == 2

        await eventually(two)
        await settled(running)
        # As a kubelet reports terminated pods; the Job waits for a replacement, which the namespace
        # forbids.
        await api.delete(NAMESPACE, None, namespace, propagation="Background")
        for pod in await pods():
            with suppress(NotFound):  # the namespace's controller may be faster
                await api.merge(POD, namespace, pod, {"status": {"phase": "Failed"}}, subresource="status")

        async def gone() -> bool:
            return await api.get(NAMESPACE, None, namespace) is None

        await eventually(gone, 60)
