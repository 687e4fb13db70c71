"""What all pods of a game have in common: Pod Security level restricted, no API token, a read-only root.

Building blocks for `peer_job`, `bootnode`, `initializer`, `sampler` and `chain`. Invariant: nothing here requests a
privilege.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swarmgame_operator.plan.game_context import HTTP_PORT, GameContext
from swarmgame_operator.plan.plan_types import Manifest

USER = 65532
TERMINATION_LOG = "/dev/termination-log"
GPU_TAINT = "nvidia.com/gpu"
STARTUP_PERIOD_SECONDS, STARTUP_ATTEMPTS = 10, 360


def pod_security() -> Manifest:
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> Manifest:
    return {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def pod_spec(game: GameContext, **fields: Any) -> Manifest:
    """Return a pod's spec with the fields that all pods share.

    `enableServiceLinks` is off because a Service named `swarmgame` would otherwise put SWARMGAME_PORT into every pod
    of its namespace.
    """
    spec: Manifest = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod_security(),
        **fields,
    }
    if game.defaults.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in game.defaults.image_pull_secrets]
    return spec


def container(game: GameContext, name: str, image: str, **fields: Any) -> Manifest:
    """Return a container. Its termination message is quoted in the game's conditions."""
    found: Manifest = {
        "name": name,
        "image": image,
        "securityContext": container_security(),
        "terminationMessagePath": TERMINATION_LOG,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        **fields,
    }
    if game.defaults.image_pull_policy:
        found["imagePullPolicy"] = game.defaults.image_pull_policy
    return found


def value(name: str, text: str) -> Manifest:
    """Return an environment variable."""
    return {"name": name, "value": text}


def from_field(name: str, path: str) -> Manifest:
    """Return an environment variable with a field of the pod."""
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def http_probe(path: str, **fields: int) -> Manifest:
    return {"httpGet": {"path": path, "port": "http"}, **fields}


def slow_start_probes() -> Manifest:
    """Return probes that allow an hour for loading a model: a container is restarted only if it stops answering after
    it has answered once.
    """
    return {
        "startupProbe": http_probe(
            "/healthz", periodSeconds=STARTUP_PERIOD_SECONDS, failureThreshold=STARTUP_ATTEMPTS, timeoutSeconds=5
        ),
        "readinessProbe": http_probe("/readyz", periodSeconds=5, failureThreshold=3, timeoutSeconds=5),
        "livenessProbe": http_probe("/healthz", periodSeconds=20, failureThreshold=6, timeoutSeconds=10),
    }


def http_port(number: int = HTTP_PORT) -> Manifest:
    return {"name": "http", "containerPort": number, "protocol": "TCP"}


def p2p_port(game: GameContext) -> Manifest:
    return {"name": "p2p", "containerPort": game.spec.communication.port, "protocol": "TCP"}


def volume(name: str, **source: Any) -> Manifest:
    return {"name": name, **source}


def mount(name: str, path: str, **fields: Any) -> Manifest:
    return {"name": name, "mountPath": path, **fields}


def scratch() -> Manifest:
    """Return the volume of /tmp, which is also HOME: the only temporary folder that a process may write to."""
    return volume("tmp", emptyDir={})


def small(memory: str, cpu: str) -> Manifest:
    """Return the resources of an auxiliary pod: memory is requested as limited, CPU is not limited."""
    return {"requests": {"cpu": cpu, "memory": memory}, "limits": {"memory": memory}}


def threads(game: GameContext, name: str) -> Manifest:
    """Return OMP_NUM_THREADS: the container's requested CPUs; 1 if it requests none, because several peers may share
    the node, and threads that spin for each other's CPUs are slower than one.
    """
    resources = game.spec.peers.resources
    if "cpu" not in {**resources.limits, **resources.requests}:
        return value("OMP_NUM_THREADS", "1")
    kind = "requests.cpu" if "cpu" in resources.requests else "limits.cpu"
    return {
        "name": "OMP_NUM_THREADS",
        "valueFrom": {"resourceFieldRef": {"containerName": name, "resource": kind, "divisor": "1"}},
    }


def with_memory_requested(limits: Mapping[str, str], requests: Mapping[str, str]) -> Manifest:
    """Return the author's resources with memory requested as limited: under memory pressure, pods that use more than
    they requested are killed first.
    """
    requested, limited = dict(requests), dict(limits)
    memory = limited.get("memory") or requested.get("memory")
    if memory is not None:
        requested["memory"] = limited["memory"] = memory
    found: Manifest = {}
    if limited:
        found["limits"] = limited
    if requested:
        found["requests"] = requested
    return found


def gpus(game: GameContext) -> int:
    """Return the GPUs of a peer's own container, by its resources."""
    resources = game.spec.peers.resources
    amounts = {**resources.requests, **resources.limits}
    return sum(int(amount) for name, amount in amounts.items() if name.endswith("/gpu") and amount.isdigit())


def gpu_toleration(game: GameContext) -> Manifest:
    """Return the toleration of the taint that nodes with GPUs often have, for peers with GPUs and their initializer."""
    server = game.vllm_sidecar
    served = server is not None and any(name.endswith("/gpu") for name in server.resources.limits)
    return (
        {"tolerations": [{"key": GPU_TAINT, "operator": "Exists", "effect": "NoSchedule"}]}
        if gpus(game) or served
        else {}
    )
