"""Every rendered manifest conforms to the API server's schemas, by kubeconform."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import raw
from api_servers import ApiServer
from kubernetes import client
from polling import until
from rendered import DEFINITION, EVERYTHING, NAMESPACE, OPERATOR, SECURE, render

from native_cluster import tools

pytestmark = pytest.mark.usefixtures("helm")

SCHEMAS = Path(__file__).parent / "schemas"
"""Schemas of the Prometheus operator, with the fields that the chart uses."""
CASES = {
    "default": (OPERATOR, {}),
    "everything": (OPERATOR, EVERYTHING),
    "secure metrics": (OPERATOR, SECURE),
    "namespaces": (OPERATOR, {"watchNamespaces": ["a", "b"], "metrics": {"podMonitor": {"enabled": True}}}),
    "definition": (DEFINITION, {}),
}


def strict(node: Any) -> Any:
    """Return a schema without unknown fields."""
    if isinstance(node, list):
        return [strict(each) for each in node]
    if not isinstance(node, dict):
        return node
    closed = {key: strict(each) for key, each in node.items()}
    if "properties" in node and isinstance(node["properties"], dict) and node.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    return closed


@pytest.fixture(scope="module")
def schemas(bare_server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The API server's schemas, one file per kind, with kubeconform's file names."""
    directory = tmp_path_factory.mktemp("schemas")
    for link in raw.get(bare_server, "/openapi/v3")["paths"].values():
        components = raw.get(bare_server, link["serverRelativeURL"]).get("components", {})
        for name, schema in components.get("schemas", {}).items():
            kinds = schema.get("x-kubernetes-group-version-kind", [])
            if len(kinds) == 1 and schema.get("properties", {}).get("kind"):
                group = [kinds[0]["group"].split(".")[0]] if kinds[0]["group"] else []
                path = directory / ("-".join([kinds[0]["kind"].lower(), *group, kinds[0]["version"]]) + ".json")
                if not path.exists():
                    path.write_text(
                        json.dumps({"$ref": f"#/components/schemas/{name}", "components": strict(components)})
                    )
    return directory


def check(kubeconform: Path, schemas: Path, text: str) -> subprocess.CompletedProcess[str]:
    locations = [f"{directory}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json" for directory in (schemas, SCHEMAS)]
    command = [
        str(kubeconform),
        "-summary",
        "-output",
        "json",
        *(argument for each in locations for argument in ("-schema-location", each)),
    ]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("case", CASES)
def test_every_manifest_conforms(kubeconform: Path, schemas: Path, case: str) -> None:
    rendered = render(*CASES[case])
    done = check(kubeconform, schemas, rendered.text)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout)["summary"]
    assert summary == {"valid": len(rendered.manifests), "invalid": 0, "errors": 0, "skipped": 0}


@pytest.mark.parametrize(
    ("field", "misspelt"), [("startupProbe:", "startProbe:"), ("honorLabels:", "honourLabels:")], ids=["pod", "monitor"]
)
def test_a_misspelt_field_is_found(kubeconform: Path, schemas: Path, field: str, misspelt: str) -> None:
    text = render(values=EVERYTHING).text
    assert field in text
    assert check(kubeconform, schemas, text.replace(field, misspelt)).returncode != 0


@pytest.fixture
def restricted(bare_server: ApiServer) -> str:
    """A namespace that refuses what the restricted Pod Security Standard forbids."""
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    with bare_server.client() as connection:
        core = client.CoreV1Api(connection)
        core.create_namespace({"metadata": {"name": "restricted", "labels": labels}})
        until(
            lambda: [
                each
                for each in core.list_namespaced_service_account("restricted").items
                if each.metadata.name == "default"
            ]
        )
    return "restricted"


def test_the_api_server_takes_every_manifest_in_a_restricted_namespace_and_warns_of_nothing(
    bare_server: ApiServer, restricted: str
) -> None:
    values = {"replicaCount": 2, "podDisruptionBudget": {"enabled": True}, "networkPolicy": {"restrictEgress": True}}
    values["metrics"] = {"secure": {"enabled": True}}
    text = render(values=values, release="tried").text.replace(f"namespace: {NAMESPACE}", f"namespace: {restricted}")
    kubectl = [str(tools.tool("kubectl")), "--kubeconfig", str(bare_server.kubeconfig)]
    command = [*kubectl, "apply", "--dry-run=server", "--validate=strict", "-f", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "pod/tried-swarmgame-test created" in done.stdout
