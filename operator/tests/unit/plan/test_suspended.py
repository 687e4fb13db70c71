"""Suspension by the author, by scaling to zero and by a queue, and what is kept meanwhile."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from plan_fixtures import (
    DEFAULTS,
    apply_plan,
    condition,
    later,
    ready_pod,
    reported,
    running,
    settled,
    valid_game,
    with_status,
)

from swarmgame_api.resource import GameResource
from swarmgame_operator.plan import Deletion, Plan, build_plan
from swarmgame_operator.snapshot import Observed

QUEUE = {"kueue.x-k8s.io/queue-name": "research"}
PAUSES: list[dict[str, Any]] = [{"suspend": True}, {"peers": {"replicas": 0}}]


def paused(spec: dict[str, Any]) -> tuple[GameResource, Observed, Plan]:
    """A running game that its author has just suspended."""
    resource, observed = running(valid_game())
    resource = valid_game(spec, status=resource.status, generation=2)
    return resource, observed, build_plan(resource, observed, DEFAULTS)


@pytest.mark.parametrize("spec", PAUSES, ids=str)
def test_a_stopped_game_loses_its_job_with_all_pods_and_nothing_else(spec: dict[str, Any]) -> None:
    _, _, found = paused(spec)
    assert found.deletions == (Deletion("Job", "sums-peers", "Foreground"),)
    assert not found.delete_game
    assert not any(child.kind == "Job" for child in found.children)


@pytest.mark.parametrize("spec", PAUSES, ids=str)
def test_a_stopped_game_keeps_its_keys_its_services_and_its_status(spec: dict[str, Any]) -> None:
    resource, observed, found = paused(spec)
    after = apply_plan(observed, found)
    assert after.secrets == observed.secrets
    assert ("Service", "sums-bootnode") in after.children
    assert found.status.start_time == resource.status.start_time
    assert found.status.progress == resource.status.progress


@pytest.mark.parametrize("spec", PAUSES, ids=str)
def test_the_bootnode_has_no_pod_while_the_game_is_suspended(spec: dict[str, Any]) -> None:
    _, observed, found = paused(spec)
    (deployment,) = [child for child in found.children if child.kind == "Deployment"]
    assert deployment.apply_manifest["spec"]["replicas"] == 0
    assert deployment.create_manifest is None
    assert ("Deployment", "sums-bootnode") in observed.children


@pytest.mark.parametrize("spec", PAUSES, ids=str)
def test_a_stopped_game_is_neither_degraded_nor_stalled(spec: dict[str, Any]) -> None:
    resource, observed, found = paused(spec)
    after = replace(apply_plan(observed, found), pods=())
    found = build_plan(with_status(resource, found.status), later(after, 100_000), DEFAULTS)
    assert reported(found)["Degraded"] == ("False", "AsExpected")
    assert reported(found)["Progressing"] == ("False", "ScalingDown")
    assert reported(found)["Ready"][0] == "False"
    assert found.requeue_after is None
    assert found.status.replicas == 0


def test_a_resumed_game_waits_until_the_old_pods_are_gone_and_then_creates_a_new_job() -> None:
    resource, observed, _ = paused({"suspend": True})
    assert observed.job is not None
    leaving = replace(observed, job=replace(observed.job, deleting=True))
    resource = valid_game(status=resource.status, generation=3)
    assert not [child for child in build_plan(resource, leaving, DEFAULTS).children if child.kind == "Job"]
    gone = replace(
        leaving, job=None, pods=(), children={key: facts for key, facts in observed.children.items() if key[0] != "Job"}
    )
    made = [child for child in build_plan(resource, gone, DEFAULTS).children if child.kind == "Job"]
    assert [child.name for child in made] == ["sums-peers"]
    assert made[0].create_manifest is not None


def test_a_game_that_begins_suspended_has_everything_but_peers() -> None:
    _, observed = settled(valid_game({"suspend": True}))
    kinds = {kind for kind, _ in observed.children}
    assert "Job" not in kinds
    assert {"ConfigMap", "Secret", "Service", "Deployment"} <= kinds
    assert observed.job is None


def test_keys_are_generated_for_the_number_of_peers() -> None:
    _, observed = settled(valid_game({"suspend": True, "peers": {"replicas": 3}}))
    assert observed.secrets["sums-peer-keys"] == {"peer-0.key", "peer-1.key", "peer-2.key"}


def test_a_job_that_a_queue_suspends_is_not_deleted() -> None:
    resource, observed = running(valid_game(labels=QUEUE))
    assert observed.job is not None
    found = build_plan(resource, replace(observed, pods=(), job=replace(observed.job, suspended=True)), DEFAULTS)
    assert not found.deletions
    assert not found.children


def test_a_game_that_is_admitted_and_preempted_has_a_reason_for_each() -> None:
    resource, observed = settled(valid_game(labels=QUEUE))
    assert observed.job is not None
    assert reported(resource.status)["Suspended"] == ("True", "NotAdmitted")
    assert reported(resource.status)["Ready"] == ("False", "WaitingForQueue")
    admitted = replace(observed, job=replace(observed.job, suspended=False), pods=(ready_pod(0),))
    resource = with_status(resource, build_plan(resource, admitted, DEFAULTS).status)
    assert reported(resource.status)["Suspended"] == ("False", "Resumed")
    for _ in range(2):  # it stays preempted
        evicted = replace(observed, job=replace(observed.job, suspended=True), pods=())
        resource = with_status(resource, build_plan(resource, evicted, DEFAULTS).status)
        assert reported(resource.status)["Suspended"] == ("True", "Preempted")
    resource = with_status(resource, build_plan(resource, admitted, DEFAULTS).status)
    assert reported(resource.status)["Suspended"] == ("False", "Resumed")


def test_a_new_job_for_a_queue_is_not_called_preempted() -> None:
    resource, observed = running(valid_game(labels=QUEUE))
    without = replace(
        observed,
        job=None,
        pods=(),
        children={key: facts for key, facts in observed.children.items() if key[0] != "Job"},
    )
    found = build_plan(resource, without, DEFAULTS)
    assert reported(found)["Suspended"] == ("True", "NotAdmitted")
    again = build_plan(with_status(resource, found.status), apply_plan(without, found), DEFAULTS)
    assert reported(again)["Suspended"] == ("True", "NotAdmitted")


def test_the_authors_suspension_comes_before_the_queues() -> None:
    resource, observed = running(valid_game(labels=QUEUE))
    found = build_plan(valid_game({"suspend": True}, labels=QUEUE, status=resource.status), observed, DEFAULTS)
    assert reported(found)["Suspended"] == ("True", "SuspendedByUser")
    assert [each.kind for each in found.deletions] == ["Job"]


def test_a_game_that_is_over_cannot_be_resumed() -> None:
    resource, observed = running(valid_game({"activeDeadlineSeconds": 60}))
    found = build_plan(resource, later(observed, 100), DEFAULTS)
    assert condition(found, "Failed") is not None
    resource = valid_game({"suspend": False}, status=found.status, generation=9)
    again = build_plan(resource, replace(apply_plan(observed, found), pods=()), DEFAULTS)
    assert not [child for child in again.children if child.kind == "Job"]
