"""Games on a cluster, and the operator that runs them: the vocabulary of the tests in `e2e`.

`operator` installs both charts with helm, as the README does, into a namespace of its own, once per session. At the
end of the session `helm uninstall` must leave no object with the chart's label.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from clusters import RESTRICTED, Cluster, Namespace, program
from polling import until

from native_cluster import docker

CHARTS = Path(__file__).resolve().parents[2] / "charts"
SYSTEM = "swarmgame-system"
PLURAL = "swarmgames.swarmgame.dev"


@dataclass(frozen=True)
class Game:
    """A SwarmGame in a namespace."""

    namespace: Namespace
    name: str

    def read(self) -> dict[str, Any]:
        """Return the object as the API server stores it."""
        return self.namespace.get(PLURAL, self.name)

    @property
    def status(self) -> dict[str, Any]:
        return dict(self.read().get("status", {}))

    @property
    def round(self) -> int:
        return int(self.status.get("progress", {}).get("round", 0))

    def condition(self, kind: str) -> dict[str, str]:
        """Return a condition; empty while it does not exist."""
        return next((each for each in self.status.get("conditions", ()) if each["type"] == kind), {})

    def wait(self, kind: str, status: str = "True", reason: str = "", seconds: float = 180.0) -> dict[str, str]:
        """Wait until a condition has this status and, if given, this reason; return it.

        A condition may pass through several reasons of one status: Registered is True with PartlyRegistered before it
        is True with AllRegistered. A test that expects a reason therefore waits for it.
        """

        def reached() -> dict[str, str]:
            found = self.condition(kind)
            return found if found.get("status") == status and reason in ("", found.get("reason")) else {}

        return until(
            reached, seconds, every=0.3, seen=lambda: (self.status.get("conditions"), self.namespace.describe())
        )

    def wait_for_round(self, round: int, seconds: float = 180.0) -> int:
        """Wait until this many rounds are finished; return the number."""
        return until(
            lambda: self.round if self.round >= round else 0,
            seconds,
            every=0.5,
            seen=lambda: (self.status, self.namespace.describe()),
        )

    def pods(self, role: str = "peer") -> list[dict[str, Any]]:
        """Return its pods of a role that run or will run."""
        listed = self.namespace.get("pods", "-l", f"swarmgame.dev/game={self.name},swarmgame.dev/role={role}")["items"]
        return [
            pod
            for pod in listed
            if "deletionTimestamp" not in pod["metadata"] and pod["status"]["phase"] in ("Pending", "Running")
        ]

    def peers(self) -> dict[int, dict[str, Any]]:
        """Return its peers' pods by index."""
        return {int(pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"]): pod for pod in self.pods()}

    def patch(self, spec: Mapping[str, Any]) -> None:
        """Change the spec, as `kubectl patch` does."""
        self.namespace.kubectl("patch", PLURAL, self.name, "--type=merge", "-p", json.dumps({"spec": spec}))

    def of_peer(self, index: int, path: str = "status") -> Any:
        """Return the answer of a peer's HTTP endpoint, through the API server's proxy.

        Raises:
            AssertionError, KeyError: the peer does not answer, or has no pod.
        """
        pod = self.peers()[index]["metadata"]["name"]
        answer = self.namespace.cluster.kubectl(
            "get", "--raw", f"/api/v1/namespaces/{self.namespace}/pods/{pod}:8080/proxy/{path}"
        )
        return json.loads(answer)

    def wait_for_peer(self, index: int, seconds: float = 150.0) -> dict[str, Any]:
        """Return a peer's status once that peer is ready; a game can be Ready before each of its peers is."""

        def ready() -> dict[str, Any]:
            status = self.status_of_peer(index)
            return status if status.get("ready") else {}

        return until(ready, seconds, every=0.5, seen=self.namespace.describe)

    def wait_for_round_of_peer(self, index: int, round: int, seconds: float = 180.0) -> int:
        """Wait until a peer itself has finished this many rounds; return the number. The game's status is up to ten
        seconds older."""

        def finished() -> int:
            done = int(self.status_of_peer(index).get("rounds_finished", 0))
            return done if done >= round else 0

        return until(finished, seconds, every=0.5, seen=self.namespace.describe)

    def members(self, index: int) -> int:
        """Return the number of members that a peer sees; 0 while it does not answer."""
        return len(self.status_of_peer(index).get("members", ()))

    def identities(self) -> dict[int, str]:
        """Return the peer ids by index of the peers that answer."""
        statuses = {index: self.status_of_peer(index) for index in self.peers()}
        return {index: str(status["peer"]) for index, status in statuses.items() if status}

    def status_of_peer(self, index: int) -> dict[str, Any]:
        """Return a peer's status; empty while it does not answer."""
        try:
            return dict(self.of_peer(index))
        except (AssertionError, KeyError):
            return {}


def manifest(path: Path, **changes: Any) -> dict[str, Any]:
    """Read a manifest and merge fields into its spec, such as {"peers": {"replicas": 2}}."""
    body: dict[str, Any] = yaml.safe_load(path.read_text())
    _merge(body["spec"], changes)
    return body


def play(namespace: Namespace, path: Path, name: str = "", **changes: Any) -> Game:
    """Apply the changed manifest of a file, and return the game."""
    body = manifest(path, **changes)
    body["metadata"]["name"] = name or body["metadata"]["name"]
    namespace.apply(body)
    return Game(namespace, body["metadata"]["name"])


@dataclass(frozen=True)
class Installation:
    """The installed charts."""

    cluster: Cluster

    def helm(self, *arguments: str) -> str:
        """Run helm and return its output.

        Raises:
            AssertionError: it failed; with its error output.
        """
        environment = os.environ | {
            "KUBECONFIG": str(self.cluster.kubeconfig),
            "HELM_CACHE_HOME": "/tmp/helm",
            "HELM_CONFIG_HOME": "/tmp/helm",
        }
        done = subprocess.run(
            [program("helm"), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"helm {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def upgrade(self, *arguments: str) -> None:
        """Install or upgrade both charts, and wait until the operator is ready."""
        images = []
        for value, image in (("image", "operator"), ("games.workerImage", "worker"), ("games.chainImage", "chain")):
            if self.cluster.images[image] == docker.IMAGES[image]:
                continue  # the chart's default, as in the README's `helm install`
            repository, tag = self.cluster.images[image].rsplit(":", 1)
            images += ["--set", f"{value}.repository={repository}", "--set", f"{value}.tag={tag}"]
        self.helm("upgrade", "--install", "swarmgame-crds", str(CHARTS / "swarmgame-crds"), "--namespace", SYSTEM)
        self.helm(
            "upgrade",
            "--install",
            "swarmgame",
            str(CHARTS / "swarmgame"),
            "--namespace",
            SYSTEM,
            "--wait",
            "--timeout",
            "3m",
            "--reset-values",  # without it, an upgrade without values keeps those of the upgrade before
            *images,
            *arguments,
        )

    def operator_pods(self) -> list[dict[str, Any]]:
        listed = self.cluster.get("pods", "--namespace", SYSTEM, "-l", "app.kubernetes.io/component=operator")["items"]
        return [pod for pod in listed if "deletionTimestamp" not in pod["metadata"]]

    def logs(self) -> str:
        return self.cluster.kubectl(
            "logs", "--namespace", SYSTEM, "-l", "app.kubernetes.io/component=operator", "--tail=-1", check=False
        )

    def objects(self) -> str:
        """Return the names of all objects with the chart's label."""
        kinds = "deployments,services,configmaps,secrets,serviceaccounts,networkpolicies,pods"
        rights = "roles,rolebindings,clusterroles,clusterrolebindings"
        labels = "app.kubernetes.io/managed-by=Helm,app.kubernetes.io/part-of=swarmgame"
        return self.cluster.kubectl("get", f"{kinds},{rights}", "--all-namespaces", "-l", labels, "-o", "name").strip()


@pytest.fixture(scope="session")
def operator(cluster: Cluster) -> Iterator[Installation]:
    """Install the operator with helm; uninstall it after the session, and check that no object is left."""
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM, "labels": RESTRICTED}}
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(body))
    made = Installation(cluster)
    made.upgrade()
    yield made
    for release in ("swarmgame", "swarmgame-crds"):
        made.helm("uninstall", release, "--namespace", SYSTEM, "--wait", "--timeout", "2m")
    until(lambda: not made.objects(), 60.0, seen=made.objects)
    cluster.kubectl("delete", "namespace", SYSTEM, "--timeout=120s", seconds=150.0)


@pytest.fixture
def game(operator: Installation, namespace: Namespace, request: pytest.FixtureRequest) -> Callable[..., Game]:
    """Return a function that applies `game.yaml` of the test's folder, with changes."""
    beside = Path(str(request.path)).parent / "game.yaml"
    return lambda name="", **changes: play(namespace, beside, name, **changes)


def _merge(into: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value
