"""A chart as helm renders it: manifests as dictionaries, found by kind and name.

helm itself renders; its refusals are raised with its message.
"""

from __future__ import annotations

import functools
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from native_cluster import tools

CHARTS = Path(__file__).resolve().parents[2]
OPERATOR = CHARTS / "swarmgame"
DEFINITION = CHARTS / "swarmgame-crds"
NAMESPACE = "swarmgame-system"
EVERYTHING = {
    "replicaCount": 2,
    "imagePullSecrets": [{"name": "pull"}],
    "podDisruptionBudget": {"enabled": True},
    "metrics": {name: {"enabled": True} for name in ("serviceMonitor", "podMonitor", "prometheusRule", "dashboard")},
    "networkPolicy": {"restrictEgress": True},
}
"""Values that turn everything on that has no sidecar."""
SECURE = {
    "metrics": {
        "secure": {
            "enabled": True,
            "certificateSecret": "metrics-tls",
            "readers": [{"kind": "ServiceAccount", "name": "prometheus", "namespace": "monitoring"}],
        },
        "serviceMonitor": {"enabled": True},
    }
}
"""Values of secure metrics, with all that belongs to them."""


class Refused(Exception):
    """Helm refused to render. The message is helm's."""


@dataclass(frozen=True)
class Rendered:
    """The output of `helm template`."""

    text: str

    @property
    def manifests(self) -> list[dict[str, Any]]:
        return [document for document in yaml.safe_load_all(self.text) if document]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [manifest for manifest in self.manifests if manifest["kind"] == kind]

    def one(self, kind: str, name: str = "") -> dict[str, Any]:
        """Return the only manifest of a kind, or of a kind and name."""
        found = [manifest for manifest in self.of(kind) if not name or manifest["metadata"]["name"] == name]
        assert len(found) == 1, (
            f"{len(found)} of {kind} {name}: {[manifest['metadata']['name'] for manifest in self.of(kind)]}"
        )
        return found[0]


def render(chart: Path = OPERATOR, values: dict[str, Any] | None = None, release: str = "swarmgame") -> Rendered:
    """Render a chart with values, for Kubernetes 1.36."""
    return _render(chart, yaml.safe_dump(values or {}), release)


@functools.cache
def _render(chart: Path, values: str, release: str) -> Rendered:
    command = ["template", release, str(chart), "--namespace", NAMESPACE, "--kube-version", "1.36.3", "--values", "-"]
    done = subprocess.run(
        [str(tools.tool("helm")), *command], input=values, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise Refused(done.stderr)
    return Rendered(done.stdout)


def environment(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the variables of a Deployment's only container by name: the value or its source."""
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    return {variable["name"]: variable.get("value", variable.get("valueFrom")) for variable in container["env"]}
