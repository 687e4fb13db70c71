"""Network policies: kube-router's firewall as a process of this host, which writes them as rules of iptables and ipset.

Only its firewall runs: the bridge routes, and kube-proxy has the Services. kube-network-policies, which kind uses, gets
packets through the kernel's nft_queue, which not every kernel has. Invariant: `tear_down` removes every rule and set of
kube-router, and no other.
"""

from __future__ import annotations

import re
import subprocess

from native_cluster import control_plane, daemons
from native_cluster.node import NAME
from native_cluster.tools import tool

PROGRAMS = ("iptables", "ipset")
_USER = "system:kube-router"
_RULES = re.compile(r"\bKUBE-(ROUTER|POD-FW|NWPLCY)-")
_SETS = re.compile(r"^KUBE-(SRC|DST)-")


class PoliciesFailed(Exception):
    """The rules could not be read or removed. The message has the command that failed."""


def start(plane: control_plane.ControlPlane) -> daemons.Daemon:
    """Start kube-router; the node and the objects of `objects` must exist."""
    kubeconfig = plane.authority.kubeconfig(plane.directory / "kubeconfig-kube-router", plane.url, _USER)
    (health,) = control_plane.free_ports(1)
    arguments = [
        f"--kubeconfig={kubeconfig}",
        f"--hostname-override={NAME}",
        "--run-firewall=true",
        "--run-router=false",
        "--run-service-proxy=false",
        f"--service-cluster-ip-range={control_plane.SERVICES}",
        f"--health-port={health}",
        "--v=1",
    ]
    daemon = daemons.start("kube-router", [tool("kube-router"), *arguments], plane.directory)
    daemon.wait(control_plane.answers(f"http://127.0.0.1:{health}/healthz"), 30.0)
    return daemon


def tear_down() -> None:
    """Remove what a stopped kube-router left. Can be called without it."""
    saved = _output("iptables-save", "--table", "filter")
    kept = without_rules(saved)
    if kept != saved:
        _output("iptables-restore", "--table", "filter", stdin=kept)
    if is_empty(kept):
        # iptables made the table for kube-router; where the older kernel interface is used there is none.
        subprocess.run(["nft", "delete", "table", "ip", "filter"], capture_output=True, check=False)
    for name in _output("ipset", "list", "-name").split():
        if _SETS.match(name):
            _output("ipset", "destroy", name)


def without_rules(saved: str) -> str:
    """Return the output of iptables-save without kube-router's chains, and without rules in or to them."""
    return "".join(line for line in saved.splitlines(keepends=True) if not _RULES.search(line))


def is_empty(saved: str) -> bool:
    """Return whether a table has no rule, no chain of its own, and no other policy than ACCEPT."""
    lines = [line.split() for line in saved.splitlines() if line.startswith((":", "-"))]
    return all(len(line) > 1 and line[0].startswith(":") and line[1] == "ACCEPT" for line in lines)


def objects() -> list[dict[str, object]]:
    """Return its rights: to read what the rules are made of."""
    group = "rbac.authorization.k8s.io"
    rules = [
        {
            "apiGroups": [""],
            "resources": ["namespaces", "pods", "services", "nodes", "endpoints"],
            "verbs": ["get", "list", "watch"],
        },
        {"apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"]},
    ]
    return [
        {"apiVersion": f"{group}/v1", "kind": "ClusterRole", "metadata": {"name": _USER}, "rules": rules},
        {
            "apiVersion": f"{group}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": _USER},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": _USER},
            "subjects": [{"apiGroup": group, "kind": "User", "name": _USER}],
        },
    ]


def _output(*command: str, stdin: str | None = None) -> str:
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""  # without the program there are no rules of it
    if done.returncode != 0:
        raise PoliciesFailed(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
    return done.stdout
