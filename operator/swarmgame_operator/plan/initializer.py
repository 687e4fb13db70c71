"""The initializer: fills the cache with the model, once per game, or once per pod if the cache is the pod's own.

It has the hub's token and network access to the hub; peers have neither, and run offline. Filling a full cache changes
nothing, so it may run again.
"""

from __future__ import annotations

from typing import Any

from swarmgame_api.peers import Resources
from swarmgame_operator.plan import storage
from swarmgame_operator.plan.devices import tolerations
from swarmgame_operator.plan.game_context import TEMPLATE_HASH, GameContext, digest
from swarmgame_operator.plan.merge import merge
from swarmgame_operator.plan.plan_types import Child, Manifest
from swarmgame_operator.plan.pod import container, mount, pod_spec, pod_template, threads

JOB = CONTAINER = "initializer"
RETRIES = 6
PLACEMENT = ("nodeSelector", "tolerations", "affinity", "imagePullSecrets", "priorityClassName", "schedulerName")
"""Fields of the peers' podTemplate that the initializer shares: it runs where the cache is, with the same registry."""


def in_the_pod(game: GameContext) -> bool:
    """Return whether every peer's pod initializes its own cache."""
    return game.must_be_initialized and not game.cache_outlives_a_pod


def is_a_job(game: GameContext) -> bool:
    """Return whether one Job does it for all peers."""
    return game.must_be_initialized and game.cache_outlives_a_pod


def initializer_hash(game: GameContext) -> str:
    """Return the hash of what the cache is filled for, and of what its pod has of the defaults and of its own template.
    A Job with another hash is replaced.
    """
    data = game.spec_data
    peers = data.get("peers", {})
    template = data.get("podTemplates", {}).get("initializer")
    return digest(
        [
            data.get("model"),
            data.get("game"),
            data.get("storage", {}).get("cache"),
            peers.get("image"),
            peers.get("env"),
            *([game.pod_defaults_data] if game.pod_defaults_data else []),
            *([template] if template else []),
        ]
    )


def initializer_job(game: GameContext) -> Child:
    metadata = game.metadata(JOB, "initializer")
    identity = {"apiVersion": "batch/v1", "kind": "Job"}
    patch = {key: entry for key, entry in game.spec.peers.pod_template.spec.items() if key in PLACEMENT}
    pod = pod_spec(
        game,
        restartPolicy="Never",
        containers=[initializer_container(game)],
        volumes=[*storage.game_volumes(game), *storage.token_volumes(game)],
        **({"tolerations": found} if (found := tolerations(game)) else {}),
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
        "template": pod_template(game, "initializer", merge(pod, patch)),
    }
    created = {**metadata, "annotations": {TEMPLATE_HASH: initializer_hash(game)}}
    return Child({**identity, "metadata": metadata}, {**identity, "metadata": created, "spec": spec})


def initializer_container(game: GameContext) -> Manifest:
    """Return the container. It has the peers' memory and CPU, because it loads the same model, but no GPU."""
    peers = game.spec.peers
    fields: dict[str, Any] = {
        "args": ["pod", "initialize"],
        "env": [*storage.game_environment(game), *storage.token_environment(game), threads(game, CONTAINER)],
        "volumeMounts": [*storage.game_mounts(game), *storage.token_mounts(game)],
    }
    if in_the_pod(game):
        fields["volumeMounts"].append(mount("shm", "/dev/shm"))
    limits, requests = (
        {name: amount for name, amount in each.items() if "/" not in name}
        for each in (peers.resources.limits, peers.resources.requests)
    )
    own = Resources(limits=limits, requests=requests)
    return container(game, CONTAINER, game.worker_image, variables=peers.env, own_resources=own, **fields)
