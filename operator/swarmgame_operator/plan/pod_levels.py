"""The levels that a pod is made from: the operator's own fields, the installation's `games.podDefaults`, the game's
`spec.podDefaults`, and what the game says of the role. Each overrides the one before.

| field | how a level is merged |
|---|---|
| labels, annotations, nodeSelector, security contexts | by key; a null removes the key |
| env, volumes, imagePullSecrets | by name |
| volumeMounts | by path |
| tolerations | added |
| resources | by resource: a level that names one replaces its limit and its request |
| priorityClassName | replaced |

Invariant: a level that says nothing changes nothing, not even the order of a manifest's keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from swarmgame_api.peers import PodTemplate
from swarmgame_api.pods import PodDefaults
from swarmgame_operator.plan.merge import merge
from swarmgame_operator.plan.plan_types import Manifest

OWN_VOLUMES = frozenset(
    {
        *("tmp", "game", "cache", "identity", "shm", "checkpoints", "model-token"),
        *("vllm-tmp", "weights", "rpc", "wallet", "state"),
    }
)
OWN_VOLUME_PREFIX = "module-"
OWN_PATHS = frozenset({"/tmp", "/cache", "/checkpoints", "/checkpoints/peer", "/dev/shm", "/weights", "/state"})
OWN_FOLDER = "/etc/swarmgame"


def pod_metadata(levels: Iterable[PodDefaults], own: Mapping[str, str], template: PodTemplate) -> Manifest:
    """Return a pod's labels and annotations. The operator's own labels are never replaced."""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    for level in levels:
        labels |= level.labels
        annotations |= level.annotations
    annotations |= template.metadata.annotations
    found: Manifest = {"labels": {**labels, **template.metadata.labels, **own}}
    if annotations:
        found["annotations"] = annotations
    return found


def pod_with(levels: Iterable[PodDefaults], spec: Manifest) -> Manifest:
    """Return a pod's spec with the levels merged into it; its containers are left as they are."""
    for level in levels:
        patch: Manifest = {
            "securityContext": dict(level.security_context),
            "nodeSelector": dict(level.node_selector),
            "priorityClassName": level.priority_class_name,
            "imagePullSecrets": [{"name": each.name} for each in level.image_pull_secrets],
            "volumes": [dict(each) for each in level.volumes],
            "tolerations": _union(spec.get("tolerations", []), level.tolerations),
        }
        spec = merge(spec, {key: value for key, value in patch.items() if value})
    return spec


def container_with(levels: Iterable[PodDefaults], found: Manifest) -> Manifest:
    """Return a container with the levels merged into it; its resources are left as they are."""
    for level in levels:
        patch: Manifest = {
            "securityContext": dict(level.container_security_context),
            "env": [dump_variable(each) for each in level.env],
            "volumeMounts": [dict(each) for each in level.volume_mounts],
        }
        found = merge(found, {key: value for key, value in patch.items() if value})
    return found


def dump_variable(variable: Any) -> Manifest:
    """Return an `EnvironmentVariable` as Kubernetes has it."""
    data: Manifest = variable.model_dump(mode="json", by_alias=True, exclude_none=True)
    return data


def resources_of(levels: Iterable[Mapping[str, Mapping[str, str]]]) -> Manifest:
    """Return the resources of a container, lowest level first, each with `limits` and `requests`. A limit of memory
    without a request is requested, because under memory pressure pods that use more than they requested are killed
    first; a request of memory without a limit is limited.
    """
    limits: dict[str, str] = {}
    requests: dict[str, str] = {}
    for level in levels:
        own = level.get("limits", {}), level.get("requests", {})
        for name in {**own[0], **own[1]}:
            limits.pop(name, None)
            requests.pop(name, None)
        limits |= {name: amount for name, amount in own[0].items() if amount is not None}
        requests |= {name: amount for name, amount in own[1].items() if amount is not None}
    memory = limits.get("memory") or requests.get("memory")
    if memory is not None:
        limits.setdefault("memory", memory)
        requests.setdefault("memory", memory)
    found: Manifest = {}
    if limits:
        found["limits"] = limits
    if requests:
        found["requests"] = requests
    return found


def with_resources_replaced(spec: Manifest, patch: Mapping[str, Any], merged: Manifest) -> Manifest:
    """Return a merged pod in which a resource that the patch names is the patch's alone: its limit would else stand
    beside a larger request of the operator.
    """
    base = {each["name"]: each.get("resources", {}) for each in spec["containers"]}
    given, made = patch.get("containers"), merged.get("containers")
    if not isinstance(given, list) or not isinstance(made, list):
        return merged
    # What has another shape stays as it is, and the API server says what is wrong with it.
    named = {
        each["name"]: {kind: amounts for kind, amounts in each["resources"].items() if isinstance(amounts, Mapping)}
        for each in given
        if _name(each) in base and isinstance(each.get("resources"), Mapping)
    }
    containers = [
        {**each, "resources": {**(each.get("resources") or {}), **resources_of([base[name], named[name]])}}
        if (name := _name(each)) in named
        else each
        for each in made
    ]
    return {**merged, "containers": containers} if named else merged


def _name(container: Any) -> str:
    """Return a container's name as an author wrote it; empty if it has none."""
    name = container.get("name") if isinstance(container, Mapping) else None
    return name if isinstance(name, str) else ""


def level_problems(levels: Iterable[PodDefaults]) -> Iterator[str]:
    """Yield what would replace a volume of the operator, or a folder that it mounts one at."""
    for level in levels:
        for volume in level.volumes:
            name = str(volume.get("name", ""))
            if name in OWN_VOLUMES or name.startswith(OWN_VOLUME_PREFIX):
                yield f"a volume is called {name!r}; expected another name, because the operator's volume has it"
        for mount in level.volume_mounts:
            path = str(mount.get("mountPath", "")).rstrip("/")
            if path in OWN_PATHS or f"{path}/".startswith(f"{OWN_FOLDER}/"):
                yield f"a volume is mounted at {path}; expected another path, because the operator mounts its own there"


def _union(found: Sequence[Any], added: Iterable[Any]) -> list[Any]:
    """Return both lists, each entry once; empty where the second adds none."""
    new = [dict(each) for each in added if each not in found]
    return [*found, *new] if new else []
