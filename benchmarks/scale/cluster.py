"""A cluster without nodes: a real API server and controllers, and kwok in place of kubelets.

An admission policy binds pods at creation, because a scheduler would only cost time here, and kwok reports them as
running and ready at once. All pods have one address of this host, where `scale.peers` answers like a peer. Invariant:
the operator watches a real API server, and no part of the operator is replaced.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from native_cluster import control_plane, daemons
from native_cluster.control_plane import ControlPlane, answers, free_ports, manager_arguments
from native_cluster.tools import tool

POD_ADDRESS = "127.64.0.1"
"""Loopback, so that a request to a pod reaches this host; endpoint controllers refuse it, and do not run.
"""
NAMESPACES = tuple(f"team-{number:02}" for number in range(20))
OPERATOR = "system:serviceaccount:swarmgame-system:swarmgame"
NICE = ("nice", "-n", "10")
"""For processes that run on other machines than the operator and the API server in a real cluster."""
_PARALLEL = {
    "apiVersion": "config.kwok.x-k8s.io/v1alpha1",
    "kind": "KwokConfiguration",
    # By default 4: on a busy machine 18,000 pods would take an hour to become ready. The two options must be set
    # together.
    "options": {"podPlayStageParallelism": 64, "nodePlayStageParallelism": 4},
}
SIZED = ("--max-requests-inflight=16", "--max-mutating-requests-inflight=16")
"""Limits of the API server for two cores. Its defaults are for many more, and turn the machine into a queue."""
OTHERS = ("system:kube-controller-manager", "kwok")
WRITTEN = (
    *("swarmgames", "jobs", "deployments", "statefulsets", "services", "configmaps", "secrets"),
    *("persistentvolumeclaims", "networkpolicies", "events"),
)
"""The kinds that the operator writes. kwok and the controllers write pods, and leases."""
CONTROLLERS = ("job-controller", "deployment-controller", "replicaset-controller")


@dataclass(frozen=True)
class Cluster:
    """A running cluster."""

    plane: ControlPlane
    operator_kubeconfig: Path
    directory: Path

    def writes(self) -> int:
        """Return how many writes of the operator's kinds the API server has counted, whoever made them."""
        text = _kubectl(self.plane, "get", "--raw", "/metrics")
        return sum(
            int(float(line.rpartition(" ")[2]))
            for line in text.splitlines()
            if line.startswith("apiserver_request_total{")
            and 'dry_run=""' in line
            and any(f'resource="{kind}"' in line for kind in WRITTEN)
            and any(f'verb="{verb}"' in line for verb in ("POST", "PUT", "PATCH", "APPLY", "DELETE"))
        )


@contextmanager
def cluster(directory: Path) -> Iterator[Cluster]:
    """Run a cluster while the block runs."""
    plane = control_plane.start(directory, with_parent=True, api_server_options=SIZED)
    started: list[daemons.Daemon] = []
    try:
        _kubectl(
            plane, "create", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": _objects()})
        )
        started.append(_controllers(plane))
        started.append(_kwok(plane))
        kubeconfig = plane.kubeconfig_of(OPERATOR, ["system:serviceaccounts", "system:authenticated"])
        yield Cluster(plane, kubeconfig, directory)
    finally:
        for daemon in reversed(started):
            daemon.stop()
        plane.stop()


def _kubectl(plane: ControlPlane, *arguments: str, stdin: str = "") -> str:
    command = [str(tool("kubectl")), "--kubeconfig", str(plane.kubeconfig), *arguments]
    return subprocess.run(command, input=stdin, text=True, check=True, stdout=subprocess.PIPE).stdout


def _objects() -> list[dict[str, Any]]:
    """Return the objects of the empty cluster, in order of creation."""
    named = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in NAMESPACES]
    nodes = [{"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}} for name in NAMESPACES]
    users = [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name} for name in (OPERATOR, *OTHERS)]
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "operator"},
        "roleRef": role,
        "subjects": users,
    }
    return [*named, *nodes, binding, *_binding_at_admission(), *_smallest_share()]


def _binding_at_admission() -> list[dict[str, Any]]:
    """Return the policy that binds a pod to the node with its namespace's name."""
    api = "admissionregistration.k8s.io/v1"
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    patch = '[JSONPatch{op: "add", path: "/spec/nodeName", value: request.namespace}]'
    policy = {
        "failurePolicy": "Fail",
        "reinvocationPolicy": "Never",
        "matchConstraints": {"resourceRules": [rule]},
        "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": patch}}],
    }
    return [
        {"apiVersion": api, "kind": "MutatingAdmissionPolicy", "metadata": {"name": "bound"}, "spec": policy},
        {
            "apiVersion": api,
            "kind": "MutatingAdmissionPolicyBinding",
            "metadata": {"name": "bound"},
            "spec": {"policyName": "bound"},
        },
    ]


def give_way(plane: ControlPlane, *, others: bool) -> None:
    """Give the controllers the smallest share of the API server (`others`) while games arrive, a large one after."""
    shares = json.dumps({"spec": {"limited": {"nominalConcurrencyShares": 1 if others else 400}}})
    _kubectl(plane, "patch", "prioritylevelconfiguration", "others", "--type=merge", "--patch", shares)


def _smallest_share() -> list[dict[str, Any]]:
    """Return a level of priority and fairness with the smallest share, for the controllers and kwok."""
    api, name = "flowcontrol.apiserver.k8s.io/v1", "others"
    queues = {"queues": 2, "handSize": 1, "queueLengthLimit": 1000}
    limited = {
        "nominalConcurrencyShares": 1,
        "lendablePercent": 0,
        "borrowingLimitPercent": 0,
        "limitResponse": {"type": "Queue", "queuing": queues},
    }
    subjects = [{"kind": "User", "user": {"name": each}} for each in OTHERS]
    everything = [{"apiGroups": ["*"], "clusterScope": True, "namespaces": ["*"], "resources": ["*"], "verbs": ["*"]}]
    schema = {
        "priorityLevelConfiguration": {"name": name},
        "matchingPrecedence": 100,
        "distinguisherMethod": {"type": "ByUser"},
        "rules": [{"subjects": subjects, "resourceRules": everything}],
    }
    return [
        {
            "apiVersion": api,
            "kind": "PriorityLevelConfiguration",
            "metadata": {"name": name},
            "spec": {"type": "Limited", "limited": limited},
        },
        {"apiVersion": api, "kind": "FlowSchema", "metadata": {"name": name}, "spec": schema},
    ]


def _controllers(plane: ControlPlane) -> daemons.Daemon:
    """Start the controllers that make pods, without client-side rate limits."""
    plane.authority.kubeconfig(plane.directory / "kubeconfig-manager", plane.url, OTHERS[0])
    (port,) = free_ports(1)
    arguments = [
        *manager_arguments(plane.directory, port),
        f"--controllers={','.join(CONTROLLERS)}",
        "--use-service-account-credentials=false",
        "--kube-api-qps=2000",
        "--kube-api-burst=4000",
        "--concurrent-job-syncs=16",
        "--concurrent-deployment-syncs=8",
        "--concurrent-replicaset-syncs=8",
    ]
    daemon = daemons.start(
        "kube-controller-manager",
        [*NICE, tool("kube-controller-manager"), *arguments],
        plane.directory,
        with_parent=True,
    )
    daemon.wait(answers(f"https://127.0.0.1:{port}/healthz"), 60.0)
    return daemon


def _kwok(plane: ControlPlane) -> daemons.Daemon:
    config = plane.directory / "kwok.yaml"
    config.write_text(yaml.safe_dump_all([_PARALLEL, *_stages()]), encoding="utf-8")
    (port,) = free_ports(1)
    arguments = [
        f"--kubeconfig={plane.kubeconfig_of(OTHERS[1])}",
        f"--config={config}",
        "--manage-all-nodes=true",
        "--node-lease-duration-seconds=0",
        f"--server-address=127.0.0.1:{port}",
        "--v=WARN",
    ]
    daemon = daemons.start("kwok", [*NICE, tool("kwok"), *arguments], plane.directory, with_parent=True)
    daemon.wait(answers(f"http://127.0.0.1:{port}/healthz"), 60.0)
    return daemon


def _stages() -> list[dict[str, Any]]:
    """Return kwok's stages: nodes become ready, pods running and ready, and deleted pods are removed, in one step
    each. kwok's default stages would end a Job's pods at once.
    """
    now = "{{ Now | Quote }}"
    ready = [
        {"key": '.status.conditions.[] | select( .type == "Ready" ) | .status', "operator": "NotIn", "values": ["True"]}
    ]
    times = f"lastHeartbeatTime: {now}, lastTransitionTime: {now}"
    node = f'conditions:\n- {{type: Ready, status: "True", reason: KubeletReady, {times}}}\n'
    conditions = "".join(
        f'- {{type: {name}, status: "True", lastTransitionTime: {now}}}\n'
        for name in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
    )
    pod = (
        f"phase: Running\nstartTime: {now}\nhostIP: 10.0.0.1\npodIP: {POD_ADDRESS}\n"
        f"podIPs: [{{ip: {POD_ADDRESS}}}]\nconditions:\n{conditions}"
        "containerStatuses:\n{{ range .spec.containers }}"
        "- {name: {{ .name | Quote }}, image: {{ .image | Quote }}, ready: true, restartCount: 0, "
        f"state: {{running: {{startedAt: {now}}}}}}}\n"
        "{{ end }}initContainerStatuses:\n{{ range .spec.initContainers }}"
        "- {name: {{ .name | Quote }}, image: {{ .image | Quote }}, ready: true, restartCount: 0, "
        f"state: {{terminated: {{exitCode: 0, reason: Completed, startedAt: {now}, finishedAt: {now}}}}}}}\n"
        "{{ end }}"
    )
    alive = {"key": ".metadata.deletionTimestamp", "operator": "DoesNotExist"}
    pending = {"key": ".status.phase", "operator": "In", "values": ["Pending"]}
    gone = {"key": ".metadata.deletionTimestamp", "operator": "Exists"}
    return [
        _stage("node-ready", "Node", ready, {"statusTemplate": node}),
        _stage("pod-ready", "Pod", [alive, pending], {"statusTemplate": pod}),
        _stage("pod-gone", "Pod", [gone], {"finalizers": {"empty": True}, "delete": True}),
    ]


def _stage(name: str, kind: str, match: list[dict[str, Any]], next_step: dict[str, Any]) -> dict[str, Any]:
    spec = {"resourceRef": {"apiGroup": "v1", "kind": kind}, "selector": {"matchExpressions": match}, "next": next_step}
    return {"apiVersion": "kwok.x-k8s.io/v1alpha1", "kind": "Stage", "metadata": {"name": name}, "spec": spec}
