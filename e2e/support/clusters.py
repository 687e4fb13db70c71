"""Fixtures with a cluster: `cluster` (one per session) and `namespace` (one per test, with restricted pod security).

`--cluster` chooses: kind, current (the kubeconfig that kubectl would use), native (Kubernetes' programs on this host),
or auto, which `hack/e2e-cluster.sh` decides. Without a cluster tests are skipped with a reason; in CI (CI=true) they
fail.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from polling import until

from native_cluster import cluster as native
from native_cluster import docker, network, tools

if TYPE_CHECKING:  # these take a second to import, which every run of pytest would pay
    from kubernetes import client

HACK = Path(__file__).resolve().parents[2] / "hack"
WEB_PORT, P2P_PORT = 31990, 31991
"""Node ports of the tests' Services. On kind this host reaches no other: `hack/kind/cluster.yaml` maps them."""
RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}


@dataclass(frozen=True)
class Cluster:
    """A cluster that runs pods.

    Args:
        kind: kind, current or native.
        kubeconfig: an administrator's.
        images: the project's images on the nodes, by name (operator, worker, chain).
        address: where this host reaches WEB_PORT and P2P_PORT of the nodes.
        host: this host's address for pods.
    """

    kind: str
    kubeconfig: Path
    images: Mapping[str, str]
    address: str
    host: str

    def client(self, user: str | None = None, group: str | None = None) -> client.ApiClient:
        """Return a client of the official package, as the administrator or impersonating a user."""
        from kubernetes import config

        made = config.new_client_from_config(config_file=str(self.kubeconfig))
        for header, value in (("Impersonate-User", user), ("Impersonate-Group", group)):
            if value is not None:
                made.set_default_header(header, value)
        return made

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True, seconds: float = 120.0) -> str:
        """Run kubectl and return its output.

        Raises:
            AssertionError: it failed; with its error output.
        """
        done = self.try_kubectl(*arguments, stdin=stdin, seconds=seconds)
        assert done.returncode == 0 or not check, f"kubectl {' '.join(arguments)}: {done.stderr.strip()}"
        return done.stdout

    def try_kubectl(
        self, *arguments: str, stdin: str | None = None, seconds: float = 120.0
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl and return the finished process, whatever its exit code."""
        command = [program("kubectl"), "--kubeconfig", str(self.kubeconfig), *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=seconds, check=False)

    def get(self, *arguments: str) -> dict[str, Any]:
        """Return an object, or a list of objects, as the API server stores it."""
        return dict(json.loads(self.kubectl("get", *arguments, "-o", "json")))


@dataclass(frozen=True)
class Namespace:
    """A namespace of one test."""

    cluster: Cluster
    name: str = field(default_factory=lambda: f"e2e-{uuid.uuid4().hex[:8]}")

    def __str__(self) -> str:
        return self.name

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True, seconds: float = 120.0) -> str:
        return self.cluster.kubectl("--namespace", self.name, *arguments, stdin=stdin, check=check, seconds=seconds)

    def get(self, *arguments: str) -> dict[str, Any]:
        return self.cluster.get("--namespace", self.name, *arguments)

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """Create or change objects."""
        self.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))

    def describe(self) -> str:
        """Return the state of the namespace for a failure message: objects, events and logs."""
        parts = [self.kubectl("get", "sg,jobs,deployments,statefulsets,pods,services,pvc", "-o", "wide", check=False)]
        parts.append(self.kubectl("get", "events", "--sort-by=.lastTimestamp", check=False))
        for pod in self.get("pods")["items"]:
            name = pod["metadata"]["name"]
            log = self.kubectl("logs", name, "--all-containers", "--tail=30", "--prefix", check=False)
            parts.append(f"--- {name}\n{log}")
        return "\n".join(parts)


def pytest_addoption(parser: pytest.Parser) -> None:
    choices = ("auto", "kind", "current", "native")
    parser.addoption("--cluster", choices=choices, default="auto", help="the cluster of the cluster layer")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[Any]:
    """Add the state of the namespace to the report of a failed test."""
    report = yield
    namespace = getattr(item, "funcargs", {}).get("namespace")
    if report.when == "call" and report.failed and isinstance(namespace, Namespace):
        report.sections.append((f"namespace {namespace}", namespace.describe()))
    return report


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Return the cluster that --cluster names. A cluster that is started here is stopped here."""
    option = str(request.config.getoption("--cluster"))
    chosen = _choose() if option == "auto" else option
    if chosen == "native":
        yield from _native()
    elif chosen == "kind":
        yield _kind()
    else:
        yield _current()


@pytest.fixture(scope="session")
def removed(cluster: Cluster) -> Iterator[list[Namespace]]:
    """Collect the namespaces of finished tests. The session ends when all are deleted, and fails if one stays."""
    left: list[Namespace] = []
    yield left
    for each in left:
        remove_namespace(each)


@pytest.fixture
def namespace(cluster: Cluster, removed: list[Namespace]) -> Iterator[Namespace]:
    """Create a namespace with restricted pod security. After the test its games and pods are deleted, while the
    operator runs that removes their finalizers; the rest is deleted in the background."""
    made = new_namespace(cluster)
    yield made
    removed.append(made)
    # Games first: a namespace deletes pods before other objects, and checks again only after their grace period.
    made.kubectl("delete", "sg", "--all", "--wait=false", check=False)
    left = ("get", "pods,sg", "-l", "swarmgame.dev/game", "-o", "name")
    until(
        lambda: not (made.kubectl(*left, check=False) + made.kubectl("get", "sg", "-o", "name", check=False)),
        150.0,
        seen=made.describe,
    )
    made.cluster.kubectl("delete", "namespace", made.name, "--wait=false")
    until(lambda: not made.get("pods")["items"], 150.0, every=0.3, seen=made.describe)


def new_namespace(cluster: Cluster) -> Namespace:
    """Create another namespace; remove it with `remove_namespace`."""
    made = Namespace(cluster)
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": made.name, "labels": RESTRICTED}}
    cluster.kubectl("create", "-f", "-", stdin=json.dumps(body))
    until(lambda: made.kubectl("get", "serviceaccount", "default", "--ignore-not-found", "-o", "name"))
    return made


def remove_namespace(namespace: Namespace) -> None:
    """Delete a namespace and wait until it is gone."""
    namespace.cluster.kubectl(
        "delete", "namespace", namespace.name, "--ignore-not-found", "--timeout=180s", seconds=200.0
    )


def _choose() -> str:
    done = subprocess.run([HACK / "e2e-cluster.sh"], capture_output=True, text=True, check=True)
    chosen, why = done.stdout.strip(), done.stderr.strip()
    absent = tools.missing([*tools.API_SERVER, *tools.NODE]) if chosen == "native" else []
    if chosen == "kind" or (os.geteuid() == 0 and not absent):
        return chosen
    lacks = f"{', '.join(absent)} not built (make cluster-tools)" if absent else "it needs root"
    reason = f"there is no cluster. {why}; {lacks}"
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason} (CI skips no test)")
    pytest.skip(reason)


def _native() -> Iterator[Cluster]:
    was_up = native.is_up()
    kubeconfig = native.up()
    try:
        absent = [name for name in docker.IMAGES if not native.has_image(name)]
        if absent:
            pytest.fail(f"the cluster lacks the images {', '.join(absent)}: run `make cluster-load`")
        yield Cluster("native", kubeconfig, docker.IMAGES, network.ADDRESS, network.ADDRESS)
    finally:
        if not was_up:
            native.down()


def _kind() -> Cluster:
    kubeconfig = Path(_script("up.sh").splitlines()[-1])
    _script("load.sh")
    node = f"{os.environ.get('KIND_CLUSTER_NAME', 'swarmgame')}-control-plane"
    # As kind's own entry point finds the host: Docker Desktop's name, else the gateway of the node's network.
    desktop = _output("docker", "exec", node, "getent", "ahostsv4", "host.docker.internal", check=False).split()
    if desktop and not desktop[0].startswith("127."):
        host = desktop[0]
    else:
        host = _output("docker", "exec", node, "ip", "-4", "route", "show", "default").split()[2]
    return Cluster("kind", kubeconfig, docker.IMAGES, "127.0.0.1", host)


def _script(name: str) -> str:
    """Run a script of hack/kind and return its output. Its progress goes to this process's stderr."""
    done = subprocess.run([HACK / "kind" / name], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        pytest.fail(f"hack/kind/{name} ended with {done.returncode}; its messages are above")
    return done.stdout


def _current() -> Cluster:
    kubeconfig = Path(os.environ.get("KUBECONFIG", Path.home() / ".kube" / "config"))
    if not kubeconfig.exists():
        pytest.fail(f"--cluster=current needs a kubeconfig; {kubeconfig} does not exist")
    images = {
        name: os.environ.get(f"SWARMGAME_E2E_{name.upper()}_IMAGE", image) for name, image in docker.IMAGES.items()
    }
    address = _node_address(kubeconfig)
    return Cluster(
        "current", kubeconfig, images, address, os.environ.get("SWARMGAME_E2E_HOST") or _own_address(address)
    )


def _node_address(kubeconfig: Path) -> str:
    path = "{.items[0].status.addresses[?(@.type=='InternalIP')].address}"
    return _output(program("kubectl"), "--kubeconfig", str(kubeconfig), "get", "nodes", "-o", f"jsonpath={path}")


def _own_address(node: str) -> str:
    """Return this host's address on the way to a node."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # connecting a datagram socket sends nothing
        probe.connect((node, 9))
        return str(probe.getsockname()[0])


def _output(*command: str, check: bool = True) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=check).stdout.strip()


def program(name: str) -> str:
    """Return kubectl or helm: the one on the PATH, else the one that Go has built."""
    return shutil.which(name) or str(tools.tool(name))
