"""What all pods of a game have in common: the levels, their order, and the pods of every role."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from golden_games import GAMES, quickstart, written_manifests
from plan_fixtures import DEFAULTS, EMPTY, condition, game_context, reported, running, settled, valid_game

from swarmgame_api.pods import PodDefaults
from swarmgame_api.resource import GameResource
from swarmgame_operator.defaults import Defaults
from swarmgame_operator.plan import build_plan
from swarmgame_operator.plan.game_file import game_file
from swarmgame_operator.plan.references import references
from swarmgame_operator.snapshot import DryRunFacts

Manifest = dict[str, Any]
CLAIM = {"claimTemplate": {"spec": {"resources": {"requests": {"storage": "1Gi"}}}}}
PROXY = {"name": "HTTPS_PROXY", "value": "http://proxy.example:3128"}
EVERYTHING: Manifest = {
    "labels": {"team": "swarm", "swarmgame.dev/role": "another"},
    "annotations": {"mesh.example/inject": "false"},
    "arbitraryUser": True,
    "securityContext": {"supplementalGroups": [7]},
    "containerSecurityContext": {"procMount": "Default"},
    "nodeSelector": {"pool": "games"},
    "tolerations": [{"key": "games", "operator": "Exists"}],
    "priorityClassName": "low",
    "resources": {"limits": {"cpu": "2"}},
    "imagePullSecrets": [{"name": "registry"}],
    "env": [PROXY, {"name": "CA", "valueFrom": {"configMapKeyRef": {"name": "ca", "key": "path", "optional": True}}}],
    "volumes": [{"name": "authority", "configMap": {"name": "ca"}}],
    "volumeMounts": [{"name": "authority", "mountPath": "/etc/ssl/custom", "readOnly": True}],
}
ROLES = ("bootnode", "chain", "gateway", "initializer", "peer")


def installation(**defaults: Any) -> Defaults:
    return replace(DEFAULTS, pod_defaults=PodDefaults.model_validate_json(json.dumps(defaults), by_name=False))


def templates(resource: GameResource, defaults: Defaults = DEFAULTS) -> dict[str, Manifest]:
    """Return the pod template of each role."""
    found = {}
    for manifest in written_manifests(resource, defaults):
        template = manifest.get("spec", {}).get("template")
        if template is not None:
            found[template["metadata"]["labels"]["swarmgame.dev/role"]] = template
    return found


def with_every_role(**spec: Any) -> GameResource:
    return quickstart({"coordination": {"mode": "Dev"}, "storage": {"cache": CLAIM}, **spec})


def containers(template: Manifest) -> list[Manifest]:
    return [*template["spec"]["containers"], *template["spec"].get("initContainers", [])]


@pytest.mark.parametrize("name", [name for name in GAMES if name != "pod-defaults"])
def test_defaults_that_say_nothing_change_no_byte(name: str) -> None:
    resource = GAMES[name]
    assert resource.game is not None
    empty = resource.game.model_copy(
        update={"spec": resource.game.spec.model_copy(update={"pod_defaults": PodDefaults()})}
    )
    assert list(map(repr, written_manifests(replace(resource, game=empty)))) == list(
        map(repr, written_manifests(resource))
    )


@pytest.mark.parametrize("by", ["game", "installation"])
def test_every_field_reaches_the_pods_of_every_role(by: str) -> None:
    game = with_every_role(podDefaults=EVERYTHING) if by == "game" else with_every_role()
    found = templates(game, installation(**EVERYTHING) if by == "installation" else DEFAULTS)
    assert sorted(found) == list(ROLES)
    for role, template in found.items():
        spec = template["spec"]
        assert template["metadata"]["labels"].items() >= {"team": "swarm", "swarmgame.dev/role": role}.items()
        assert template["metadata"]["annotations"] == {"mesh.example/inject": "false"}
        assert not {"runAsUser", "runAsGroup", "fsGroup"} & set(spec["securityContext"])
        assert spec["securityContext"].items() >= {"runAsNonRoot": True, "supplementalGroups": [7]}.items()
        assert spec["nodeSelector"] == {"pool": "games"}
        assert {"key": "games", "operator": "Exists"} in spec["tolerations"]
        assert spec["priorityClassName"] == "low"
        assert spec["imagePullSecrets"] == [{"name": "registry"}]
        assert {"name": "authority", "configMap": {"name": "ca"}} in spec["volumes"]
        for each in containers(template):
            assert each["securityContext"].items() >= {"procMount": "Default", "readOnlyRootFilesystem": True}.items()
            assert PROXY in each["env"]
            assert {"name": "USER", "value": "swarmgame"} in each["env"]
            assert {"name": "authority", "mountPath": "/etc/ssl/custom", "readOnly": True} in each["volumeMounts"]
            assert each["resources"]["limits"]["cpu"] == "2"


def test_the_labels_are_on_every_object_of_the_game() -> None:
    written = written_manifests(with_every_role(podDefaults={"labels": {"team": "swarm", "swarmgame.dev/game": "x"}}))
    assert {each["kind"] for each in written} >= {"Job", "Deployment", "StatefulSet", "Service", "Secret", "ConfigMap"}
    for each in written:
        assert each["metadata"]["labels"].items() >= {"team": "swarm", "swarmgame.dev/game": "quickstart"}.items()


def test_the_game_overrides_the_installation_and_a_role_overrides_both() -> None:
    chart = installation(
        labels={"a": "chart", "b": "chart", "c": "chart"},
        nodeSelector={"pool": "chart", "zone": "1"},
        env=[{"name": "A", "value": "chart"}, {"name": "B", "value": "chart"}],
        tolerations=[{"key": "chart"}],
        arbitraryUser=True,
        priorityClassName="chart",
    )
    defaults = {
        "labels": {"b": "game", "c": "game"},
        "nodeSelector": {"pool": "game"},
        "env": [{"name": "B", "value": "game"}, {"name": "C", "value": "game"}],
        "tolerations": [{"key": "game"}, {"key": "chart"}],
        "arbitraryUser": False,
        "priorityClassName": "game",
    }
    role = {
        "metadata": {"labels": {"c": "role"}},
        "spec": {
            "priorityClassName": "role",
            "containers": [{"name": "bootnode", "env": [{"name": "C", "value": "role"}]}],
        },
    }
    game = with_every_role(podDefaults=defaults, podTemplates={"bootnode": role})
    bootnode, gateway = (templates(game, chart)[name] for name in ("bootnode", "gateway"))
    assert bootnode["metadata"]["labels"].items() >= {"a": "chart", "b": "game", "c": "role"}.items()
    assert bootnode["spec"]["nodeSelector"] == {"pool": "game", "zone": "1"}
    assert bootnode["spec"]["tolerations"] == [{"key": "chart"}, {"key": "game"}]
    assert bootnode["spec"]["securityContext"]["runAsUser"] == 65532
    assert (bootnode["spec"]["priorityClassName"], gateway["spec"]["priorityClassName"]) == ("role", "game")
    (container,) = bootnode["spec"]["containers"]
    variables = {each["name"]: each.get("value") for each in container["env"]}
    assert (variables["A"], variables["B"], variables["C"]) == ("chart", "game", "role")


def test_the_peers_own_fields_override_the_defaults() -> None:
    game = quickstart(
        {
            "podDefaults": {
                "env": [{"name": "A", "value": "all"}, {"name": "B", "value": "all"}],
                "resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
                "imagePullSecrets": [{"name": "registry"}],
            },
            "peers": {
                "env": [{"name": "B", "value": "peers"}],
                "resources": {"limits": {"memory": "4Gi"}, "requests": {"memory": "2Gi"}},
                "podTemplate": {"spec": {"imagePullSecrets": [{"name": "own"}]}},
            },
        }
    )
    (peer,) = templates(game)["peer"]["spec"]["containers"]
    variables = {each["name"]: each.get("value") for each in peer["env"]}
    assert (variables["A"], variables["B"]) == ("all", "peers")
    assert peer["resources"] == {"limits": {"cpu": "1", "memory": "4Gi"}, "requests": {"memory": "2Gi"}}
    assert templates(game)["peer"]["spec"]["imagePullSecrets"] == [{"name": "registry"}, {"name": "own"}]
    threads = next(each for each in peer["env"] if each["name"] == "OMP_NUM_THREADS")
    assert threads["valueFrom"]["resourceFieldRef"]["resource"] == "limits.cpu"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"limits": {"cpu": "1"}}, {"limits": {"memory": "512Mi", "cpu": "1"}, "requests": {"memory": "512Mi"}}),
        (
            {"limits": {"memory": "256Mi"}},
            {"limits": {"memory": "256Mi"}, "requests": {"cpu": "50m", "memory": "256Mi"}},
        ),
        (
            {"limits": {"memory": "1Gi"}, "requests": {"memory": "128Mi"}},
            {"limits": {"memory": "1Gi"}, "requests": {"cpu": "50m", "memory": "128Mi"}},
        ),
    ],
)
@pytest.mark.parametrize("by", ["defaults", "role"])
def test_a_resource_that_is_named_is_the_authors_alone(by: str, given: Manifest, expected: Manifest) -> None:
    role = {"bootnode": {"spec": {"containers": [{"name": "bootnode", "resources": given}]}}}
    game = quickstart({"podDefaults": {"resources": given}} if by == "defaults" else {"podTemplates": role})
    (container,) = templates(game)["bootnode"]["spec"]["containers"]
    assert container["resources"] == expected


@pytest.mark.parametrize(
    "spec",
    [
        {"containers": [{"resources": {"limits": {"cpu": "1"}}}]},
        {"containers": [{"name": None, "resources": {"limits": {"cpu": "1"}}}]},
        {"containers": None},
        {"containers": [{"name": "bootnode", "resources": None}]},
        {"containers": [{"name": "bootnode", "resources": {"limits": None}}]},
        {"containers": [{"name": "bootnode", "resources": {"limits": {"memory": None}}}]},
        {"containers": [{"name": "other", "resources": {"limits": {"cpu": "1"}}}]},
    ],
)
def test_a_template_of_another_shape_is_left_to_the_api_server(spec: Manifest) -> None:
    assert templates(quickstart({"podTemplates": {"bootnode": {"spec": spec}}}))["bootnode"]["spec"]


def test_a_null_removes_what_the_operator_sets() -> None:
    game = quickstart({"podDefaults": {"securityContext": {"fsGroup": None, "runAsUser": 1000}}})
    context = templates(game)["bootnode"]["spec"]["securityContext"]
    assert "fsGroup" not in context
    assert context["runAsUser"] == 1000


def test_tolerations_for_gpus_stay() -> None:
    game = quickstart(
        {
            "podDefaults": {"tolerations": [{"key": "games"}]},
            "peers": {"resources": {"limits": {"nvidia.com/gpu": "1"}}},
        }
    )
    keys = [each["key"] for each in templates(game)["peer"]["spec"]["tolerations"]]
    assert keys == ["nvidia.com/gpu", "games"]


def test_a_change_of_the_defaults_replaces_the_job_only_where_no_round_is_lost() -> None:
    for storage, deleted in (({}, False), ({"checkpoints": CLAIM}, True)):
        before, observed = running(valid_game({"storage": storage}))
        status = before.status.model_copy(
            update={"progress": before.status.progress.model_copy(update={"last_updated_time": "2026-01-31T12:00:00Z"})}
        )
        changed = valid_game({"storage": storage, "podDefaults": {"nodeSelector": {"pool": "games"}}}, status=status)
        found = build_plan(changed, replace(observed, dry_run=None), DEFAULTS)
        if found.dry_run is not None:
            found = build_plan(changed, replace(observed, dry_run=DryRunFacts(found.dry_run.hash)), DEFAULTS)
        assert any(each.kind == "Job" for each in found.deletions) is deleted
        if not deleted:
            assert "ChangeWaits" in {reason for _, reason in reported(found).values()}


def test_other_defaults_of_the_installation_restart_no_peer() -> None:
    resource, observed = running(valid_game())
    found = build_plan(resource, observed, installation(nodeSelector={"pool": "games"}))
    assert not found.deletions
    assert {child.name for child in found.children if child.kind == "Deployment"} == {"sums-bootnode"}
    assert not [child for child in found.children if child.create_manifest and child.kind == "Job"]


@pytest.mark.parametrize(
    ("defaults", "text"),
    [
        ({"volumes": [{"name": "cache", "emptyDir": {}}]}, "'cache'"),
        ({"volumes": [{"name": "module-0", "emptyDir": {}}]}, "'module-0'"),
        ({"volumeMounts": [{"name": "a", "mountPath": "/tmp/"}]}, "/tmp"),
        ({"volumeMounts": [{"name": "a", "mountPath": "/etc/swarmgame/game"}]}, "/etc/swarmgame/game"),
    ],
)
def test_a_volume_that_would_replace_the_operators_is_refused(defaults: Manifest, text: str) -> None:
    for game, installed in (
        (valid_game({"podDefaults": defaults}), DEFAULTS),
        (valid_game(), installation(**defaults)),
    ):
        found = condition(build_plan(game, EMPTY, installed), "Accepted")
        assert found is not None
        assert (found.status, found.reason) == ("False", "InvalidPodTemplate")
        assert text in found.message
        assert "podDefaults" in found.message


def test_what_the_defaults_refer_to_must_exist() -> None:
    variable = {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "proxy", "key": "password"}}}
    for game, installed in (
        (valid_game({"podDefaults": {"env": [variable]}}), DEFAULTS),
        (valid_game(), installation(env=[variable])),
    ):
        assert game.game is not None
        assert references(game.game, installed).secrets["proxy"] == {"password"}
        found = condition(build_plan(game, EMPTY, installed), "Accepted")
        assert found is not None
        assert (found.reason, "Secret proxy" in found.message) == ("SecretNotFound", True)
    overridden = valid_game({"podDefaults": {"env": [variable]}, "peers": {"env": [{"name": "KEY", "value": "a"}]}})
    assert overridden.game is not None
    assert "proxy" in references(overridden.game, DEFAULTS).secrets, "the other roles still need it"


def test_the_games_file_holds_nothing_of_the_pods() -> None:
    secret = {"podDefaults": {"env": [{"name": "A", "value": "a password"}]}, "podTemplates": {"gateway": {}}}
    data = game_file(game_context(valid_game(secret))).apply_manifest["data"]
    assert data == game_file(game_context(valid_game())).apply_manifest["data"]


def test_a_pod_with_defaults_is_tried_before_it_is_created() -> None:
    game, observed = settled(valid_game())
    fresh = replace(observed, job=None)
    assert build_plan(game, fresh, DEFAULTS).dry_run is None
    with_defaults = replace(valid_game({"podDefaults": {"nodeSelector": {"a": "b"}}}), status=game.status)
    assert build_plan(with_defaults, fresh, DEFAULTS).dry_run is not None
