"""A game that is over: it completes with the Job's pods, and is deleted after its time to live."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from operators import eventually, manifest, operator

from swarmgame_operator.api import GAME, POD, Api


async def test_a_game_is_complete_when_its_peers_are_and_is_deleted_after_its_time_to_live(
    api: Api, cluster_config: Path, namespace: str
) -> None:
    async with operator(cluster_config, namespace):
        await api.create(GAME, namespace, manifest("short", ttlSecondsAfterFinished=1))
        await api.create(GAME, namespace, manifest("long", ttlSecondsAfterFinished=3600))

        async def pods() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = (await api.list_page(POD, namespace, selector="swarmgame.dev/role=peer"))[
                "items"
            ]
            return found if len(found) == 4 else []

        first = "0"  # one peer at the end is enough; then the others' pods are deleted
        for pod in await eventually(pods):
            if pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"] != first:
                continue
            await api.merge(
                POD, namespace, pod["metadata"]["name"], {"status": {"phase": "Succeeded"}}, subresource="status"
            )

        async def complete() -> bool:
            game = await api.get(GAME, namespace, "long")
            assert game is not None
            return any(each["type"] == "Complete" and each["status"] == "True" for each in game["status"]["conditions"])

        async def gone() -> bool:
            return await api.get(GAME, namespace, "short") is None

        await eventually(complete, 60)
        await eventually(gone, 60)
        assert await api.get(GAME, namespace, "long") is not None
