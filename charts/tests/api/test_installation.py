"""Installing, upgrading and uninstalling with helm on a real API server: what is created, changed and kept."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from api_servers import ApiServer
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from polling import until
from rendered import CHARTS, DEFINITION, OPERATOR

from native_cluster import tools

Helm = Callable[..., subprocess.CompletedProcess[str]]

TEST_POD = "app.kubernetes.io/component=test"
GAME = yaml.safe_load((CHARTS.parent / "examples" / "01-quickstart" / "game.yaml").read_text())


def create_game(connection: client.ApiClient, namespace: str) -> Any:
    games = client.CustomObjectsApi(connection)
    return until(lambda: _created(games, namespace))


def _created(games: client.CustomObjectsApi, namespace: str) -> Any:
    try:
        return games.create_namespaced_custom_object("swarmgame.dev", "v1alpha1", namespace, "swarmgames", GAME)
    except ApiException as problem:  # established a moment ago: the path may not be served yet
        if problem.status != 404:
            raise
        return None


def test_the_definition_is_upgraded_with_its_chart(
    definition: Callable[[], Any], helm_there: Helm, tmp_path: Path
) -> None:
    newer = Path(shutil.copytree(DEFINITION, tmp_path / "swarmgame-crds"))
    template = newer / "templates" / "swarmgame.yaml"
    assert "shortNames:\n      - sg\n" in template.read_text()
    template.write_text(
        template.read_text().replace("shortNames:\n      - sg\n", "shortNames:\n      - sg\n      - swarm\n")
    )
    assert definition().spec.names.short_names == ["sg"]
    helm_there("upgrade", "swarmgame-crds", newer)
    assert definition().spec.names.short_names == ["sg", "swarm"]


def test_uninstalling_the_definition_keeps_it_and_its_games(
    definition: Callable[[], Any], helm_there: Helm, connection: client.ApiClient
) -> None:
    made = create_game(connection, "default")
    assert "These resources were kept due to the resource policy" in helm_there("uninstall", "swarmgame-crds").stdout
    assert definition().metadata.name == "swarmgames.swarmgame.dev"
    games = client.CustomObjectsApi(connection).list_namespaced_custom_object(
        "swarmgame.dev", "v1alpha1", "default", "swarmgames"
    )
    assert [game["metadata"]["uid"] for game in games["items"]] == [made["metadata"]["uid"]]


def test_a_kept_definition_is_adopted_by_a_new_release(definition: Callable[[], Any], helm_there: Helm) -> None:
    helm_there("uninstall", "swarmgame-crds")
    helm_there("install", "swarmgame-crds", DEFINITION)
    assert definition().metadata.labels["app.kubernetes.io/managed-by"] == "Helm"


def test_without_keep_the_definition_is_deleted_with_its_release(
    definition: Callable[[], Any], helm_there: Helm
) -> None:
    helm_there("upgrade", "swarmgame-crds", DEFINITION, "--set", "keep=false")
    helm_there("uninstall", "swarmgame-crds")
    until(lambda: definition() is None)


def test_the_notes_have_the_next_steps_and_what_is_missing(helm_there: Helm) -> None:
    there = ("--namespace", "notes", "--create-namespace", "--dry-run=server", "--set", "watchNamespaces={a,b}")
    there += ("--set", "rbac.userRoles=false")  # else it looks for an operator of all namespaces, which may be there
    notes = helm_there("install", "notes", OPERATOR, *there).stdout.split("NOTES:")[1]
    assert "watches the namespaces a, b." in notes
    assert "kubectl get sg --watch" in notes
    assert "helm install swarmgame-crds" in notes


def test_the_notes_do_not_mention_an_installed_definition(definition: Callable[[], Any], helm_there: Helm) -> None:
    assert definition()
    there = ("--namespace", "notes", "--create-namespace", "--dry-run=server")
    there += ("--set", "watchNamespaces={notes},rbac.userRoles=false")  # another release may watch all namespaces

    def notes() -> str:
        return str(helm_there("install", "notes", OPERATOR, *there).stdout.split("NOTES:")[1])

    until(lambda: "helm install swarmgame-crds" not in notes(), seen=notes)


def test_an_upgrade_changes_the_given_values_and_an_uninstall_leaves_nothing(
    helm_there: Helm, connection: client.ApiClient
) -> None:
    there = ("--namespace", "second", "--create-namespace")
    there += ("--set", "watchNamespaces={second},rbac.userRoles=false")  # another release may watch all namespaces
    helm_there("install", "second", OPERATOR, *there)
    deployments = client.AppsV1Api(connection)
    before = deployments.read_namespaced_deployment("second-swarmgame", "second")
    helm_there(
        "upgrade", "second", OPERATOR, *there, "--set", "replicaCount=3,image.tag=next,podDisruptionBudget.enabled=true"
    )
    after = deployments.read_namespaced_deployment("second-swarmgame", "second")
    assert after.metadata.uid == before.metadata.uid
    assert after.spec.replicas == 3
    assert after.spec.strategy.type == "Recreate", "the operator without a Lease ends before those with one begin"
    assert after.spec.template.spec.containers[0].image.endswith("/operator:next")
    assert labelled(connection, "second")
    helm_there("uninstall", "second", "--namespace", "second", "--wait")
    until(lambda: labelled(connection, "second") == [], seen=lambda: labelled(connection, "second"))


def labelled(connection: client.ApiClient, release: str) -> list[str]:
    """Return every object with the release's label, of the kinds that the chart can create."""
    selector = {"label_selector": f"app.kubernetes.io/instance={release},app.kubernetes.io/part-of=swarmgame"}
    core, apps, rbac = (
        client.CoreV1Api(connection),
        client.AppsV1Api(connection),
        client.RbacAuthorizationV1Api(connection),
    )
    lists = (
        core.list_service_account_for_all_namespaces,
        core.list_service_for_all_namespaces,
        core.list_config_map_for_all_namespaces,
        core.list_pod_for_all_namespaces,
        apps.list_deployment_for_all_namespaces,
        apps.list_replica_set_for_all_namespaces,
        client.NetworkingV1Api(connection).list_network_policy_for_all_namespaces,
        client.PolicyV1Api(connection).list_pod_disruption_budget_for_all_namespaces,
        rbac.list_cluster_role,
        rbac.list_cluster_role_binding,
        rbac.list_role_for_all_namespaces,
        rbac.list_role_binding_for_all_namespaces,
    )
    return [f"{each.__name__}: {item.metadata.name}" for each in lists for item in each(**selector).items]


def test_the_rendered_charts_are_applied_without_helm_in_the_cluster(
    bare_server: ApiServer, connection: client.ApiClient, tmp_path: Path
) -> None:
    """The commands of the chart's README, with another release and namespace: other tests have those of the page."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (OPERATOR / "README.head.md").read_text(), re.MULTILINE | re.DOTALL)
    (commands,) = [block for block in blocks if "helm template" in block]
    commands = commands.replace("swarmgame-system", "applied").replace("template swarmgame ", "template applied ")
    path = os.pathsep.join(str(tools.tool(name).parent) for name in ("helm", "kubectl")) + ":/usr/bin:/bin"
    environment = {"PATH": path, "KUBECONFIG": str(bare_server.kubeconfig), "HOME": str(tmp_path)}
    for again in (False, True):  # applying twice changes nothing and is refused by nothing
        script = commands.replace("create namespace", "get namespace") if again else commands
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=CHARTS.parent,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    try:
        deployment = client.AppsV1Api(connection).read_namespaced_deployment("applied-swarmgame", "applied")
        assert deployment.metadata.generation == 1
        assert client.CoreV1Api(connection).list_namespaced_pod("applied", label_selector=TEST_POD).items == []
    finally:
        definitions = client.ApiextensionsV1Api(connection)
        definitions.delete_custom_resource_definition("swarmgames.swarmgame.dev")
        until(
            lambda: (
                not [d for d in definitions.list_custom_resource_definition().items if d.spec.group == "swarmgame.dev"]
            )
        )
