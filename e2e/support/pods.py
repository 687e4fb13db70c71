"""Pods of the tests' own, under restricted pod security: programs that run to their end, and servers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from clusters import Namespace
from polling import until

RESTRICTED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}
IDENTITY = {
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "runAsGroup": 65532,
    "fsGroup": 65532,
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONNECT = """
import json, socket, sys, time
def opens(address):
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
    except OSError:
        return False
    return True
expected = set(json.loads(sys.argv[1]))
end = time.monotonic() + 90
while True:  # a policy and a pod's address take a moment to reach the node's rules
    found = [each for each in sys.argv[2:] if opens(each)]
    if set(found) == expected or time.monotonic() > end:
        break
    time.sleep(1)
print(json.dumps(found))
"""
"""Prints which of its addresses accept a TCP connection, at the latest after 90 s of tries to see what is expected."""


def pod(name: str, image: str, *command: str, labels: Mapping[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    """Return a pod with one container, `main`; `container` is merged into the container, the rest into the spec."""
    container = {
        "name": "main",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": list(command),
        "securityContext": RESTRICTED,
    }
    container |= spec.pop("container", {})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name, **(labels or {})}},
        "spec": {
            "securityContext": IDENTITY,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "containers": [container],
            **spec,
        },
    }


def finished(namespace: Namespace, name: str, seconds: float = 180.0) -> str:
    """Wait until a pod succeeds, and return its log."""
    phase = until(lambda: {"Succeeded", "Failed"} & {namespace.get("pod", name)["status"]["phase"]}, seconds).pop()
    log = namespace.kubectl("logs", name)
    assert phase == "Succeeded", log
    return log


def reached_by_pod(
    namespace: Namespace, labels: Mapping[str, str], addresses: Sequence[str], *, expected: Sequence[str]
) -> list[str]:
    """Return the addresses that a new pod with these labels can connect to; the pod is deleted."""
    image = namespace.cluster.images["operator"]
    command = ("python3", "-c", CONNECT, json.dumps(list(expected)), *addresses)
    namespace.apply(pod("probe", image, *command, labels=labels))
    try:
        return list(json.loads(finished(namespace, "probe", 240.0)))
    finally:
        namespace.kubectl("delete", "pod", "probe", "--wait=true")


def reached_from(
    namespace: Namespace, name: str, container: str, addresses: Sequence[str], *, expected: Sequence[str]
) -> list[str]:
    """Return the addresses that a running pod can connect to."""
    command = ("python3", "-c", CONNECT, json.dumps(list(expected)), *addresses)
    return list(json.loads(namespace.kubectl("exec", name, "-c", container, "--", *command, seconds=240.0)))
