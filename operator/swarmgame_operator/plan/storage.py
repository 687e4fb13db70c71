"""Volumes and claims: the peers' shared cache, their checkpoints, the game's file, modules and the hub's token.

A claim's template is applied when it changes: a larger size enlarges the claim, and what cannot change is refused by
the API server, which the conditions quote. A claim under Retain has no owner, so it outlives its game; it is marked
with the game that it was made for, and a later game of the same name uses it only if it names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swarmgame_api.storage import CacheSpec, CheckpointsSpec, ClaimTemplate, EmptyDir, RetentionPolicy
from swarmgame_operator.plan.game_context import MADE_FOR, GameContext
from swarmgame_operator.plan.plan_types import Child, Deletion, Manifest
from swarmgame_operator.plan.pod import mount, value, volume
from swarmgame_operator.snapshot import ChildFacts

CACHE = "/cache"
CHECKPOINTS = "/checkpoints"
CHECKPOINTS_VOLUME = "checkpoints"
GAME = "/etc/swarmgame/game"
IDENTITY = "/etc/swarmgame/identity"
BOOTNODE_KEY = "bootnode.key"
"""The key's name in its Secret."""
TOKEN = "/etc/swarmgame/model"
READ_BY_GROUP = 0o440


def retention(checkpoints: CheckpointsSpec) -> RetentionPolicy:
    return checkpoints.retention_policy or RetentionPolicy()


def claims(game: GameContext, *, over: bool) -> tuple[Child, ...]:
    """Return the claims of the game's templates; without the checkpoints', if a finished game deletes them."""
    found = []
    storage = game.spec.storage
    if storage.cache.claim_template is not None:
        found.append(_claim(game, "cache", storage.cache.claim_template, owned=True))
    if storage.checkpoints.claim_template is not None and not (
        over and retention(storage.checkpoints).when_finished == "Delete"
    ):
        owned = retention(storage.checkpoints).when_deleted == "Delete"
        found.append(_claim(game, "checkpoints", storage.checkpoints.claim_template, owned=owned))
    return tuple(found)


def keeps_checkpoints(game: GameContext) -> bool:
    """Return whether the peers' checkpoints outlive their pods and the game's end."""
    checkpoints = game.spec.storage.checkpoints
    templated = checkpoints.claim_template is not None and retention(checkpoints).when_finished == "Retain"
    return checkpoints.claim_name is not None or templated


def checkpoints_claim(pod: Mapping[str, Any]) -> str:
    """Return the claim on which a pod of this spec has its checkpoints; empty if they are on none."""
    volumes = (each for each in pod.get("volumes") or () if each.get("name") == CHECKPOINTS_VOLUME)
    claims = ((each.get("persistentVolumeClaim") or {}).get("claimName") for each in volumes)
    return next((str(name) for name in claims if name), "")


def claims_to_delete(
    game: GameContext, existing: Mapping[tuple[str, str], ChildFacts], *, over: bool
) -> tuple[Deletion, ...]:
    """Return the claims that a finished game deletes: only claims that the operator created for this game. One that is
    kept of an earlier game of its name has that game's checkpoints.
    """
    checkpoints = game.spec.storage.checkpoints
    if not over or checkpoints.claim_template is None or retention(checkpoints).when_finished != "Delete":
        return ()
    place = ("PersistentVolumeClaim", game.name("checkpoints"))
    facts = existing.get(place)
    if facts is None or facts.controller or facts.made_for not in ("", game.resource.uid):
        return ()
    return (Deletion(*place, uid=facts.uid),)


def _claim(game: GameContext, suffix: str, template: ClaimTemplate, *, owned: bool) -> Child:
    annotations = {**template.metadata.annotations, MADE_FOR: game.resource.uid}
    metadata = game.metadata(suffix, "game", owned=owned, labels=template.metadata.labels, annotations=annotations)
    spec = template.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    manifest = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}
    return Child(manifest, manifest)


def game_volumes(game: GameContext) -> list[Manifest]:
    """Return the volumes of every pod that runs the worker: scratch space, the game's file, the cache, modules."""
    found = [
        volume("tmp", emptyDir={}),
        volume("game", configMap={"name": game.name("game")}),
        volume("cache", **_source(game, game.spec.storage.cache, "cache")),
    ]
    for number, module in enumerate(game.spec.game.modules):
        if module.image is not None:
            found.append(volume(f"module-{number}", image={"reference": module.image.reference}))
        elif module.config_map_ref is not None:
            found.append(volume(f"module-{number}", configMap={"name": module.config_map_ref.name}))
    return found


def game_mounts(game: GameContext) -> list[Manifest]:
    modules = [
        mount(f"module-{number}", module.mount_path, readOnly=True)
        for number, module in enumerate(game.spec.game.modules)
    ]
    return [mount("tmp", "/tmp"), mount("game", GAME, readOnly=True), mount("cache", CACHE), *modules]


def game_environment(game: GameContext) -> list[Manifest]:
    """Return the variables that say where the volumes are mounted."""
    found = [
        value("HOME", "/tmp"),
        value("SWARMGAME_GAME", f"{GAME}/game.yaml"),
        value("XDG_CACHE_HOME", CACHE),
        value("HF_HOME", f"{CACHE}/huggingface"),
        value("SWARMGAME_CACHE", f"{CACHE}/swarmgame"),
    ]
    if game.spec.game.modules:
        found.append(value("PYTHONPATH", ":".join(module.mount_path for module in game.spec.game.modules)))
    return found


def checkpoint_volume(game: GameContext) -> Manifest:
    return volume(CHECKPOINTS_VOLUME, **_source(game, game.spec.storage.checkpoints, "checkpoints"))


def checkpoint_mount(game: GameContext) -> Manifest:
    """Return the mount: in a claim, which the peers share, each has the folder of its index."""
    source = _source(game, game.spec.storage.checkpoints, "checkpoints")
    if "emptyDir" in source:
        return mount(CHECKPOINTS_VOLUME, CHECKPOINTS)
    return mount(CHECKPOINTS_VOLUME, f"{CHECKPOINTS}/peer", subPathExpr="$(JOB_COMPLETION_INDEX)")


def shared_memory(game: GameContext) -> Manifest:
    return volume("shm", emptyDir={"medium": "Memory", "sizeLimit": game.spec.storage.shared_memory})


def token_volumes(game: GameContext) -> list[Manifest]:
    """Return the volume with the hub's token, for pods that fetch the model."""
    model = game.spec.model
    if model is None or model.secret_ref is None:
        return []
    items = [{"key": "token", "path": "token"}]
    return [
        volume(
            "model-token", secret={"secretName": model.secret_ref.name, "items": items, "defaultMode": READ_BY_GROUP}
        )
    ]


def token_mounts(game: GameContext) -> list[Manifest]:
    return [mount(each["name"], TOKEN, readOnly=True) for each in token_volumes(game)]


def token_environment(game: GameContext) -> list[Manifest]:
    return [value("SWARMGAME_MODEL_TOKEN_FILE", f"{TOKEN}/token") for _ in token_volumes(game)]


def _source(game: GameContext, storage: CacheSpec | CheckpointsSpec, suffix: str) -> Manifest:
    if storage.claim_name is not None:
        return {"persistentVolumeClaim": {"claimName": storage.claim_name}}
    if storage.claim_template is not None:
        return {"persistentVolumeClaim": {"claimName": game.name(suffix)}}
    folder = storage.empty_dir or EmptyDir()
    found: Manifest = {"medium": folder.medium} if folder.medium else {}
    if folder.size_limit is not None:
        found["sizeLimit"] = folder.size_limit
    return {"emptyDir": found}
