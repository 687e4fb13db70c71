"""What every pod of ours has in common: it passes Pod Security admission at level restricted, it has no token, and it
keeps its root read-only.

Pieces only; `peer_job`, `bootnode`, `initializer`, `gateway` and `chain` put them together. Invariant: nothing here
asks for a privilege.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swarmgame_operator.plan.outcome import Manifest
from swarmgame_operator.plan.setting import HTTP_PORT, Setting

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


def pod_spec(setting: Setting, **fields: Any) -> Manifest:
    """A pod's spec with what all of ours share.

    `enableServiceLinks` is off because a Service named `swarmgame` would otherwise put SWARMGAME_PORT into every pod of
    its namespace.
    """
    spec: Manifest = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod_security(),
        **fields,
    }
    if setting.defaults.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in setting.defaults.image_pull_secrets]
    return spec


def container(setting: Setting, name: str, image: str, **fields: Any) -> Manifest:
    """A container; its last words go to the termination log, which the game's conditions quote."""
    found: Manifest = {
        "name": name,
        "image": image,
        "securityContext": container_security(),
        "terminationMessagePath": TERMINATION_LOG,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        **fields,
    }
    if setting.defaults.image_pull_policy:
        found["imagePullPolicy"] = setting.defaults.image_pull_policy
    return found


def value(name: str, text: str) -> Manifest:
    """A variable."""
    return {"name": name, "value": text}


def from_field(name: str, path: str) -> Manifest:
    """A variable from the pod itself."""
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def http_probe(path: str, **fields: int) -> Manifest:
    return {"httpGet": {"path": path, "port": "http"}, **fields}


def patient_probes() -> Manifest:
    """Probes of what may take an hour to load a model: nothing is restarted for being slow, only for not answering once
    it did.
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


def p2p_port(setting: Setting) -> Manifest:
    return {"name": "p2p", "containerPort": setting.spec.communication.port, "protocol": "TCP"}


def volume(name: str, **source: Any) -> Manifest:
    return {"name": name, **source}


def mount(name: str, path: str, **fields: Any) -> Manifest:
    return {"name": name, "mountPath": path, **fields}


def scratch() -> Manifest:
    """/tmp, which is also HOME: the only place where a process may write that keeps nothing."""
    return volume("tmp", emptyDir={})


def small(memory: str, cpu: str) -> Manifest:
    """Resources of a helper: memory is requested as limited, CPU is not limited."""
    return {"requests": {"cpu": cpu, "memory": memory}, "limits": {"memory": memory}}


def threads(setting: Setting, name: str) -> Manifest:
    """OMP_NUM_THREADS of a container: as many as it asks CPUs for; one where it asks for none, as several peers may
    share the node, and threads that spin for each other's CPUs are slower than one."""
    resources = setting.spec.peers.resources
    if "cpu" not in {**resources.limits, **resources.requests}:
        return value("OMP_NUM_THREADS", "1")
    kind = "requests.cpu" if "cpu" in resources.requests else "limits.cpu"
    return {
        "name": "OMP_NUM_THREADS",
        "valueFrom": {"resourceFieldRef": {"containerName": name, "resource": kind, "divisor": "1"}},
    }


def with_memory_requested(limits: Mapping[str, str], requests: Mapping[str, str]) -> Manifest:
    """Resources as the author gave them, memory requested as limited: a pod that may use more than it asked for is
    killed when others do.
    """
    asked, allowed = dict(requests), dict(limits)
    memory = allowed.get("memory") or asked.get("memory")
    if memory is not None:
        asked["memory"] = allowed["memory"] = memory
    found: Manifest = {}
    if allowed:
        found["limits"] = allowed
    if asked:
        found["requests"] = asked
    return found


def gpus(setting: Setting) -> int:
    """GPUs of a peer's own container, as far as its limits say."""
    resources = setting.spec.peers.resources
    asked = {**resources.requests, **resources.limits}
    return sum(int(amount) for name, amount in asked.items() if name.endswith("/gpu") and amount.isdigit())


def gpu_toleration(setting: Setting) -> Manifest:
    """Nodes with GPUs are often tainted, so that only those who need them come; where the peers may run, their
    initializer may too.
    """
    server = setting.vllm_sidecar
    served = server is not None and any(name.endswith("/gpu") for name in server.resources.limits)
    return (
        {"tolerations": [{"key": GPU_TAINT, "operator": "Exists", "effect": "NoSchedule"}]}
        if gpus(setting) or served
        else {}
    )
