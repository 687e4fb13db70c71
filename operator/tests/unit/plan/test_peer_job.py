"""The peers' Job: its policies, its pods, and the hash of its template."""

from __future__ import annotations

from typing import Any

import pytest
from plan_fixtures import DEFAULTS, game_context, valid_game

from swarmgame_operator.defaults import Defaults
from swarmgame_operator.plan.devices import processes
from swarmgame_operator.plan.peer_job import peer_job
from swarmgame_operator.plan.plan_types import Child

HUB: dict[str, Any] = {"model": {"uri": "hf://a/b", "secretRef": {"name": "hub"}}}


def job(spec: dict[str, Any] | None = None, defaults: Defaults = DEFAULTS, **rest: Any) -> Child:
    return peer_job(game_context(valid_game(spec, **rest), defaults))


def created_job(spec: dict[str, Any] | None = None, defaults: Defaults = DEFAULTS, **rest: Any) -> dict[str, Any]:
    created = job(spec, defaults, **rest).create_manifest
    assert created is not None
    return created


def pod(spec: dict[str, Any] | None = None, defaults: Defaults = DEFAULTS, **rest: Any) -> dict[str, Any]:
    found: dict[str, Any] = created_job(spec, defaults, **rest)["spec"]["template"]["spec"]
    return found


def peer(spec: dict[str, Any] | None = None, defaults: Defaults = DEFAULTS, **rest: Any) -> dict[str, Any]:
    found: dict[str, Any] = pod(spec, defaults, **rest)["containers"][0]
    return found


def environment(spec: dict[str, Any] | None = None) -> dict[str, Any]:
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in peer(spec)["env"]}


def test_a_job_of_no_peers_is_refused() -> None:
    with pytest.raises(ValueError, match="suspended"):
        job({"peers": {"replicas": 0}})


@pytest.mark.parametrize(("replicas", "allowed", "expected"), [(4, 2, 2), (4, 4, 4), (2, 5, 2), (1, 0, 0)])
def test_no_more_peers_may_fail_than_there_are(replicas: int, allowed: int, expected: int) -> None:
    found = created_job({"peers": {"replicas": replicas}, "failurePolicy": {"maxFailedPeers": allowed}})["spec"]
    assert (found["parallelism"], found["completions"], found["maxFailedIndexes"]) == (replicas, replicas, expected)


def test_a_rule_names_only_containers_that_the_pod_has() -> None:
    for spec in ({"model": None}, {"storage": {"cache": {"claimName": "c"}}}, {}):
        found = created_job(spec)["spec"]
        names = {
            each["name"]
            for kind in ("containers", "initContainers")
            for each in found["template"]["spec"].get(kind, [])
        }
        ruled = {
            rule["onExitCodes"]["containerName"] for rule in found["podFailurePolicy"]["rules"] if "onExitCodes" in rule
        }
        assert ruled <= names


def test_the_backoff_limit_per_peer_is_the_jobs_per_index() -> None:
    found = created_job({"failurePolicy": {"backoffLimitPerPeer": 7}})["spec"]
    assert (found["backoffLimitPerIndex"], found["completionMode"], found["podReplacementPolicy"]) == (
        7,
        "Indexed",
        "Failed",
    )
    assert found["template"]["spec"]["restartPolicy"] == "Never"


@pytest.mark.parametrize(("policy", "expected"), [("AnyPeer", {"rules": [{"succeededCount": 1}]}), ("AllPeers", None)])
def test_only_a_game_that_any_peer_may_end_ends_with_the_first(policy: str, expected: object) -> None:
    assert created_job({"completion": {"policy": policy}})["spec"].get("successPolicy") == expected


def test_a_job_for_a_queue_has_the_labels_and_annotations_of_kueue_and_no_others() -> None:
    labels = {"kueue.x-k8s.io/queue-name": "research", "kueue.x-k8s.io/priority-class": "high", "other": "not copied"}
    annotations = {"kueue.x-k8s.io/elastic-job": "true", "other": "not copied"}
    found = created_job(labels=labels, annotations=annotations)
    assert found["spec"]["suspend"] is True
    assert found["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
    assert found["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == "high"
    assert found["metadata"]["annotations"]["kueue.x-k8s.io/elastic-job"] == "true"
    assert "other" not in found["metadata"]["labels"]
    assert "suspend" not in created_job()["spec"]


def test_a_later_apply_contains_the_number_of_peers_and_no_fields_of_others() -> None:
    found = job(labels={"kueue.x-k8s.io/queue-name": "research"}).apply_manifest
    assert set(found["spec"]) == {"parallelism", "completions", "maxFailedIndexes"}
    assert "kueue.x-k8s.io/queue-name" not in found["metadata"]["labels"]


def test_the_number_of_peers_is_not_applied_under_partial_admission() -> None:
    found = job(annotations={"kueue.x-k8s.io/job-min-parallelism": "2"})
    assert "spec" not in found.apply_manifest
    assert found.create_manifest is not None
    assert found.create_manifest["spec"]["parallelism"] == 4


SAME: list[dict[str, Any]] = [
    {"peers": {"replicas": 9}},
    {"peers": {"minReplicas": 2, "maxReplicas": 5}},
    {"activeDeadlineSeconds": 5},
    {"ttlSecondsAfterFinished": 5},
    {"failurePolicy": {"maxFailedPeers": 3}},
    {"storage": {"checkpoints": {}}},
    {"networkPolicy": {"mode": "None"}},
    {"bootnode": {"expose": "NodePort"}},
    {"identity": {"retentionPolicy": "Delete"}},
    {"suspend": True},
    {"observability": {"trackers": []}},
    {"podDefaults": {}},
    {"podTemplates": {"bootnode": {"spec": {"priorityClassName": "high"}}}},
]
OTHER: list[dict[str, Any]] = [
    {"observability": {"trackers": [{"use": "tensorboard"}]}},
    {"peers": {"image": "example.dev/w:2"}},
    {"peers": {"env": [{"name": "A", "value": "1"}]}},
    {"peers": {"resources": {"limits": {"memory": "1Gi"}}}},
    {"peers": {"podTemplate": {"spec": {"priorityClassName": "high"}}}},
    {"peers": {"processesPerPeer": 2}},
    {"model": {"uri": "builtin://tiny?layers=2"}},
    {"communication": {"port": 31001}},
    {"storage": {"sharedMemory": "1Gi"}},
    {"storage": {"checkpoints": {"everyRounds": 5}}},
    {"failurePolicy": {"backoffLimitPerPeer": 1}},
    {"terminationGracePeriodSeconds": 5},
    {"completion": {"policy": "AllPeers"}},
    {"identity": {"secretName": "mine"}},
    {"podDefaults": {"labels": {"team": "a"}}},
    {"podDefaults": {"securityContext": {"runAsUser": None}}},
    {"podDefaults": {"arbitraryUser": False}},
]


@pytest.mark.parametrize("spec", SAME, ids=str)
def test_a_change_that_does_not_affect_pods_keeps_the_hash(spec: dict[str, Any]) -> None:
    assert game_context(valid_game(spec)).template_hash == game_context(valid_game()).template_hash


@pytest.mark.parametrize("spec", OTHER, ids=str)
def test_a_change_that_affects_pods_changes_the_hash(spec: dict[str, Any]) -> None:
    assert game_context(valid_game(spec)).template_hash != game_context(valid_game()).template_hash


def test_the_operators_own_defaults_are_no_part_of_the_hash() -> None:
    newer = Defaults(worker_image="example.dev/worker:2", image_pull_policy="Always", image_pull_secrets=("registry",))
    assert game_context(valid_game(), newer).template_hash == game_context(valid_game()).template_hash
    assert created_job(defaults=newer)["spec"] != created_job()["spec"]


def test_an_explicit_default_keeps_the_hash() -> None:
    patient = game_context(valid_game({"terminationGracePeriodSeconds": 120}))
    assert patient.template_hash == game_context(valid_game()).template_hash


@pytest.mark.parametrize(
    ("peers", "expected"),
    [
        ({}, "auto"),
        ({"processesPerPeer": 2}, "2"),
        ({"resources": {"limits": {"nvidia.com/gpu": "4"}}}, "4"),
        ({"resources": {"limits": {"amd.com/gpu": "2"}}}, "2"),
        ({"processesPerPeer": 1, "resources": {"limits": {"nvidia.com/gpu": "4"}}}, "1"),
        ({"resources": {"limits": {"nvidia.com/gpu": "0"}}}, "auto"),
    ],
)
def test_a_peer_has_as_many_processes_as_gpus_by_default(peers: dict[str, Any], expected: str) -> None:
    assert processes(game_context(valid_game({"peers": peers}))) == expected


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({}, None),
        ({"limits": {"memory": "2Gi"}}, {"limits": {"memory": "2Gi"}, "requests": {"memory": "2Gi"}}),
        ({"requests": {"memory": "2Gi"}}, {"limits": {"memory": "2Gi"}, "requests": {"memory": "2Gi"}}),
        (
            {"limits": {"memory": "2Gi"}, "requests": {"memory": "1Gi", "cpu": "1"}},
            {"limits": {"memory": "2Gi"}, "requests": {"memory": "1Gi", "cpu": "1"}},
        ),
        ({"requests": {"cpu": "2"}}, {"requests": {"cpu": "2"}}),
    ],
)
def test_memory_is_requested_as_limited_and_cpu_is_not_limited(resources: dict[str, Any], expected: object) -> None:
    assert peer({"peers": {"resources": resources}}).get("resources") == expected


def test_threads_follow_the_cpu_request_of_a_peer_of_one_process() -> None:
    spec = {"peers": {"resources": {"requests": {"cpu": "500m"}}}}
    assert environment(spec)["OMP_NUM_THREADS"] == {
        "resourceFieldRef": {"containerName": "peer", "resource": "requests.cpu", "divisor": "1"}
    }
    assert environment()["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in environment(
        {"peers": {"resources": {"requests": {"cpu": "4"}}, "processesPerPeer": 2}}
    )


def test_an_authors_variable_replaces_the_operators_of_the_same_name() -> None:
    found = environment(
        {"peers": {"env": [{"name": "SWARMGAME_JOIN_SECONDS", "value": "5"}, {"name": "MINE", "value": "1"}]}}
    )
    assert (found["SWARMGAME_JOIN_SECONDS"], found["MINE"]) == ("5", "1")


def test_a_variable_from_a_secret_stays_a_reference() -> None:
    source = {"secretKeyRef": {"name": "s", "key": "k"}}
    assert environment({"peers": {"env": [{"name": "TOKEN", "valueFrom": source}]}})["TOKEN"] == source


def test_peers_have_no_token_and_run_offline_and_the_initializer_has_one() -> None:
    for storage in ({}, {"cache": {"claimName": "c"}}):
        found = environment({**HUB, "storage": storage})
        assert found["HF_HUB_OFFLINE"] == "1"
        assert "SWARMGAME_MODEL_TOKEN_FILE" not in found
        assert "model-token" not in {each["name"] for each in peer({**HUB, "storage": storage})["volumeMounts"]}
    first = pod(HUB)["initContainers"][0]
    assert "SWARMGAME_MODEL_TOKEN_FILE" in {each["name"] for each in first["env"]}
    assert "initContainers" not in pod({**HUB, "storage": {"cache": {"claimName": "c"}}})
    assert "model-token" not in {
        each["name"] for each in pod({**HUB, "storage": {"cache": {"claimName": "c"}}})["volumes"]
    }


def test_a_pod_template_is_merged_and_cannot_replace_the_operators_labels() -> None:
    template = {
        "metadata": {"labels": {"team": "a", "swarmgame.dev/role": "spy"}, "annotations": {"x": "y"}},
        "spec": {
            "priorityClassName": "high",
            "containers": [{"name": "peer", "workingDir": "/x"}, {"name": "sidecar", "image": "s"}],
        },
    }
    found = created_job({"peers": {"podTemplate": template}})["spec"]["template"]
    assert found["metadata"]["labels"]["swarmgame.dev/role"] == "peer"
    assert found["metadata"]["labels"]["team"] == "a"
    assert found["metadata"]["annotations"] == {"x": "y"}
    assert found["spec"]["priorityClassName"] == "high"
    assert [each["name"] for each in found["spec"]["containers"]] == ["peer", "sidecar"]
    assert found["spec"]["containers"][0]["workingDir"] == "/x"
    assert found["spec"]["containers"][0]["args"] == ["pod", "peer"]


def test_the_installations_cluster_domain_is_added() -> None:
    found = peer(defaults=Defaults(cluster_domain="cluster.example"))
    value = next(each["value"] for each in found["env"] if each["name"] == "SWARMGAME_INITIAL_PEERS")
    assert value.startswith("/dns4/sums-bootnode.lab.svc.cluster.example/tcp/31000/")
