"""A pod that mounts a game's claim while its files are read, and the manifest of a game as a run has it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from swarmgame_api.load import parse_manifest
from swarmgame_operator.api import CLAIM, JOB, POD, Api
from swarmgame_operator.kubectl.export import (
    BAD_USAGE,
    CONTAINER,
    NOT_FOUND,
    UNAVAILABLE,
    ExportError,
    Place,
    reader_pod,
    waiting_reason,
)
from swarmgame_operator.plan.game_file import file_text
from swarmgame_operator.plan.storage import CHECKPOINTS

POLL_SECONDS = 1.0
_NEVER_RUNS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError")


@asynccontextmanager
async def claim_reader(
    api: Api, namespace: str, game: str, claim: str, image: str, wait_seconds: float
) -> AsyncIterator[Place]:
    """Yield a place that shows all peers' folders on a claim. Its pod is deleted when the block ends.

    Args:
        image: the worker's; empty for that of the game's peers.

    Raises:
        ExportError: there is no claim, no image is known, or the pod does not run in time.
    """
    if await api.get(CLAIM, namespace, claim) is None:
        raise ExportError(NOT_FOUND, f"there is no claim {claim} in namespace {namespace}, and no peer of {game} runs")
    job = await api.get(JOB, namespace, f"{game}-peers")
    template: Mapping[str, Any] = job["spec"]["template"] if job is not None else {}
    chosen = image or next((each["image"] for each in template.get("spec", {}).get("containers") or ()), "")
    if not chosen:
        raise ExportError(BAD_USAGE, f"{game} has no Job of peers any more: name the worker's image with --image")
    created = await api.create(POD, namespace, reader_pod(game, claim, chosen, template))
    name = created["metadata"]["name"]
    try:
        await _running(api, namespace, name, wait_seconds)
        yield Place(name, CONTAINER, (f"*={CHECKPOINTS}",))
    finally:
        await api.delete(POD, namespace, name, propagation="Background")


async def _running(api: Api, namespace: str, name: str, wait_seconds: float) -> None:
    reason = ""
    for _ in range(max(1, round(wait_seconds / POLL_SECONDS))):
        pod = await api.get(POD, namespace, name)
        if pod is None:
            raise ExportError(UNAVAILABLE, f"pod {name} was deleted by another process; try again")
        phase = (pod.get("status") or {}).get("phase")
        if phase == "Running":
            return
        reason = waiting_reason(pod)
        if phase in ("Failed", "Succeeded") or reason.startswith(_NEVER_RUNS):
            break
        await asyncio.sleep(POLL_SECONDS)
    raise ExportError(UNAVAILABLE, f"pod {name}, which would read the claim, does not run: {reason}")


def run_manifest(game: Mapping[str, Any]) -> str:
    """Return the manifest of a game in a cluster, as the `game.yaml` of a run."""
    return file_text(parse_manifest({key: value for key, value in game.items() if key != "status"}))
