"""The cluster itself works: pods, names, Services, logs, exec, claims, and the project's images."""

from __future__ import annotations

import json
import urllib.request

import pytest
from clusters import WEB_PORT, Cluster, Namespace
from pods import finished, pod
from polling import until

FETCH = """
import time, urllib.request
end = time.monotonic() + 90
while True:  # a pod is ready before every node routes its Service to it
    try:
        print(urllib.request.urlopen("http://web/hostname", timeout=10).read().decode())
        break
    except OSError:
        if time.monotonic() > end:
            raise
        time.sleep(0.5)
"""


def test_a_service_is_found_by_name_and_reached_from_a_pod_and_from_the_host(
    cluster: Cluster, namespace: Namespace
) -> None:
    image = cluster.images["operator"]
    ready = {"container": {"readinessProbe": {"tcpSocket": {"port": 8000}, "periodSeconds": 1}}}
    port = {"port": 80, "targetPort": 8000, "nodePort": WEB_PORT}
    ports = {"selector": {"app": "server"}, "ports": [port], "type": "NodePort"}
    namespace.apply(
        pod("server", image, "python3", "-u", "-m", "http.server", "--directory", "/etc", "8000", **ready),
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": ports},
    )
    namespace.kubectl("wait", "pod/server", "--for=condition=Ready", "--timeout=180s", seconds=200.0)
    namespace.apply(pod("client", image, "python3", "-c", FETCH))
    assert finished(namespace, "client").strip() == "server"

    def answer() -> bytes:
        try:
            return bytes(urllib.request.urlopen(f"http://{cluster.address}:{WEB_PORT}/hostname", timeout=10).read())
        except OSError:  # this node may learn of the Service later than the client's
            return b""

    assert until(answer, 90).strip() == b"server"
    assert "GET /hostname" in namespace.kubectl("logs", "server")
    assert namespace.kubectl("exec", "server", "--", "id", "-u").strip() == "65532"


def test_the_api_server_is_reached_from_a_pod_by_its_service(cluster: Cluster, namespace: Namespace) -> None:
    fetch = """
import ssl, urllib.request
account = "/var/run/secrets/kubernetes.io/serviceaccount/"
bearer = {"Authorization": "Bearer " + open(account + "token").read()}
request = urllib.request.Request("https://kubernetes.default.svc/version", headers=bearer)
context = ssl.create_default_context(cafile=account + "ca.crt")
print(urllib.request.urlopen(request, context=context, timeout=10).read().decode())
"""
    namespace.apply(pod("client", cluster.images["operator"], "python3", "-c", fetch))
    assert json.loads(finished(namespace, "client"))["major"] == "1"


def test_a_claim_is_a_folder_that_the_pods_group_can_write(cluster: Cluster, namespace: Namespace) -> None:
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]
    mounts = {"volumeMounts": [{"name": "data", "mountPath": "/data"}]}
    namespace.apply(
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"}, "spec": claim},
        pod(
            "writer",
            cluster.images["operator"],
            "sh",
            "-c",
            "echo kept > /data/file && ls -ln /data/file",
            container=mounts,
            volumes=volumes,
        ),
    )
    finished(namespace, "writer")
    namespace.apply(pod("reader", cluster.images["operator"], "cat", "/data/file", container=mounts, volumes=volumes))
    assert finished(namespace, "reader").strip() == "kept"


def test_a_pod_that_runs_as_root_is_refused(cluster: Cluster, namespace: Namespace) -> None:
    body = dict(pod("root", cluster.images["operator"], "true"))
    body["spec"] = {**body["spec"], "securityContext": {"runAsUser": 0}}
    done = cluster.try_kubectl("--namespace", namespace.name, "apply", "-f", "-", stdin=json.dumps(body))
    assert done.returncode != 0
    assert "violates PodSecurity" in done.stderr


@pytest.mark.parametrize(
    ("name", "arguments", "printed"), [("worker", ["--help"], "peer"), ("chain", ["--version"], "anvil")]
)
def test_an_image_starts_without_root_on_a_read_only_file_system(
    cluster: Cluster, namespace: Namespace, name: str, arguments: list[str], printed: str
) -> None:
    body = dict(pod("once", cluster.images[name]))
    container = {
        **body["spec"]["containers"][0],
        "args": arguments,
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    del container["command"]
    body["spec"] = {**body["spec"], "containers": [container], "volumes": [{"name": "tmp", "emptyDir": {}}]}
    namespace.apply(body)
    assert printed in finished(namespace, "once")


def test_the_operators_image_has_operator_and_gateway_but_no_torch(cluster: Cluster, namespace: Namespace) -> None:
    inspect = (
        "import importlib.util as u, shutil, swarmgame_operator.main; "
        "print(bool(u.find_spec('torch')), shutil.which('swarmgame-gateway'))"
    )
    namespace.apply(pod("inspect", cluster.images["operator"], "python3", "-c", inspect))
    assert finished(namespace, "inspect").split() == ["False", "/opt/swarmgame/bin/swarmgame-gateway"]
