"""Games on a cluster, and the operator that plays them: what tests of behaviour say in a line.

`operator` installs both charts with helm, as the README does, into a namespace of its own, once a session. Invariant:
when the session is over, `helm uninstall` has left nothing that carries the chart's label.
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
from clusters import RESTRICTED, Cluster, Namespace
from polling import until

from native_cluster import docker, tools

CHARTS = Path(__file__).resolve().parents[2] / "charts"
SYSTEM = "swarmgame-system"
PLURAL = "swarmgames.swarmgame.dev"


@dataclass(frozen=True)
class Game:
    """A SwarmGame in a namespace."""

    namespace: Namespace
    name: str

    def read(self) -> dict[str, Any]:
        """The object as the API server has it."""
        return self.namespace.get(PLURAL, self.name)

    @property
    def status(self) -> dict[str, Any]:
        return dict(self.read().get("status", {}))

    @property
    def round(self) -> int:
        return int(self.status.get("progress", {}).get("round", 0))

    def condition(self, kind: str) -> dict[str, str]:
        """One condition; empty while it is not there."""
        return next((each for each in self.status.get("conditions", ()) if each["type"] == kind), {})

    def wait(self, kind: str, status: str = "True", reason: str = "", seconds: float = 180.0) -> dict[str, str]:
        """Waits until a condition has this status, and this reason where one is named; returns it."""

        def so() -> dict[str, str]:
            found = self.condition(kind)
            return found if found.get("status") == status and reason in ("", found.get("reason")) else {}

        return until(so, seconds, every=0.3, seen=lambda: (self.status.get("conditions"), self.namespace.describe()))

    def wait_for_round(self, round: int, seconds: float = 180.0) -> int:
        """Waits until so many rounds are played; returns how many are."""
        return until(
            lambda: self.round if self.round >= round else 0,
            seconds,
            every=0.5,
            seen=lambda: (self.status, self.namespace.describe()),
        )

    def pods(self, role: str = "peer") -> list[dict[str, Any]]:
        """Its pods of a role that are not on their way out."""
        listed = self.namespace.get("pods", "-l", f"swarmgame.dev/game={self.name},swarmgame.dev/role={role}")["items"]
        return [
            pod
            for pod in listed
            if "deletionTimestamp" not in pod["metadata"] and pod["status"]["phase"] in ("Pending", "Running")
        ]

    def peers(self) -> dict[int, dict[str, Any]]:
        """Its peers' pods by index."""
        return {int(pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"]): pod for pod in self.pods()}

    def patch(self, spec: Mapping[str, Any]) -> None:
        """Changes the spec, as `kubectl patch` does."""
        self.namespace.kubectl("patch", PLURAL, self.name, "--type=merge", "-p", json.dumps({"spec": spec}))

    def of_peer(self, index: int, path: str = "status") -> Any:
        """What a peer's own endpoint says, through the API server's proxy."""
        pod = self.peers()[index]["metadata"]["name"]
        said = self.namespace.cluster.kubectl(
            "get", "--raw", f"/api/v1/namespaces/{self.namespace}/pods/{pod}:8080/proxy/{path}"
        )
        return json.loads(said)

    def identities(self) -> dict[int, str]:
        """Peer ids by index, of those that answer."""
        found = {}
        for index in self.peers():
            done = self._asked(index)
            if done:
                found[index] = str(done["peer"])
        return found

    def _asked(self, index: int) -> dict[str, Any]:
        try:
            return dict(self.of_peer(index))
        except (AssertionError, KeyError):
            return {}


def manifest(path: Path, **changes: Any) -> dict[str, Any]:
    """A manifest of a file, with fields of its spec merged in: {"peers": {"replicas": 2}}."""
    body: dict[str, Any] = yaml.safe_load(path.read_text())
    _merge(body["spec"], changes)
    return body


def play(namespace: Namespace, path: Path, name: str = "", **changes: Any) -> Game:
    """Applies the manifest of a file, changed, and returns the game."""
    body = manifest(path, **changes)
    body["metadata"]["name"] = name or body["metadata"]["name"]
    namespace.apply(body)
    return Game(namespace, body["metadata"]["name"])


@dataclass(frozen=True)
class Installation:
    """The charts, installed."""

    cluster: Cluster

    def helm(self, *words: str) -> str:
        """What helm prints.

        Raises:
            AssertionError: it failed; with what it said.
        """
        environment = os.environ | {
            "KUBECONFIG": str(self.cluster.kubeconfig),
            "HELM_CACHE_HOME": "/tmp/helm",
            "HELM_CONFIG_HOME": "/tmp/helm",
        }
        done = subprocess.run(
            [str(tools.tool("helm")), *words], env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"helm {' '.join(words)}: {done.stderr}"
        return done.stdout

    def upgrade(self, *words: str) -> None:
        """Installs both charts, or changes what is installed, and waits until the operator is ready."""
        images = []
        for value, image in (("image", "operator"), ("games.workerImage", "worker"), ("games.chainImage", "chain")):
            if self.cluster.images[image] == docker.IMAGES[image]:
                continue  # as the chart has it, and the README's `helm install`
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
            "--reset-values",  # without it, an upgrade that sets nothing keeps what the one before had set
            *images,
            *words,
        )

    def operator_pods(self) -> list[dict[str, Any]]:
        listed = self.cluster.get("pods", "--namespace", SYSTEM, "-l", "app.kubernetes.io/component=operator")["items"]
        return [pod for pod in listed if "deletionTimestamp" not in pod["metadata"]]

    def logs(self) -> str:
        return self.cluster.kubectl(
            "logs", "--namespace", SYSTEM, "-l", "app.kubernetes.io/component=operator", "--tail=-1", check=False
        )

    def left(self) -> str:
        """What carries the chart's label, anywhere."""
        kinds = "deployments,services,configmaps,secrets,serviceaccounts,networkpolicies,pods"
        rights = "roles,rolebindings,clusterroles,clusterrolebindings"
        labels = "app.kubernetes.io/managed-by=Helm,app.kubernetes.io/part-of=swarmgame"
        return self.cluster.kubectl("get", f"{kinds},{rights}", "--all-namespaces", "-l", labels, "-o", "name").strip()


@pytest.fixture(scope="session")
def operator(cluster: Cluster) -> Iterator[Installation]:
    """The operator, installed with helm; uninstalled when the session is over, and then nothing of it may be left."""
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM, "labels": RESTRICTED}}
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(body))
    made = Installation(cluster)
    made.upgrade()
    yield made
    for release in ("swarmgame", "swarmgame-crds"):
        made.helm("uninstall", release, "--namespace", SYSTEM, "--wait", "--timeout", "2m")
    until(lambda: not made.left(), 60.0, seen=made.left)
    cluster.kubectl("delete", "namespace", SYSTEM, "--timeout=120s", seconds=150.0)


@pytest.fixture
def game(operator: Installation, namespace: Namespace, request: pytest.FixtureRequest) -> Callable[..., Game]:
    """Plays the manifest beside the test, `game.yaml`, changed as asked."""
    beside = Path(str(request.path)).parent / "game.yaml"
    return lambda name="", **changes: play(namespace, beside, name, **changes)


def _merge(into: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value
