"""Volumes and claims: the cache that peers share, the checkpoints of each, the game's file, modules and the hub's
token.

A claim is made once and then left alone, because almost nothing of it may change. Invariant: a claim under Retain has
no owner, and so outlives its game; a game of the same name finds it again.
"""

from __future__ import annotations

from swarmgame_api.storage import CacheSpec, CheckpointsSpec, ClaimTemplate, EmptyDir, RetentionPolicy
from swarmgame_operator.plan.outcome import Child, Manifest, Reference
from swarmgame_operator.plan.pod import mount, value, volume
from swarmgame_operator.plan.setting import Setting

CACHE = "/cache"
CHECKPOINTS = "/checkpoints"
GAME = "/etc/swarmgame/game"
IDENTITY = "/etc/swarmgame/identity"
TOKEN = "/etc/swarmgame/model"
READ_BY_GROUP = 0o440


def retention(checkpoints: CheckpointsSpec) -> RetentionPolicy:
    return checkpoints.retention_policy or RetentionPolicy()


def claims(setting: Setting, *, over: bool) -> tuple[Child, ...]:
    """The claims that the game's templates ask for. A finished game whose checkpoints go has only the cache's."""
    found = []
    storage = setting.spec.storage
    if storage.cache.claim_template is not None:
        found.append(_claim(setting, "cache", storage.cache.claim_template, owned=True))
    if storage.checkpoints.claim_template is not None and not (
        over and retention(storage.checkpoints).when_finished == "Delete"
    ):
        owned = retention(storage.checkpoints).when_deleted == "Delete"
        found.append(_claim(setting, "checkpoints", storage.checkpoints.claim_template, owned=owned))
    return tuple(found)


def claims_to_delete(setting: Setting, *, over: bool) -> tuple[Reference, ...]:
    """What a finished game gives back: claims that we made, and never one that was only named."""
    checkpoints = setting.spec.storage.checkpoints
    if over and checkpoints.claim_template is not None and retention(checkpoints).when_finished == "Delete":
        return (Reference("PersistentVolumeClaim", setting.name("checkpoints")),)
    return ()


def _claim(setting: Setting, ending: str, template: ClaimTemplate, *, owned: bool) -> Child:
    metadata = setting.metadata(
        ending, "game", owned=owned, labels=template.metadata.labels, annotations=template.metadata.annotations
    )
    ours: Manifest = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata}
    return Child(ours, {**ours, "spec": template.spec.model_dump(mode="json", by_alias=True, exclude_none=True)})


def game_volumes(setting: Setting) -> list[Manifest]:
    """Volumes of every pod that runs the worker on the game: scratch, the game's file, the cache, modules."""
    found = [
        volume("tmp", emptyDir={}),
        volume("game", configMap={"name": setting.name("game")}),
        volume("cache", **_source(setting, setting.spec.storage.cache, "cache")),
    ]
    for number, module in enumerate(setting.spec.game.modules):
        if module.image is not None:
            found.append(volume(f"module-{number}", image={"reference": module.image.reference}))
        elif module.config_map_ref is not None:
            found.append(volume(f"module-{number}", configMap={"name": module.config_map_ref.name}))
    return found


def game_mounts(setting: Setting) -> list[Manifest]:
    modules = [
        mount(f"module-{number}", module.mount_path, readOnly=True)
        for number, module in enumerate(setting.spec.game.modules)
    ]
    return [mount("tmp", "/tmp"), mount("game", GAME, readOnly=True), mount("cache", CACHE), *modules]


def game_environment(setting: Setting) -> list[Manifest]:
    """Where the worker finds what is mounted."""
    found = [
        value("HOME", "/tmp"),
        value("SWARMGAME_GAME", f"{GAME}/game.yaml"),
        value("XDG_CACHE_HOME", CACHE),
        value("HF_HOME", f"{CACHE}/huggingface"),
        value("SWARMGAME_CACHE", f"{CACHE}/swarmgame"),
    ]
    if setting.spec.game.modules:
        found.append(value("PYTHONPATH", ":".join(module.mount_path for module in setting.spec.game.modules)))
    return found


def checkpoint_volume(setting: Setting) -> Manifest:
    return volume("checkpoints", **_source(setting, setting.spec.storage.checkpoints, "checkpoints"))


def checkpoint_mount(setting: Setting) -> Manifest:
    """A claim is shared by all peers, each in the folder of its index; an emptyDir is a pod's own."""
    source = _source(setting, setting.spec.storage.checkpoints, "checkpoints")
    if "emptyDir" in source:
        return mount("checkpoints", CHECKPOINTS)
    return mount("checkpoints", f"{CHECKPOINTS}/peer", subPathExpr="$(JOB_COMPLETION_INDEX)")


def shared_memory(setting: Setting) -> Manifest:
    return volume("shm", emptyDir={"medium": "Memory", "sizeLimit": setting.spec.storage.shared_memory})


def token_volumes(setting: Setting) -> list[Manifest]:
    """The hub's token, for whoever fetches the model, and nobody else."""
    model = setting.spec.model
    if model is None or model.secret_ref is None:
        return []
    items = [{"key": "token", "path": "token"}]
    return [
        volume(
            "model-token", secret={"secretName": model.secret_ref.name, "items": items, "defaultMode": READ_BY_GROUP}
        )
    ]


def token_mounts(setting: Setting) -> list[Manifest]:
    return [mount(each["name"], TOKEN, readOnly=True) for each in token_volumes(setting)]


def token_environment(setting: Setting) -> list[Manifest]:
    return [value("SWARMGAME_MODEL_TOKEN_FILE", f"{TOKEN}/token") for _ in token_volumes(setting)]


def _source(setting: Setting, storage: CacheSpec | CheckpointsSpec, ending: str) -> Manifest:
    if storage.claim_name is not None:
        return {"persistentVolumeClaim": {"claimName": storage.claim_name}}
    if storage.claim_template is not None:
        return {"persistentVolumeClaim": {"claimName": setting.name(ending)}}
    folder = storage.empty_dir or EmptyDir()
    found: Manifest = {"medium": folder.medium} if folder.medium else {}
    if folder.size_limit is not None:
        found["sizeLimit"] = folder.size_limit
    return {"emptyDir": found}
