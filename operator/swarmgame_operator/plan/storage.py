"""Volumes and claims: the peers' shared cache, their checkpoints, the game's file, modules and the hub's token.

A claim is created once and only its metadata is applied later, because its spec is almost immutable. A claim under
Retain has no owner, so it outlives its game; a later game of the same name uses it again.
"""

from __future__ import annotations

from swarmgame_api.storage import CacheSpec, CheckpointsSpec, ClaimTemplate, EmptyDir, RetentionPolicy
from swarmgame_operator.plan.game_context import GameContext
from swarmgame_operator.plan.plan_types import Child, Deletion, Manifest
from swarmgame_operator.plan.pod import mount, value, volume

CACHE = "/cache"
CHECKPOINTS = "/checkpoints"
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


def claims_to_delete(game: GameContext, *, over: bool) -> tuple[Deletion, ...]:
    """Return the claims that a finished game deletes: only claims that the operator created."""
    checkpoints = game.spec.storage.checkpoints
    if over and checkpoints.claim_template is not None and retention(checkpoints).when_finished == "Delete":
        return (Deletion("PersistentVolumeClaim", game.name("checkpoints")),)
    return ()


def _claim(game: GameContext, suffix: str, template: ClaimTemplate, *, owned: bool) -> Child:
    metadata = game.metadata(
        suffix, "game", owned=owned, labels=template.metadata.labels, annotations=template.metadata.annotations
    )
    applied: Manifest = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata}
    return Child(applied, {**applied, "spec": template.spec.model_dump(mode="json", by_alias=True, exclude_none=True)})


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
    return volume("checkpoints", **_source(game, game.spec.storage.checkpoints, "checkpoints"))


def checkpoint_mount(game: GameContext) -> Manifest:
    """Return the mount: in a claim, which the peers share, each has the folder of its index."""
    source = _source(game, game.spec.storage.checkpoints, "checkpoints")
    if "emptyDir" in source:
        return mount("checkpoints", CHECKPOINTS)
    return mount("checkpoints", f"{CHECKPOINTS}/peer", subPathExpr="$(JOB_COMPLETION_INDEX)")


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
