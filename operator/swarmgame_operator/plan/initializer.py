"""The initializer: it fills the cache with the model, once for the game, or once a pod where the cache goes with its
pod.

Whoever initializes has the hub's token and reaches the hub; peers have neither, and run offline. Invariant: filling a
cache that is full changes nothing, so that it may be done again.
"""

from __future__ import annotations

from typing import Any

from swarmgame_operator.plan import storage
from swarmgame_operator.plan.merge import merge
from swarmgame_operator.plan.outcome import Child, Manifest
from swarmgame_operator.plan.pod import container, gpu_toleration, mount, pod_spec, threads, with_memory_requested
from swarmgame_operator.plan.setting import TEMPLATE_HASH, Setting, digest

JOB = CONTAINER = "initializer"
RETRIES = 6
PLACEMENT = ("nodeSelector", "tolerations", "affinity", "imagePullSecrets", "priorityClassName", "schedulerName")
"""Fields of the peers' podTemplate that the initializer shares: it must run where their cache is, from the same
registry.
"""


def in_the_pod(setting: Setting) -> bool:
    """Whether every peer's pod initializes its own cache."""
    return setting.must_be_initialized and not setting.cache_outlives_a_pod


def is_a_job(setting: Setting) -> bool:
    """Whether a Job does it for all."""
    return setting.must_be_initialized and setting.cache_outlives_a_pod


def initializer_hash(setting: Setting) -> str:
    """Tells what the cache is filled for; a Job made for another game or model is made anew."""
    data = setting.spec_data
    peers = data.get("peers", {})
    return digest(
        [
            data.get("model"),
            data.get("game"),
            data.get("storage", {}).get("cache"),
            peers.get("image"),
            peers.get("env"),
        ]
    )


def initializer_job(setting: Setting) -> Child:
    metadata = setting.metadata(JOB, "initializer")
    identity = {"apiVersion": "batch/v1", "kind": "Job"}
    patch = {key: entry for key, entry in setting.spec.peers.pod_template.spec.items() if key in PLACEMENT}
    pod = pod_spec(
        setting,
        restartPolicy="Never",
        containers=[initializer_container(setting)],
        volumes=[*storage.game_volumes(setting), *storage.token_volumes(setting)],
        **gpu_toleration(setting),
    )
    fatal = {"containerName": CONTAINER, "operator": "In", "values": [64, 77, 78]}
    spec = {
        "backoffLimit": RETRIES,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {
            "rules": [
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {"action": "FailJob", "onExitCodes": fatal},
            ]
        },
        "template": {"metadata": {"labels": setting.labels("initializer")}, "spec": merge(pod, patch)},
    }
    created = {**metadata, "annotations": {TEMPLATE_HASH: initializer_hash(setting)}}
    return Child({**identity, "metadata": metadata}, {**identity, "metadata": created, "spec": spec})


def initializer_container(setting: Setting) -> Manifest:
    """The container; it has the peers' memory and CPU, as it loads what they load, and none of their GPUs."""
    peers = setting.spec.peers
    variables = [each.model_dump(mode="json", by_alias=True, exclude_none=True) for each in peers.env]
    fields: dict[str, Any] = {
        "args": ["pod", "initialize"],
        "env": merge(
            [*storage.game_environment(setting), *storage.token_environment(setting), threads(setting, CONTAINER)],
            variables,
            "env",
        ),
        "volumeMounts": [*storage.game_mounts(setting), *storage.token_mounts(setting)],
    }
    if in_the_pod(setting):
        fields["volumeMounts"].append(mount("shm", "/dev/shm"))
    limits, requests = (
        {name: amount for name, amount in each.items() if "/" not in name}
        for each in (peers.resources.limits, peers.resources.requests)
    )
    if resources := with_memory_requested(limits, requests):
        fields["resources"] = resources
    return container(setting, CONTAINER, setting.worker_image, **fields)
