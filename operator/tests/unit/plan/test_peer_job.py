"""The peers' Job: its policies, what is in its pods, and what changes its template's hash."""

from __future__ import annotations

from typing import Any

import pytest
from plan_fixtures import DEFAULTS, game_context, valid_game

from swarmgame_operator.defaults import Defaults
from swarmgame_operator.plan.peer_job import peer_job, template_hash
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


def test_a_job_of_no_peers_is_never_made() -> None:
    with pytest.raises(ValueError, match="suspended"):
        job({"peers": {"replicas": 0}})


@pytest.mark.parametrize(("replicas", "allowed", "expected"), [(4, 2, 2), (4, 4, 4), (2, 5, 2), (1, 0, 0)])
def test_no_more_peers_may_fail_than_there_are(replicas: int, allowed: int, expected: int) -> None:
    found = created_job({"peers": {"replicas": replicas}, "failurePolicy": {"maxFailedPeers": allowed}})["spec"]
    assert (found["parallelism"], found["completions"], found["maxFailedIndexes"]) == (replicas, replicas, expected)


def test_a_disruption_is_looked_at_before_any_exit_code() -> None:
    rules = created_job({"model": None})["spec"]["podFailurePolicy"]["rules"]
    assert [rule["action"] for rule in rules] == ["Ignore", "FailJob", "FailIndex"]
    assert rules[0]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert rules[1]["onExitCodes"] == {"containerName": "peer", "operator": "In", "values": [64, 78]}
    assert rules[2]["onExitCodes"]["values"] == [77]


def test_an_init_container_that_cannot_use_the_game_fails_the_job_too() -> None:
    rules = created_job()["spec"]["podFailurePolicy"]["rules"]
    assert {rule["onExitCodes"]["containerName"] for rule in rules if rule["action"] == "FailJob"} == {
        "peer",
        "initializer",
    }


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


def test_per_index_backoff_has_what_it_requires() -> None:
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


def test_a_job_for_a_queue_is_made_suspended_and_has_all_that_kueue_reads() -> None:
    labels = {"kueue.x-k8s.io/queue-name": "research", "kueue.x-k8s.io/priority-class": "high", "other": "not copied"}
    annotations = {"kueue.x-k8s.io/elastic-job": "true", "other": "not copied"}
    found = created_job(labels=labels, annotations=annotations)
    assert found["spec"]["suspend"] is True
    assert found["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
    assert found["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == "high"
    assert found["metadata"]["annotations"]["kueue.x-k8s.io/elastic-job"] == "true"
    assert "other" not in found["metadata"]["labels"]
    assert "suspend" not in created_job()["spec"]


def test_what_is_applied_later_is_the_number_of_peers_and_nothing_that_others_write() -> None:
    found = job(labels={"kueue.x-k8s.io/queue-name": "research"}).apply_manifest
    assert set(found["spec"]) == {"parallelism", "completions", "maxFailedIndexes"}
    assert "kueue.x-k8s.io/queue-name" not in found["metadata"]["labels"]


def test_the_number_of_peers_is_the_queues_where_it_may_admit_fewer() -> None:
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
]
OTHER: list[dict[str, Any]] = [
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
]


@pytest.mark.parametrize("spec", SAME, ids=str)
def test_a_change_that_pods_do_not_see_leaves_them_running(spec: dict[str, Any]) -> None:
    assert template_hash(game_context(valid_game(spec))) == template_hash(game_context(valid_game()))


@pytest.mark.parametrize("spec", OTHER, ids=str)
def test_a_change_of_what_pods_are_made_from_has_another_hash(spec: dict[str, Any]) -> None:
    assert template_hash(game_context(valid_game(spec))) != template_hash(game_context(valid_game()))


def test_the_operators_own_defaults_are_no_part_of_the_hash() -> None:
    newer = Defaults(worker_image="example.dev/worker:2", image_pull_policy="Always", image_pull_secrets=("registry",))
    assert template_hash(game_context(valid_game(), newer)) == template_hash(game_context(valid_game()))
    assert created_job(defaults=newer)["spec"] != created_job()["spec"]


def test_a_default_written_out_is_no_change() -> None:
    assert template_hash(game_context(valid_game({"terminationGracePeriodSeconds": 120}))) == template_hash(
        game_context(valid_game())
    )


def test_a_peer_finds_its_own_key_and_only_its_own() -> None:
    mounted = [each for each in peer()["volumeMounts"] if each["name"] == "identity"]
    assert mounted == [
        {
            "name": "identity",
            "mountPath": "/etc/swarmgame/identity/peer.key",
            "subPathExpr": "peer-$(JOB_COMPLETION_INDEX).key",
            "readOnly": True,
        }
    ]
    assert environment()["JOB_COMPLETION_INDEX"] == {
        "fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}
    }


def test_what_refers_to_a_variable_stands_behind_it() -> None:
    names = [each["name"] for each in peer()["env"]]
    assert names.index("POD_IP") < names.index("SWARMGAME_ANNOUNCE")


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
def test_a_peer_has_as_many_processes_as_gpus_unless_told(peers: dict[str, Any], expected: str) -> None:
    assert environment({"peers": peers})["SWARMGAME_PROCESSES"] == expected


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({}, None),
        ({"limits": {"memory": "2Gi"}}, {"limits": {"memory": "2Gi"}, "requests": {"memory": "2Gi"}}),
        ({"requests": {"memory": "2Gi"}}, {"limits": {"memory": "2Gi"}, "requests": {"memory": "2Gi"}}),
        (
            {"limits": {"memory": "2Gi"}, "requests": {"memory": "1Gi", "cpu": "1"}},
            {"limits": {"memory": "2Gi"}, "requests": {"memory": "2Gi", "cpu": "1"}},
        ),
        ({"requests": {"cpu": "2"}}, {"requests": {"cpu": "2"}}),
    ],
)
def test_memory_is_requested_as_limited_and_cpu_is_not_limited(resources: dict[str, Any], expected: object) -> None:
    assert peer({"peers": {"resources": resources}}).get("resources") == expected


def test_threads_follow_the_cpu_that_a_peer_of_one_process_asked_for() -> None:
    asked = {"peers": {"resources": {"requests": {"cpu": "500m"}}}}
    assert environment(asked)["OMP_NUM_THREADS"] == {
        "resourceFieldRef": {"containerName": "peer", "resource": "requests.cpu", "divisor": "1"}
    }
    assert environment()["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in environment(
        {"peers": {"resources": {"requests": {"cpu": "4"}}, "processesPerPeer": 2}}
    )


def test_an_authors_variable_replaces_ours_of_the_same_name() -> None:
    found = environment(
        {"peers": {"env": [{"name": "SWARMGAME_JOIN_SECONDS", "value": "5"}, {"name": "MINE", "value": "1"}]}}
    )
    assert (found["SWARMGAME_JOIN_SECONDS"], found["MINE"]) == ("5", "1")


def test_a_variable_from_a_secret_stays_a_reference() -> None:
    source = {"secretKeyRef": {"name": "s", "key": "k"}}
    assert environment({"peers": {"env": [{"name": "TOKEN", "valueFrom": source}]}})["TOKEN"] == source


def test_peers_have_no_token_and_run_offline_while_whoever_initializes_has_one() -> None:
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


def test_a_model_from_code_needs_no_hub_to_be_shut_off() -> None:
    assert "HF_HUB_OFFLINE" not in environment()


def test_modules_are_mounted_read_only_and_put_on_the_path_in_their_order() -> None:
    game = {
        "maxRounds": 1,
        "data": {"use": "a"},
        "rewards": {"use": "a"},
        "trainer": {"use": "a"},
        "modules": [
            {"name": "one", "image": {"reference": "example.dev/one:1"}, "mountPath": "/m/one"},
            {"name": "two", "configMapRef": {"name": "two-files"}, "mountPath": "/m/two"},
        ],
    }
    found = pod({"game": game})
    assert environment({"game": game})["PYTHONPATH"] == "/m/one:/m/two"
    assert {"name": "module-0", "image": {"reference": "example.dev/one:1"}} in found["volumes"]
    assert {"name": "module-1", "configMap": {"name": "two-files"}} in found["volumes"]
    for container in (*found["containers"], *found["initContainers"]):
        mounts = {each["mountPath"]: each for each in container["volumeMounts"]}
        assert mounts["/m/one"]["readOnly"] is mounts["/m/two"]["readOnly"] is True


def test_peers_spread_over_hosts_where_they_can() -> None:
    (spread,) = pod()["topologySpreadConstraints"]
    assert (spread["topologyKey"], spread["whenUnsatisfiable"]) == ("kubernetes.io/hostname", "ScheduleAnyway")
    assert (
        spread["labelSelector"]["matchLabels"].items()
        <= created_job()["spec"]["template"]["metadata"]["labels"].items()
    )


def test_peers_with_gpus_and_their_initializer_tolerate_the_taint_of_gpus() -> None:
    gpu = {"peers": {"resources": {"limits": {"nvidia.com/gpu": "1"}}}}
    assert pod(gpu)["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert "tolerations" not in pod()
    assert "resources" not in pod(gpu)["initContainers"][0]


def test_a_pod_template_is_laid_over_and_cannot_take_our_labels_away() -> None:
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


def test_the_chain_is_told_to_peers_by_way_of_the_gateway() -> None:
    dev = environment({"coordination": {"mode": "Dev"}})
    assert dev["SWARMGAME_CHAIN_GATEWAY"] == "http://sums-gateway.lab.svc:8645"
    assert dev["SWARMGAME_CHAIN_RPC"] == "http://sums-chain.lab.svc:8545"
    assert (dev["SWARMGAME_CHAIN_ID"], dev["SWARMGAME_CHAIN_CONTRACT"]) == (
        "31337",
        "0x5FbDB2315678afecb367f032d93F642f64180aa3",
    )
    assert not any(name.startswith("SWARMGAME_CHAIN") for name in environment())


def test_a_peer_first_tries_the_bootnode_where_there_is_one() -> None:
    assert environment()["SWARMGAME_INITIAL_PEERS"].startswith("/dns4/sums-bootnode.lab.svc/tcp/31000/p2p/16Uiu2HA")
    assert environment({"bootnode": {"enabled": False}})["SWARMGAME_INITIAL_PEERS"] == ""


def test_a_cluster_domain_is_added_where_an_installation_has_one() -> None:
    found = peer(defaults=Defaults(cluster_domain="cluster.example"))
    value = next(each["value"] for each in found["env"] if each["name"] == "SWARMGAME_INITIAL_PEERS")
    assert value.startswith("/dns4/sums-bootnode.lab.svc.cluster.example/tcp/31000/")


def test_a_peer_is_stopped_with_time_to_save_itself() -> None:
    found = pod({"terminationGracePeriodSeconds": 300})
    assert found["terminationGracePeriodSeconds"] == 300
    assert found["containers"][0]["lifecycle"] == {"preStop": {"httpGet": {"path": "/drain", "port": "http"}}}


def test_a_model_may_take_an_hour_to_load_and_progress_is_no_matter_of_life() -> None:
    found = peer()
    assert found["startupProbe"]["periodSeconds"] * found["startupProbe"]["failureThreshold"] == 3_600
    assert [found[kind]["httpGet"]["path"] for kind in ("startupProbe", "readinessProbe", "livenessProbe")] == [
        "/healthz",
        "/readyz",
        "/healthz",
    ]
