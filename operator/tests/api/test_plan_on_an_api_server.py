"""The manifests of all kinds of games on a real API server, in a namespace that enforces Pod Security at level
restricted; and the fields that a later apply leaves alone.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from api_servers import ApiServer
from golden_games import GAMES, written_manifests
from plan_fixtures import game_context, valid_game

from swarmgame_operator.kubectl.export import reader_pod
from swarmgame_operator.plan.peer_job import peer_job

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
    """Requests with plain objects in one namespace; an error raises with the server's message."""

    def __init__(self, api_server: ApiServer, namespace: str) -> None:
        self._client = api_server.client()
        self.namespace = namespace

    def request(
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
def server(api_server: ApiServer, restricted_api_namespace: str) -> Server:
    from kubernetes import client

    with api_server.client() as connection:
        core = client.CoreV1Api(connection)
        core.create_namespaced_service_account(restricted_api_namespace, {"metadata": {"name": "default"}})
    return Server(api_server, restricted_api_namespace)


@pytest.mark.parametrize("name", GAMES)
def test_an_api_server_accepts_the_manifests_of_a_game_and_knows_every_field(name: str, server: Server) -> None:
    for manifest in written_manifests(GAMES[name]):
        made = server.request("POST", manifest, query="&dryRun=All")
        assert made["metadata"]["name"] == manifest["metadata"]["name"]


@pytest.mark.parametrize("name", GAMES)
def test_a_restricted_namespace_accepts_the_pods(name: str, server: Server) -> None:
    for manifest in written_manifests(GAMES[name]):
        template = manifest.get("spec", {}).get("template")
        if template is None or template["spec"].get("runtimeClassName") or template["spec"].get("priorityClassName"):
            continue  # such a class is defined by the cluster
        pod = {"apiVersion": "v1", "kind": "Pod", **template, "metadata": {**template["metadata"], "name": "pod"}}
        assert server.request("POST", pod, query="&dryRun=All")["kind"] == "Pod"


def test_a_restricted_namespace_accepts_the_pod_that_reads_a_claim(server: Server) -> None:
    spec = {"tolerations": [{"key": "gpu", "operator": "Exists"}], "imagePullSecrets": [{"name": "registry"}]}
    template = {"metadata": {"labels": {"team": "a"}}, "spec": spec}
    made = server.request("POST", reader_pod("sums", "sums-checkpoints", "worker:1", template), query="&dryRun=All")
    assert made["metadata"]["name"].startswith("sums-export-")
    assert made["spec"]["affinity"]["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]


def test_a_privileged_pod_is_refused_so_the_test_above_can_fail(server: Server) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "pod"},
        "spec": {"hostNetwork": True, "containers": [{"name": "a", "image": "a"}]},
    }
    with pytest.raises(Exception, match="violates PodSecurity"):
        server.request("POST", pod, query="&dryRun=All")


def test_a_scale_leaves_the_queue_its_fields_and_the_template_as_it_is(server: Server) -> None:
    labels = {"kueue.x-k8s.io/queue-name": "research"}
    first = peer_job(game_context(valid_game(labels=labels)))
    assert first.create_manifest is not None
    made = server.request("POST", first.create_manifest, query="&fieldManager=swarmgame-operator-creation")
    assert made["spec"]["suspend"] is True
    for size in (6, 1):
        child = peer_job(game_context(valid_game({"peers": {"replicas": size}}, labels=labels)))
        applied = server.request(
            "PATCH",
            child.apply_manifest,
            query="&fieldManager=swarmgame-operator&force=true",
            content="application/apply-patch+yaml",
            name=child.name,
        )
        spec = applied["spec"]
        assert (spec["parallelism"], spec["completions"], spec["maxFailedIndexes"]) == (size, size, min(2, size))
        assert spec["suspend"] is True, "a field of another manager was removed"
        assert spec["template"] == made["spec"]["template"]
        assert applied["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
