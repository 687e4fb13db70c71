"""The two Jobs: when they are created, scaled, replaced and left alone."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from plan_fixtures import (
    BOOTNODE_PEER,
    DEFAULTS,
    EMPTY,
    apply_plan,
    changed,
    job_with,
    jobs,
    peer_id,
    reported,
    running,
    settled,
    valid_game,
    with_status,
)

from swarmgame_operator.defaults import Defaults
from swarmgame_operator.plan import Deletion, Plan, build_plan
from swarmgame_operator.snapshot import ChildFacts, JobCondition

CLAIM = {"claimTemplate": {"spec": {"resources": {"requests": {"storage": "1Gi"}}}}}
CACHED = {"storage": {"cache": CLAIM}}
SAVED = {"storage": {"checkpoints": CLAIM}}


def test_keys_come_first_and_everything_else_when_they_exist() -> None:
    first = build_plan(valid_game(), EMPTY, DEFAULTS)
    assert [each.name for each in first.keys] == ["sums-peer-keys", "sums-bootnode-key"]
    assert first.keys[0].missing == ("peer-0.key", "peer-1.key", "peer-2.key", "peer-3.key")
    assert (first.children, first.requeue_after) == ((), 0.0)
    second = build_plan(with_status(valid_game(), first.status), apply_plan(EMPTY, first), DEFAULTS)
    assert second.keys == ()
    assert jobs(second) == ["sums-peers"], "the second plan creates the peers"


def test_the_file_and_the_services_stand_before_the_job() -> None:
    found = build_plan(valid_game(), apply_plan(EMPTY, build_plan(valid_game(), EMPTY, DEFAULTS)), DEFAULTS)
    kinds = [child.kind for child in found.children]
    assert kinds[0] == "ConfigMap"
    assert kinds[-1] == "Job"
    assert kinds.index("Service") < kinds.index("Deployment") < kinds.index("Job")


def test_peers_wait_for_the_bootnodes_id() -> None:
    observed = apply_plan(EMPTY, build_plan(valid_game(), EMPTY, DEFAULTS))
    assert observed.bootnode_peer == BOOTNODE_PEER
    assert build_plan(valid_game(), replace(observed, bootnode_peer=""), DEFAULTS).children == ()


def test_a_bootnodes_key_that_cannot_be_used_is_said_until_it_is_replaced() -> None:
    observed = apply_plan(EMPTY, build_plan(valid_game(), EMPTY, DEFAULTS))
    bad = replace(observed, bootnode_peer="", bootnode_key_unusable=True)
    found = build_plan(valid_game(), bad, DEFAULTS)
    assert (found.children, reported(found)["Degraded"]) == ((), ("True", "KeyUnusable"))
    assert reported(found)["Ready"] == ("False", "Blocked")
    deleted = replace(bad, bootnode_key_unusable=False, secrets={**bad.secrets, "sums-bootnode-key": frozenset()})
    assert [each.missing for each in build_plan(valid_game(), deleted, DEFAULTS).keys] == [("bootnode.key",)]


def test_the_games_own_peers_are_named_beside_its_file_and_one_more_replaces_no_pod() -> None:
    resource, observed = changed({"peers": {"replicas": 3}}, {"peers": {"replicas": 2}})
    assert observed.peer_ids == (peer_id(0), peer_id(1))
    observed = apply_plan(observed, build_plan(resource, observed, DEFAULTS))
    found = build_plan(resource, observed, DEFAULTS)
    (file,) = (child for child in found.children if child.kind == "ConfigMap")
    assert file.apply_manifest["data"]["peers"] == f"{peer_id(0)}\n{peer_id(1)}\n{peer_id(2)}\n"
    assert not found.deletions
    closed = valid_game({"communication": {"backend": "TorchDistributed"}})
    first = build_plan(closed, EMPTY, DEFAULTS)
    (file, *_) = build_plan(closed, apply_plan(EMPTY, first), DEFAULTS).children
    assert set(file.apply_manifest["data"]) == {"game.yaml"}


def test_peers_wait_until_the_cache_is_full() -> None:
    resource, observed = settled(valid_game(CACHED))
    assert observed.job is None
    assert observed.initializer is not None
    done = replace(observed.initializer, conditions=(JobCondition("Complete"),))
    assert jobs(build_plan(resource, replace(observed, initializer=done), DEFAULTS)) == ["sums-peers"]


def test_a_cache_that_was_filled_for_another_model_is_filled_again() -> None:
    resource, observed = settled(valid_game(CACHED))
    assert observed.initializer is not None
    observed = replace(observed, initializer=replace(observed.initializer, conditions=(JobCondition("Complete"),)))
    other = valid_game({**CACHED, "model": {"uri": "hf://a/b"}}, status=resource.status, generation=2)
    found = build_plan(other, observed, DEFAULTS)
    assert jobs(found) == []
    assert Deletion("Job", "sums-initializer", "Foreground") in found.deletions
    assert jobs(build_plan(with_status(other, found.status), apply_plan(observed, found), DEFAULTS)) == [
        "sums-initializer"
    ]


@pytest.mark.parametrize(
    ("model", "cache", "expected"),
    [
        ({"uri": "hf://a/b"}, CLAIM, True),
        ({"uri": "builtin://tiny"}, CLAIM, True),
        ({"uri": "file:///models/m"}, CLAIM, False),
        (None, CLAIM, False),
        ({"uri": "hf://a/b"}, {}, False),
    ],
)
def test_a_job_fills_the_cache_if_there_is_a_model_and_the_cache_outlives_a_pod(
    model: Any, cache: Any, expected: bool
) -> None:
    _, observed = settled(valid_game({"model": model, "storage": {"cache": cache}}))
    assert (observed.initializer is not None) is expected


def test_an_initializer_is_deleted_with_its_suspended_game_and_a_finished_one_is_kept() -> None:
    _, observed = settled(valid_game(CACHED))
    assert observed.initializer is not None
    stopped = valid_game({**CACHED, "suspend": True})
    assert Deletion("Job", "sums-initializer", "Foreground") in build_plan(stopped, observed, DEFAULTS).deletions
    done = replace(observed, initializer=replace(observed.initializer, conditions=(JobCondition("Complete"),)))
    assert not build_plan(stopped, done, DEFAULTS).deletions


@pytest.mark.parametrize("size", [1, 2, 6, 9])
def test_a_scale_changes_the_numbers_together_and_nothing_else(size: int) -> None:
    resource, observed = changed({"peers": {"replicas": size}})
    found = build_plan(resource, observed, DEFAULTS)
    if found.keys:
        assert [each.missing for each in found.keys] == [tuple(f"peer-{index}.key" for index in range(4, size))]
        found = build_plan(resource, apply_plan(observed, found), DEFAULTS)
    assert not found.deletions
    (job,) = [child for child in found.children if child.kind == "Job"]
    assert job.create_manifest is None
    assert job.apply_manifest["spec"] == {"parallelism": size, "completions": size, "maxFailedIndexes": min(2, size)}


def test_keys_of_removed_peers_are_kept() -> None:
    resource, observed = changed({"peers": {"replicas": 1}})
    observed = apply_plan(observed, build_plan(resource, observed, DEFAULTS))
    assert len(observed.secrets["sums-peer-keys"]) == 4
    again = valid_game(status=resource.status, generation=3)
    assert not build_plan(again, observed, DEFAULTS).keys


def test_a_change_of_the_pods_replaces_the_job_once_its_pods_are_gone() -> None:
    resource, observed = changed({**SAVED, "peers": {"image": "example.dev/other:2"}}, SAVED)
    found = build_plan(resource, observed, DEFAULTS)
    assert found.deletions == (Deletion("Job", "sums-peers", "Foreground"),)
    assert observed.job is not None
    leaving = replace(observed, job=replace(observed.job, deleting=True))
    resource = with_status(resource, found.status)
    between = build_plan(resource, leaving, DEFAULTS)
    assert (between.deletions, jobs(between), reported(between)["Progressing"]) == ((), [], ("True", "RollingOut"))
    made = build_plan(resource, replace(apply_plan(observed, found), pods=()), DEFAULTS)
    (job,) = [child for child in made.children if child.kind == "Job"]
    assert job.create_manifest is not None
    assert job.create_manifest["spec"]["template"]["spec"]["containers"][0]["image"] == "example.dev/other:2"


def test_new_pods_that_the_server_refuses_do_not_replace_the_old_ones() -> None:
    resource, observed = changed({**SAVED, "peers": {"podTemplate": {"spec": {"priorityClassName": "nope"}}}}, SAVED)
    found = build_plan(resource, observed, DEFAULTS)
    assert found.dry_run is not None
    assert not found.deletions
    from swarmgame_operator.snapshot import DryRunFacts

    refused = build_plan(
        resource, replace(observed, dry_run=DryRunFacts(found.dry_run.hash, "no PriorityClass nope")), DEFAULTS
    )
    assert (refused.deletions, reported(refused)["Accepted"]) == ((), ("False", "InvalidPodTemplate"))
    granted = build_plan(resource, replace(observed, dry_run=DryRunFacts(found.dry_run.hash)), DEFAULTS)
    assert granted.deletions == (Deletion("Job", "sums-peers", "Foreground"),)


def test_a_newer_operator_does_not_touch_running_peers() -> None:
    resource, observed = running(valid_game())
    newer = Defaults(
        worker_image="example.dev/worker:2", image_pull_policy="Always", chain_image="x", gateway_image="y"
    )
    found = build_plan(resource, observed, newer)
    assert jobs(found) == []
    assert not found.deletions


@pytest.mark.parametrize("spec", [{"suspend": True}, {**SAVED, "peers": {"image": "example.dev/other:2"}}])
def test_a_job_is_deleted_by_its_uid_and_one_that_another_controls_never(spec: dict[str, Any]) -> None:
    resource, observed = changed(spec, SAVED)
    assert observed.job is not None
    observed = replace(observed, job=replace(observed.job, uid="u1"))
    assert Deletion("Job", "sums-peers", "Foreground", "u1") in build_plan(resource, observed, DEFAULTS).deletions
    place = ("Job", "sums-peers")
    theirs = {**observed.children, place: replace(observed.children[place], controller="CronJob nightly")}
    found = build_plan(resource, replace(observed, children=theirs), DEFAULTS)
    assert not [each for each in found.deletions if each.kind == "Job"]
    assert reported(found)["Degraded"] == ("True", "NameTaken")


def test_a_deleted_job_is_created_again() -> None:
    resource, observed = running(valid_game())
    children = {key: facts for key, facts in observed.children.items() if key[0] != "Job"}
    found = build_plan(resource, replace(observed, job=None, pods=(), children=children), DEFAULTS)
    assert jobs(found) == ["sums-peers"]


def test_a_child_that_was_changed_or_deleted_is_restored() -> None:
    resource, observed = running(valid_game())
    key = ("Service", "sums-bootnode")
    drifted = {**observed.children, key: replace(observed.children[key], drift_unknown=True)}
    assert [child.name for child in build_plan(resource, replace(observed, children=drifted), DEFAULTS).children] == [
        "sums-bootnode"
    ]
    missing = {each: facts for each, facts in observed.children.items() if each != key}
    assert [child.name for child in build_plan(resource, replace(observed, children=missing), DEFAULTS).children] == [
        "sums-bootnode"
    ]
    deleting = {**observed.children, key: ChildFacts(deleting=True)}
    assert not build_plan(resource, replace(observed, children=deleting), DEFAULTS).children


def owned(value: Any) -> dict[str, Any]:
    """Return a manifest's fields as managedFields has them, with every list owned as one value."""
    return {f"f:{key}": owned(below) for key, below in value.items()} if isinstance(value, dict) else {}


def test_a_child_with_unknown_drift_is_compared_in_the_plan() -> None:
    resource, observed = running(valid_game())
    key = ("Service", "sums-bootnode")
    missing = {each: facts for each, facts in observed.children.items() if each != key}
    (child,) = build_plan(resource, replace(observed, children=missing), DEFAULTS).children
    fields = owned(child.apply_manifest)
    owners = tuple(each["uid"] for each in child.apply_manifest["metadata"]["ownerReferences"])

    def drifted(owners: tuple[str, ...]) -> list[tuple[str, ...]]:
        unknown = replace(observed.children[key], drift_unknown=True, owned_fields=json.dumps(fields), owners=owners)
        plan = build_plan(resource, replace(observed, children={**observed.children, key: unknown}), DEFAULTS)
        return [each.drifted for each in plan.children]

    assert drifted(owners) == []
    assert drifted(()) == [("metadata.ownerReferences",)]
    del fields["f:spec"]["f:selector"]
    assert drifted(owners) == [("spec.selector",)]


def test_orphans_are_deleted_and_other_kinds_never() -> None:
    resource, observed = changed(
        {"networkPolicy": {"mode": "None"}, "bootnode": {"expose": "ClusterIP"}}, {"bootnode": {"expose": "NodePort"}}
    )
    extra = {
        **observed.children,
        ("PersistentVolumeClaim", "sums-cache"): ChildFacts(),
        ("Secret", "sums-old"): ChildFacts(),
    }
    found = build_plan(resource, replace(observed, children=extra), DEFAULTS)
    assert {(each.kind, each.name) for each in found.deletions} == {
        ("NetworkPolicy", "sums-peers"),
        ("Service", "sums-bootnode-external"),
    }


def test_a_finished_job_is_neither_scaled_nor_replaced() -> None:
    resource, observed = changed({"peers": {"replicas": 2, "image": "example.dev/other:2"}})
    found = build_plan(resource, job_with(observed, ("Complete", "")), DEFAULTS)
    assert jobs(found) == []
    assert not [each for each in found.deletions if each.kind == "Job"]


def test_a_game_that_is_being_deleted_is_left_to_its_owner_references() -> None:
    resource, observed = running(valid_game())
    dying = valid_game(status=resource.status, deletionTimestamp="2026-01-31T13:00:00Z")
    assert build_plan(dying, observed, DEFAULTS) == Plan(resource.status)
