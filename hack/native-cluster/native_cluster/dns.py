"""Names inside the cluster: CoreDNS as a process of this host, behind the Service that pods use.

It answers only the cluster's names: a name outside does not exist, and the answer comes at once.
"""

from __future__ import annotations

from native_cluster import control_plane, daemons, network
from native_cluster.node import DNS_SERVICE
from native_cluster.tools import tool

_USER = "system:coredns"


def start(plane: control_plane.ControlPlane) -> daemons.Daemon:
    """Start CoreDNS; the objects of `objects` must exist."""
    directory = plane.directory
    kubeconfig = plane.authority.kubeconfig(directory / "kubeconfig-coredns", plane.url, _USER)
    (health,) = control_plane.free_ports(1)
    corefile = directory / "Corefile"
    corefile.write_text(
        f""".:53 {{
    bind {network.ADDRESS}
    errors
    ready 127.0.0.1:{health}
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {kubeconfig}
        pods insecure
        ttl 2
    }}
    cache 2
}}
"""
    )
    daemon = daemons.start("coredns", [tool("coredns"), "-conf", corefile], directory)
    daemon.wait(control_plane.answers(f"http://127.0.0.1:{health}/ready"), 30.0)
    return daemon


def objects() -> list[dict[str, object]]:
    """Return the Service with its endpoint, and CoreDNS' rights."""
    metadata = {"name": "kube-dns", "namespace": "kube-system", "labels": {"k8s-app": "kube-dns"}}
    ports = [
        {"name": name, "port": 53, "protocol": protocol} for name, protocol in (("dns", "UDP"), ("dns-tcp", "TCP"))
    ]
    rules = [
        {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ]
    group = "rbac.authorization.k8s.io"
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"clusterIP": DNS_SERVICE, "ports": ports},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {**metadata, "labels": {"kubernetes.io/service-name": "kube-dns"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [network.ADDRESS], "conditions": {"ready": True}}],
            "ports": ports,
        },
        {"apiVersion": f"{group}/v1", "kind": "ClusterRole", "metadata": {"name": _USER}, "rules": rules},
        {
            "apiVersion": f"{group}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": _USER},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": _USER},
            "subjects": [{"apiGroup": group, "kind": "User", "name": _USER}],
        },
    ]
