"""All pods of all kinds of games: what Pod Security admission at level restricted requires, and what they mount."""

from __future__ import annotations

from typing import Any

import pytest
from golden_games import GAMES, written_manifests
from plan_fixtures import running, valid_game

from swarmgame_operator.defaults import Defaults
from swarmgame_operator.plan import build_plan

RESTRICTED_VOLUMES = {"configMap", "emptyDir", "image", "persistentVolumeClaim", "secret"}


def pods() -> list[tuple[str, dict[str, Any]]]:
    found = []
    for name, game in GAMES.items():
        for manifest in written_manifests(game):
            template = manifest.get("spec", {}).get("template")
            if template is not None:
                found.append((f"{name}/{manifest['kind']}/{manifest['metadata']['name']}", template))
    return found


PODS = pods()
IDS = [name for name, _ in PODS]
TEMPLATES = [template for _, template in PODS]


def containers(template: dict[str, Any]) -> list[dict[str, Any]]:
    return [*template["spec"]["containers"], *template["spec"].get("initContainers", [])]


def test_there_are_pods_of_every_role() -> None:
    roles = {template["metadata"]["labels"]["swarmgame.dev/role"] for template in TEMPLATES}
    assert roles == {"peer", "bootnode", "initializer", "gateway", "chain"}


@pytest.mark.parametrize("template", TEMPLATES, ids=IDS)
def test_a_pod_passes_admission_at_level_restricted(template: dict[str, Any]) -> None:
    spec = template["spec"]
    security = spec["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] > 0
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    for each in containers(template):
        context = each["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["readOnlyRootFilesystem"] is True
        assert not any("hostPort" in port for port in each.get("ports", []))
    for volume in spec["volumes"]:
        assert set(volume) - {"name"} <= RESTRICTED_VOLUMES


@pytest.mark.parametrize("template", TEMPLATES, ids=IDS)
def test_a_pod_has_no_token_of_the_api_and_no_variables_of_other_services(template: dict[str, Any]) -> None:
    assert template["spec"]["automountServiceAccountToken"] is False
    assert template["spec"]["enableServiceLinks"] is False


@pytest.mark.parametrize("template", TEMPLATES, ids=IDS)
def test_every_mount_has_its_volume_and_its_own_path(template: dict[str, Any]) -> None:
    volumes = [each["name"] for each in template["spec"]["volumes"]]
    assert len(volumes) == len(set(volumes))
    for each in containers(template):
        paths = [mount["mountPath"] for mount in each["volumeMounts"]]
        assert len(paths) == len(set(paths))
        assert {mount["name"] for mount in each["volumeMounts"]} <= set(volumes)
    mounted = {mount["name"] for each in containers(template) for mount in each["volumeMounts"]}
    assert mounted == set(volumes), "a volume without a mount"


@pytest.mark.parametrize("template", TEMPLATES, ids=IDS)
def test_a_process_can_write_to_tmp_which_is_its_home(template: dict[str, Any]) -> None:
    for each in containers(template):
        [name] = [
            mount["name"]
            for mount in each["volumeMounts"]
            if mount["mountPath"] == "/tmp" and not mount.get("readOnly")
        ]
        assert {"name": name, "emptyDir": {}} in template["spec"]["volumes"]
        assert {"name": "HOME", "value": "/tmp"} in each["env"]


@pytest.mark.parametrize("template", TEMPLATES, ids=IDS)
def test_a_variable_is_set_once_and_a_secret_is_only_ever_a_file(template: dict[str, Any]) -> None:
    for each in containers(template):
        names = [variable["name"] for variable in each["env"]]
        assert len(names) == len(set(names))
        assert not any("secretKeyRef" in variable.get("valueFrom", {}) for variable in each["env"])


@pytest.mark.parametrize("template", TEMPLATES, ids=IDS)
def test_secrets_are_readable_by_their_group_only_and_mounted_where_they_are_needed(template: dict[str, Any]) -> None:
    role = template["metadata"]["labels"]["swarmgame.dev/role"]
    for volume in template["spec"]["volumes"]:
        if "secret" in volume:
            assert volume["secret"]["defaultMode"] == 0o440
            assert volume["name"] in {
                "peer": {"identity", "model-token"},
                "bootnode": {"identity"},
                "initializer": {"model-token"},
            }.get(role, {"rpc", "wallet"})


@pytest.mark.parametrize("template", TEMPLATES, ids=IDS)
def test_the_termination_message_of_a_container_is_kept(template: dict[str, Any]) -> None:
    for each in containers(template):
        assert (each["terminationMessagePath"], each["terminationMessagePolicy"]) == (
            "/dev/termination-log",
            "FallbackToLogsOnError",
        )


@pytest.mark.parametrize("template", TEMPLATES, ids=IDS)
def test_memory_is_requested_as_limited(template: dict[str, Any]) -> None:
    for each in containers(template):
        resources = each.get("resources", {})
        assert resources.get("limits", {}).get("memory") == resources.get("requests", {}).get("memory")


def test_shared_memory_is_memory_and_bounded() -> None:
    peers = [template for template in TEMPLATES if template["metadata"]["labels"]["swarmgame.dev/role"] == "peer"]
    for template in peers:
        shm = next(volume for volume in template["spec"]["volumes"] if volume["name"] == "shm")
        assert shm["emptyDir"]["medium"] == "Memory"
        assert shm["emptyDir"]["sizeLimit"]


def test_a_newer_operator_restarts_no_chain_whose_state_would_go_with_its_pod() -> None:
    resource, observed = running(valid_game({"coordination": {"mode": "Dev"}}))
    newer = Defaults(worker_image="w", image_pull_policy="Always", chain_image="x", gateway_image="y")
    found = build_plan(resource, observed, newer)
    (chain,) = [child for child in found.children if child.kind == "StatefulSet"]
    assert chain.apply_manifest["spec"]["updateStrategy"] == {"type": "OnDelete"}
