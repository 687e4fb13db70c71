"""Fixtures with a whole cluster: `cluster` (one a session) and `namespace` (one a test, where restricted pod security
is enforced).

`--cluster` says which: kind, current (the kubeconfig that kubectl would use), native (Kubernetes' own programs on this
host), or auto: kind when its node image is there, else native when its programs and root are. Without any, tests are
skipped by name, and in CI (CI=true) they fail.
"""

from __future__ import annotations

import json
import os
import shutil
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

KIND_NAME = "swarmgame-e2e"
KIND_SCRIPTS = Path(__file__).resolve().parents[1] / "kind"
RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}


@dataclass(frozen=True)
class Cluster:
    """A cluster that runs pods.

    Args:
        kind: kind, current or native.
        kubeconfig: of an administrator.
        images: of the project, by name (operator, worker, chain), which the nodes have.
        address: of a node, where NodePorts are reached from this host.
    """

    kind: str
    kubeconfig: Path
    images: Mapping[str, str]
    address: str

    def client(self, user: str | None = None, group: str | None = None) -> client.ApiClient:
        """A client of the official package, as the administrator or impersonating somebody."""
        from kubernetes import config

        made = config.new_client_from_config(config_file=str(self.kubeconfig))
        for header, value in (("Impersonate-User", user), ("Impersonate-Group", group)):
            if value is not None:
                made.set_default_header(header, value)
        return made

    def kubectl(self, *words: str, stdin: str | None = None, check: bool = True, seconds: float = 120.0) -> str:
        """What kubectl prints.

        Raises:
            AssertionError: it failed; with what it said.
        """
        done = self.try_kubectl(*words, stdin=stdin, seconds=seconds)
        assert done.returncode == 0 or not check, f"kubectl {' '.join(words)}: {done.stderr.strip()}"
        return done.stdout

    def try_kubectl(
        self, *words: str, stdin: str | None = None, seconds: float = 120.0
    ) -> subprocess.CompletedProcess[str]:
        """The same, whatever comes of it."""
        command = [_kubectl(), "--kubeconfig", str(self.kubeconfig), *words]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=seconds, check=False)

    def get(self, *words: str) -> dict[str, Any]:
        """An object, or a list of objects, as the API server gives it."""
        return dict(json.loads(self.kubectl("get", *words, "-o", "json")))


@dataclass(frozen=True)
class Namespace:
    """A namespace of a test's own."""

    cluster: Cluster
    name: str = field(default_factory=lambda: f"e2e-{uuid.uuid4().hex[:8]}")

    def __str__(self) -> str:
        return self.name

    def kubectl(self, *words: str, stdin: str | None = None, check: bool = True, seconds: float = 120.0) -> str:
        return self.cluster.kubectl("--namespace", self.name, *words, stdin=stdin, check=check, seconds=seconds)

    def get(self, *words: str) -> dict[str, Any]:
        return self.cluster.get("--namespace", self.name, *words)

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """Creates or changes objects."""
        self.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))

    def describe(self) -> str:
        """What a person would look at first when something is wrong here."""
        parts = [self.kubectl("get", "sg,jobs,deployments,statefulsets,pods,services,pvc", "-o", "wide", check=False)]
        parts.append(self.kubectl("get", "events", "--sort-by=.lastTimestamp", check=False))
        for pod in self.get("pods")["items"]:
            name = pod["metadata"]["name"]
            log = self.kubectl("logs", name, "--all-containers", "--tail=30", "--prefix", check=False)
            parts.append(f"--- {name}\n{log}")
        return "\n".join(parts)


def pytest_addoption(parser: pytest.Parser) -> None:
    choices = ("auto", "kind", "current", "native")
    parser.addoption("--cluster", choices=choices, default="auto", help="where tests of the cluster layer run")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[Any]:
    """A failed test shows what was in its namespace."""
    report = yield
    namespace = getattr(item, "funcargs", {}).get("namespace")
    if report.when == "call" and report.failed and isinstance(namespace, Namespace):
        report.sections.append((f"namespace {namespace}", namespace.describe()))
    return report


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """The cluster that --cluster names. One that is started here is ended here; one that runs already stays."""
    wanted = str(request.config.getoption("--cluster"))
    chosen = _choose() if wanted == "auto" else wanted
    if chosen == "native":
        yield from _native()
    elif chosen == "kind":
        yield _kind()
    else:
        yield _current()


@pytest.fixture(scope="session")
def removed(cluster: Cluster) -> Iterator[list[Namespace]]:
    """Namespaces that tests have left; the session ends when all are gone, and fails if one stays."""
    left: list[Namespace] = []
    yield left
    for each in left:
        remove_namespace(each)


@pytest.fixture
def namespace(cluster: Cluster, removed: list[Namespace]) -> Iterator[Namespace]:
    """A new namespace in which pods must be restricted. When the test is over its games and pods end, while there is
    still an operator that could say good-bye to them; the rest goes in the background."""
    made = new_namespace(cluster)
    yield made
    removed.append(made)
    # Games first: a namespace deletes pods first of all, and looks again only after their grace period.
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
    """Makes one more, for tests that need two; remove it with `remove_namespace`."""
    made = Namespace(cluster)
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": made.name, "labels": RESTRICTED}}
    cluster.kubectl("create", "-f", "-", stdin=json.dumps(body))
    until(lambda: made.kubectl("get", "serviceaccount", "default", "--ignore-not-found", "-o", "name"))
    return made


def remove_namespace(namespace: Namespace) -> None:
    """Deletes it and waits until it is gone."""
    namespace.cluster.kubectl(
        "delete", "namespace", namespace.name, "--ignore-not-found", "--timeout=180s", seconds=200.0
    )


def _choose() -> str:
    if shutil.which("docker") and shutil.which("kind") and _kind_node_image():
        return "kind"
    absent = tools.missing([*tools.API_SERVER, *tools.NODE])
    if os.geteuid() == 0 and not absent:
        return "native"
    reason = "there is no cluster: no kind node image, and " + (
        f"{', '.join(absent)} not built (make cluster-tools)" if absent else "no root"
    )
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason} (in CI nothing is skipped)")
    pytest.skip(reason)


def _native() -> Iterator[Cluster]:
    was_up = native.is_up()
    kubeconfig = native.up()
    try:
        absent = [name for name in docker.IMAGES if not native.has_image(name)]
        if absent:
            pytest.fail(f"the cluster lacks the images {', '.join(absent)}: run `make cluster-load`")
        yield Cluster("native", kubeconfig, docker.IMAGES, network.ADDRESS)
    finally:
        if not was_up:
            native.down()


def _kind() -> Cluster:
    done = subprocess.run([KIND_SCRIPTS / "up.sh", KIND_NAME], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.fail(f"kind did not come up:\n{done.stdout}\n{done.stderr}")
    kubeconfig = tools.cache_directory() / "kind" / "kubeconfig"
    return Cluster("kind", kubeconfig, docker.IMAGES, _node_address(kubeconfig))


def _current() -> Cluster:
    kubeconfig = Path(os.environ.get("KUBECONFIG", Path.home() / ".kube" / "config"))
    if not kubeconfig.exists():
        pytest.fail(f"--cluster=current needs a kubeconfig; {kubeconfig} does not exist")
    images = {
        name: os.environ.get(f"SWARMGAME_E2E_{name.upper()}_IMAGE", image) for name, image in docker.IMAGES.items()
    }
    return Cluster("current", kubeconfig, images, _node_address(kubeconfig))


def _kind_node_image() -> bool:
    done = subprocess.run(["docker", "images", "--quiet", "kindest/node"], capture_output=True, text=True, check=False)
    return done.returncode == 0 and done.stdout.strip() != ""


def _node_address(kubeconfig: Path) -> str:
    path = "{.items[0].status.addresses[?(@.type=='InternalIP')].address}"
    command = [_kubectl(), "--kubeconfig", str(kubeconfig), "get", "nodes", "-o", f"jsonpath={path}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _kubectl() -> str:
    return shutil.which("kubectl") or str(tools.tool("kubectl"))
