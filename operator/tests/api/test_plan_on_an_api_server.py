"""The golden manifests, on a real API server in a namespace that enforces Pod Security at level restricted; and what
applying later leaves alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from api_servers import ApiServer
from plan_fixtures import game_context, valid_game

from swarmgame_operator.plan.peer_job import peer_job

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("*.yaml"))
PLURALS = {
    "ConfigMap": "configmaps",
    "Deployment": "deployments",
    "Job": "jobs",
    "NetworkPolicy": "networkpolicies",
    "PersistentVolumeClaim": "persistentvolumeclaims",
    "Pod": "pods",
    "Secret": "secrets",
    "Service": "services",
    "StatefulSet": "statefulsets",
}


class Server:
    """Plain requests for plain objects, in one namespace; an answer that is an error raises with the server's words."""

    def __init__(self, api_server: ApiServer, namespace: str) -> None:
        self._client = api_server.client()
        self.namespace = namespace

    def ask(
        self, verb: str, manifest: dict[str, Any], *, query: str = "", content: str = "application/json", name: str = ""
    ) -> dict[str, Any]:
        version = manifest["apiVersion"]
        root = f"/api/{version}" if "/" not in version else f"/apis/{version}"
        place = f"{root}/namespaces/{self.namespace}/{PLURALS[manifest['kind']]}{f'/{name}' if name else ''}"
        metadata = {**manifest["metadata"], "namespace": self.namespace}
        answer = self._client.call_api(
            verb,
            f"{self._client.configuration.host}{place}?fieldValidation=Strict{query}",
            header_params={"Content-Type": content, "Accept": "application/json"},
            body={**manifest, "metadata": metadata},
        )
        data: dict[str, Any] = json.loads(answer.read())
        assert data.get("kind") != "Status", data.get("message")
        return data


@pytest.fixture
def server(api_server: ApiServer, api_namespace: str) -> Server:
    from kubernetes import client

    with api_server.client() as connection:
        core = client.CoreV1Api(connection)
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        core.patch_namespace(api_namespace, {"metadata": {"labels": labels}})
        core.create_namespaced_service_account(api_namespace, {"metadata": {"name": "default"}})
    return Server(api_server, api_namespace)


@pytest.mark.parametrize("path", GOLDEN, ids=[path.stem for path in GOLDEN])
def test_an_api_server_takes_what_a_game_becomes_and_knows_every_field(path: Path, server: Server) -> None:
    for manifest in yaml.safe_load_all(path.read_text()):
        made = server.ask("POST", manifest, query="&dryRun=All")
        assert made["metadata"]["name"] == manifest["metadata"]["name"]


@pytest.mark.parametrize("path", GOLDEN, ids=[path.stem for path in GOLDEN])
def test_a_restricted_namespace_takes_the_pods(path: Path, server: Server) -> None:
    for manifest in yaml.safe_load_all(path.read_text()):
        template = manifest.get("spec", {}).get("template")
        if template is None or template["spec"].get("runtimeClassName") or template["spec"].get("priorityClassName"):
            continue  # what such a class stands for is the cluster's
        pod = {"apiVersion": "v1", "kind": "Pod", **template, "metadata": {**template["metadata"], "name": "pod"}}
        assert server.ask("POST", pod, query="&dryRun=All")["kind"] == "Pod"


def test_a_pod_that_asks_for_more_is_refused_so_the_test_above_can_fail(server: Server) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "pod"},
        "spec": {"hostNetwork": True, "containers": [{"name": "a", "image": "a"}]},
    }
    with pytest.raises(Exception, match="violates PodSecurity"):
        server.ask("POST", pod, query="&dryRun=All")


def test_a_scale_leaves_the_queue_its_fields_and_the_template_as_it_is(server: Server) -> None:
    labels = {"kueue.x-k8s.io/queue-name": "research"}
    first = peer_job(game_context(valid_game(labels=labels)))
    assert first.create_manifest is not None
    made = server.ask("POST", first.create_manifest, query="&fieldManager=swarmgame-operator-creation")
    assert made["spec"]["suspend"] is True
    for size in (6, 1):
        child = peer_job(game_context(valid_game({"peers": {"replicas": size}}, labels=labels)))
        applied = server.ask(
            "PATCH",
            child.apply_manifest,
            query="&fieldManager=swarmgame-operator&force=true",
            content="application/apply-patch+yaml",
            name=child.name,
        )
        spec = applied["spec"]
        assert (spec["parallelism"], spec["completions"], spec["maxFailedIndexes"]) == (size, size, min(2, size))
        assert spec["suspend"] is True, "a field that is not ours was given up"
        assert spec["template"] == made["spec"]["template"]
        assert applied["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
