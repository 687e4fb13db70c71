"""What all pods of a game have in common: Pod Security level restricted, no API token, a read-only root.

Building blocks for `peer_job`, `bootnode`, `initializer`, `sampler` and `chain`, with the levels of `pod_levels` merged
into them. Invariant: nothing here requests a privilege.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from swarmgame_api.peers import EnvironmentVariable, Resources
from swarmgame_operator.plan.game_context import HTTP_PORT, GameContext
from swarmgame_operator.plan.merge import merge
from swarmgame_operator.plan.plan_types import Manifest
from swarmgame_operator.plan.pod_levels import (
    container_with,
    dump_variable,
    pod_metadata,
    pod_with,
    resources_of,
    with_resources_replaced,
)

USER = 65532
TERMINATION_LOG = "/dev/termination-log"
STARTUP_PERIOD_SECONDS, STARTUP_ATTEMPTS, STARTUP_WAIT_SECONDS = 10, 7, 540


def pod_security(*, arbitrary_user: bool = False) -> Manifest:
    """Return a pod's security context.

    Args:
        arbitrary_user: names no user and no group: the platform does.
    """
    user = {} if arbitrary_user else {"runAsUser": USER, "runAsGroup": USER, "fsGroup": USER}
    return {
        "runAsNonRoot": True,
        **user,
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
        "securityContext": pod_security(arbitrary_user=game.arbitrary_user),
        **fields,
    }
    if game.defaults.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in game.defaults.image_pull_secrets]
    return pod_with(game.pod_levels, spec)


def pod_template(game: GameContext, role: str, spec: Manifest) -> Manifest:
    """Return a pod template: a pod's spec with the template of its role merged into it."""
    template = game.pod_template(role)
    metadata = pod_metadata(game.pod_levels, game.labels(role), template)
    merged = merge(spec, template.spec)
    if role != "peer":  # what the author gives the peers is in their container already
        merged = with_resources_replaced(spec, template.spec, merged)
    return {"metadata": metadata, "spec": merged}


def container(
    game: GameContext,
    name: str,
    image: str,
    *,
    variables: Sequence[EnvironmentVariable] = (),
    own_resources: Resources | None = None,
    **fields: Any,
) -> Manifest:
    """Return a container. Its termination message is quoted in the game's conditions.

    Args:
        variables: those that the author gives this role.
        own_resources: what the author gives this role.
    """
    found: Manifest = {
        "name": name,
        "image": image,
        "securityContext": container_security(),
        "terminationMessagePath": TERMINATION_LOG,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        **fields,
    }
    if game.arbitrary_user and all(each["name"] != "USER" for each in found.get("env", [])):
        # PyTorch reads the user's name, and this user is not in the image.
        found["env"] = [*found.get("env", []), value("USER", "swarmgame")]
    found = container_with(game.pod_levels, found)
    if variables:
        found["env"] = merge(found.get("env", []), [dump_variable(each) for each in variables], "env")
    own = [_dump(own_resources)] if own_resources is not None else []
    levels = [*(_dump(level.resources) for level in game.pod_levels), *own]
    if any(levels):
        found["resources"] = resources_of([found.get("resources", {}), *levels])
    if game.defaults.image_pull_policy:
        found["imagePullPolicy"] = game.defaults.image_pull_policy
    return found


def _dump(resources: Resources) -> dict[str, dict[str, str]]:
    both = {"limits": dict(resources.limits), "requests": dict(resources.requests)}
    return {key: amounts for key, amounts in both.items() if amounts}


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
    it has answered once. They report nothing of a usual start or end: the first one waits inside the container, and a
    peer that finishes stays ready.
    """
    return {
        "startupProbe": waiting_probe(HTTP_PORT),
        "readinessProbe": http_probe("/readyz?stopping=ready", periodSeconds=5, failureThreshold=3, timeoutSeconds=5),
        "livenessProbe": http_probe("/healthz", periodSeconds=20, failureThreshold=6, timeoutSeconds=10),
    }


def waiting_probe(port: int) -> Manifest:
    """Return a startup probe that waits until the container is ready, and at most nine minutes: then it succeeds if the
    container is alive. Each failure of a probe is a Warning event, so one that is repeated warns at every start.
    """
    command = ["python", "-c", _WAIT, str(port), str(STARTUP_WAIT_SECONDS)]
    return {
        "exec": {"command": command},
        "periodSeconds": STARTUP_PERIOD_SECONDS,
        "failureThreshold": STARTUP_ATTEMPTS,
        "timeoutSeconds": STARTUP_WAIT_SECONDS + 30,
    }


_WAIT = """\
import http.client, sys, time
port, end = int(sys.argv[1]), time.monotonic() + float(sys.argv[2])
def answers(path):
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
while not answers("/readyz"):
    if time.monotonic() > end:
        sys.exit(not answers("/healthz"))
    time.sleep(0.5)
"""


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


def threads(game: GameContext, name: str, variable: str = "OMP_NUM_THREADS") -> Manifest:
    """Return OMP_NUM_THREADS: the container's requested CPUs; 1 if it requests none, because several peers may share
    the node, and threads that spin for each other's CPUs are slower than one.

    Args:
        variable: has the number of CPUs instead, where they are shared between processes that the pod counts.
    """
    own = game.spec.peers.resources
    found = resources_of(_dump(each) for each in (*(level.resources for level in game.pod_levels), own))
    limits, requests = found.get("limits", {}), found.get("requests", {})
    if "cpu" not in {**limits, **requests}:
        return value("OMP_NUM_THREADS", "1")
    kind = "requests.cpu" if "cpu" in requests else "limits.cpu"
    return {
        "name": variable,
        "valueFrom": {"resourceFieldRef": {"containerName": name, "resource": kind, "divisor": "1"}},
    }
