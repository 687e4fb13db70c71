"""Obstacles: what is refused, does not start or does not end is said with the API server's words and with a cure."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from plan_fixtures import (
    DEFAULTS,
    NOW,
    condition,
    later,
    peer_pod,
    ready_pod,
    reported,
    running,
    settled,
    valid_game,
    with_status,
)

from swarmgame_operator.plan import Plan, build_plan
from swarmgame_operator.plan.cures import ANY, cure
from swarmgame_operator.snapshot import (
    ContainerFacts,
    Diagnosis,
    Observed,
    PodFacts,
    Refusal,
    WarningFacts,
    WorkloadFacts,
)

QUOTA = (
    'services "sums-peers" is forbidden: exceeded quota: small, requested: services=1, used: services=0, limited: '
    "services=0"
)
PODS = 'Error creating: pods "sums-peers-0-x7k2p" is forbidden: violates PodSecurity "restricted:latest": host ports'
UNKNOWN = "the moon is in the wrong phase"


def started(spec: dict[str, Any] | None = None) -> tuple[Any, Observed]:
    """Return a game whose Job was created now and has no pods, and its snapshot."""
    resource, observed = settled(valid_game(spec))
    assert observed.job is not None
    workloads = tuple(replace(each, ready=1, created=NOW) for each in observed.workloads)
    pods = (PodFacts("sums-bootnode-a", "bootnode", phase="Running", ready=True, created=NOW),)
    job = replace(observed.job, uid="job", created=NOW, started=NOW, parallelism=4)
    return resource, replace(observed, workloads=workloads, pods=pods, job=job)


def planned(resource: Any, observed: Observed) -> Plan:
    return build_plan(resource, observed, DEFAULTS)


def degraded(found: Plan) -> tuple[str, str, str]:
    each = condition(found, "Degraded")
    assert each is not None
    return each.status, each.reason, each.message


def with_refusal(status: int, message: str, *, taken: bool = False, seconds: float = 0.0) -> Plan:
    resource, observed = settled(valid_game())
    refusal = Refusal("Service", "sums-peers", status, message, NOW - timedelta(seconds=seconds), taken)
    return planned(resource, replace(observed, refusals=(refusal,)))


@pytest.mark.parametrize("status", [400, 403, 404, 405, 413, 422])
@pytest.mark.parametrize("message", [QUOTA, UNKNOWN])
def test_any_refusal_is_quoted_at_once_with_what_to_do_in_one_event(status: int, message: str) -> None:
    found = with_refusal(status, f"POST /api/v1/namespaces/lab/services: {message}")
    assert degraded(found)[:2] == ("True", "ObjectRefused")
    assert f"The Service sums-peers cannot be written: {message}." in degraded(found)[2]
    assert "POST" not in degraded(found)[2]
    assert reported(found)["Ready"] == ("False", "Blocked")
    assert [each.reason for each in found.events if each.type == "Warning"] == ["ObjectRefused"]
    assert "Blocked" not in {each.reason for each in found.events}


@pytest.mark.parametrize("status", [0, 409, 429, 500, 503])
def test_a_refusal_that_may_pass_is_quoted_when_it_lasts(status: int) -> None:
    assert degraded(with_refusal(status, UNKNOWN))[1] != "ObjectRefused"
    found = with_refusal(status, UNKNOWN)
    assert found.requeue_after is not None
    assert found.requeue_after <= 11
    assert degraded(with_refusal(status, UNKNOWN, seconds=11))[1] == "ObjectRefused"


def test_a_taken_name_is_named_before_other_refusals() -> None:
    found = with_refusal(409, "it has neither an owner nor this game's labels", taken=True)
    status, reason, message = degraded(found)
    assert (status, reason) == ("True", "NameTaken")
    assert "The Service sums-peers exists and is not this game's: it has neither" in message
    assert "Rename or delete it" in message


def test_an_object_with_our_labels_that_another_controls_is_neither_changed_nor_deleted() -> None:
    resource, observed = running(valid_game())
    place = ("Service", "sums-bootnode")
    theirs = {
        **observed.children,
        place: replace(observed.children[place], controller="Deployment web", drift_unknown=True, owners=("other",)),
        ("ConfigMap", "sums-copy"): replace(observed.children[place], owners=()),
    }
    found = planned(resource, replace(observed, children=theirs))
    assert found.children == ()
    assert found.deletions == ()
    assert degraded(found)[1] == "NameTaken"
    assert "Deployment web" in degraded(found)[2]


def test_a_job_without_pods_has_its_events_read_and_its_refusal_quoted() -> None:
    resource, observed = started()
    early = planned(resource, observed)
    assert early.diagnose == ()
    assert degraded(early)[:2] == ("Unknown", "NotObserved")
    assert early.requeue_after is not None
    assert early.requeue_after < 10
    late = later(observed, 9)
    asked = planned(with_status(resource, early.status), late)
    assert [(each.kind, each.name, each.uid) for each in asked.diagnose] == [("Job", "sums-peers", "job")]
    assert asked.requeue_after == 0.0
    answer = Diagnosis(late.now, "job", (WarningFacts("FailedCreate", PODS, late.now),))
    read = replace(late, diagnoses={("Job", "sums-peers"): answer})
    told = planned(with_status(resource, asked.status), read)
    status, reason, message = degraded(told)
    assert (status, reason) == ("True", "PodsRefused")
    assert 'violates PodSecurity "restricted:latest"' in message
    assert "pod-security.kubernetes.io/enforce" in message
    assert "x7k2p" not in message
    assert told.diagnose == ()
    assert [each.reason for each in told.events if each.type == "Warning"] == ["PodsRefused"]


def test_a_read_that_finds_nothing_says_so_and_is_repeated_less_and_less_often() -> None:
    resource, observed = started()
    moments, diagnoses = [], {}
    for second in range(1, 900):
        late = replace(later(observed, second), diagnoses=diagnoses)
        found = planned(resource, late)
        if found.diagnose:
            moments.append(second)
            diagnoses = {("Job", "sums-peers"): Diagnosis(late.now, "job")}
    assert len(moments) < 15
    assert all(later_ - first >= 8 for first, later_ in pairwise(moments))
    assert degraded(planned(resource, replace(later(observed, 901), diagnoses=diagnoses)))[:2] == (
        "False",
        "AsExpected",
    )


def test_events_that_may_not_be_read_leave_degraded_unknown() -> None:
    resource, observed = started()
    unread = Diagnosis(NOW, "job", error="events is forbidden")
    found = planned(resource, replace(later(observed, 9), diagnoses={("Job", "sums-peers"): unread}))
    assert degraded(found)[:2] == ("Unknown", "NotObserved")
    assert "events is forbidden" in degraded(found)[2]


def test_the_diagnosis_of_an_earlier_job_says_nothing_about_its_successor() -> None:
    resource, observed = started()
    old = Diagnosis(NOW, "another", (WarningFacts("FailedCreate", PODS),))
    found = planned(resource, replace(later(observed, 9), diagnoses={("Job", "sums-peers"): old}))
    assert degraded(found)[1] == "NotObserved"
    assert found.diagnose


def test_a_warning_of_a_job_that_is_older_than_its_newest_pod_has_been_overcome() -> None:
    resource, observed = started()
    pods = tuple(replace(ready_pod(index), created=NOW + timedelta(seconds=60)) for index in range(3))
    late = replace(later(observed, 100), pods=(*observed.pods, *pods))

    def after(seconds: float) -> str:
        warning = WarningFacts("FailedCreate", PODS, NOW + timedelta(seconds=seconds))
        answer = Diagnosis(late.now, "job", (warning,))
        return degraded(planned(resource, replace(late, diagnoses={("Job", "sums-peers"): answer})))[1]

    assert after(61) == "PodsRefused"
    assert after(59) != "PodsRefused"


def test_a_deployment_whose_pods_are_refused_is_quoted_without_reading_events() -> None:
    resource, observed = running(valid_game())
    refused = 'pods "sums-bootnode-7d9-" is forbidden: failed quota: q: must specify limits.cpu for: bootnode'
    workloads = (WorkloadFacts("Deployment", "sums-bootnode", refused=refused, created=NOW),)
    found = planned(resource, replace(observed, workloads=workloads))
    assert degraded(found)[:2] == ("True", "PodsRefused")
    assert "must specify limits.cpu for: bootnode" in degraded(found)[2]
    assert "ResourceQuota" in degraded(found)[2]
    assert reported(found)["Ready"] == ("False", "Blocked")


def pending(**fields: Any) -> PodFacts:
    waiting = (ContainerFacts("peer", waiting="ContainerCreating"),)
    fields = {"containers": waiting, "node": "n7", "created": NOW, **fields}
    return peer_pod(0, **fields)


def with_pod(pod: PodFacts, *warnings: WarningFacts, seconds: float = 9) -> Plan:
    resource, observed = running(valid_game({"peers": {"replicas": 1}}))
    found = replace(later(observed, seconds), pods=(pod,))
    if warnings:
        found = replace(found, diagnoses={("Pod", pod.name): Diagnosis(found.now, "", warnings)})
    return planned(resource, found)


def test_a_pod_that_cannot_mount_is_quoted_and_an_overcome_warning_is_not() -> None:
    assert [each.kind for each in with_pod(pending()).diagnose] == ["Pod"]
    mount = 'MountVolume.SetUp failed for volume "token" : secret "hub" not found'
    found = with_pod(pending(), WarningFacts("FailedMount", mount, NOW))
    assert degraded(found)[:2] == ("True", "PodBlocked")
    assert f"FailedMount: {mount}. Create it in the game's namespace." in degraded(found)[2]
    old = with_pod(pending(), WarningFacts("FailedMount", mount, NOW - timedelta(minutes=10)))
    assert degraded(old)[:2] == ("False", "AsExpected")
    seldom = with_pod(pending(), WarningFacts("FailedMount", mount, NOW - timedelta(seconds=310)))
    assert degraded(seldom)[:2] == ("True", "PodBlocked"), "a stuck pod has one event in five minutes"
    for reason in ("FailedScheduling", "DNSConfigForming"):
        assert degraded(with_pod(pending(), WarningFacts(reason, "x", NOW)))[:2] == ("False", "AsExpected")


def test_a_pod_that_no_scheduler_has_seen_costs_no_request_and_is_not_said_to_be_well() -> None:
    found = with_pod(pending(node="", containers=()), seconds=500)
    assert found.diagnose == ()
    assert degraded(found)[:2] == ("Unknown", "NotObserved")


def test_a_missing_pull_secret_is_named_with_the_image_that_cannot_be_pulled() -> None:
    pod = pending(containers=(ContainerFacts("peer", waiting="ImagePullBackOff", waiting_message="401"),))
    missing = "Unable to retrieve some image pull secrets (regcred); attempting to pull the image may not succeed."
    found = with_pod(pod, WarningFacts("FailedToRetrieveImagePullSecret", missing, NOW))
    assert degraded(found)[1] == "ImagePullFailed"
    assert "regcred" in degraded(found)[2]


def test_a_claim_without_a_volume_is_quoted() -> None:
    claims = {"storage": {"checkpoints": {"claimTemplate": {"spec": {"resources": {"requests": {"storage": "1Gi"}}}}}}}
    resource, observed = running(valid_game(claims))
    pod = pending(node="", unschedulable="0/1 nodes: pod has unbound immediate PersistentVolumeClaims.")
    found = replace(later(observed, 9), pods=(pod, *observed.pods[1:]))
    asked = planned(resource, found)
    assert [(each.kind, each.name) for each in asked.diagnose] == [("PersistentVolumeClaim", "sums-checkpoints")]
    answer = Diagnosis(found.now, "", (WarningFacts("ProvisioningFailed", 'storageclass "fast" not found'),))
    told = planned(resource, replace(found, diagnoses={("PersistentVolumeClaim", "sums-checkpoints"): answer}))
    assert degraded(told)[1] == "VolumeMissing"
    assert 'storageclass "fast" not found' in degraded(told)[2]


def test_pods_of_a_lost_node_and_pods_that_do_not_leave_are_told() -> None:
    lost = with_pod(replace(ready_pod(0), ready=False, node_lost=True, node="n7"))
    assert degraded(lost)[1] == "NodeLost"
    assert "n7" in degraded(lost)[2]
    leaving = peer_pod(0, phase="Running", terminating=True, end_due=NOW, node="n7")
    assert degraded(with_pod(leaving, seconds=29))[1] != "PodStuck"
    stuck = with_pod(leaving, seconds=31)
    assert degraded(stuck)[1] == "PodStuck"
    assert "n7" in degraded(stuck)[2]
    held = with_pod(replace(leaving, finalizers=("example.dev/hold",)), seconds=31)
    assert "example.dev/hold" in degraded(held)[2]
    assert degraded(with_pod(leaving, seconds=60)) == degraded(with_pod(leaving, seconds=200)), "no write a second"


def test_a_sidecar_that_outlives_its_peer_is_told_with_the_cure() -> None:
    ended = ContainerFacts("peer", exit_code=0, exit_reason="Completed", ended=NOW)
    pod = peer_pod(0, phase="Running", containers=(ended, ContainerFacts("mesh", running=True)))
    assert degraded(with_pod(pod, seconds=29))[1] != "SidecarRuns"
    found = with_pod(pod, seconds=31)
    assert degraded(found)[1] == "SidecarRuns"
    assert "mesh" in degraded(found)[2]
    assert "restartPolicy Always" in degraded(found)[2]
    native = peer_pod(0, phase="Running", containers=(ended, ContainerFacts("vllm", running=True)))
    assert degraded(with_pod(native, seconds=31))[1] != "SidecarRuns"


def test_exit_codes_and_lack_of_memory_of_other_containers_are_not_the_games() -> None:
    resource, observed = running(valid_game({"peers": {"replicas": 1}}))
    sidecar = ContainerFacts("mesh", exit_code=78, exit_reason="OOMKilled")
    pod = peer_pod(0, phase="Running", containers=(ContainerFacts("peer", running=True), sidecar))
    found = planned(resource, replace(observed, pods=(pod,)))
    assert reported(found)["Accepted"] == ("True", "Valid")
    assert degraded(found)[1] == "SidecarEnded"
    assert "Failed" not in reported(found)


def test_a_game_that_lasts_is_not_read_again() -> None:
    resource, observed = running(valid_game())
    created = tuple(replace(each, created=NOW) for each in observed.pods)
    found = planned(resource, replace(later(observed, 500), pods=created))
    assert found.diagnose == ()
    assert degraded(found)[:2] == ("False", "AsExpected")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (QUOTA, "ResourceQuota"),
        ("maximum memory usage per Container is 256Mi, but limit is 512Mi", "LimitRange"),
        ("ValidatingAdmissionPolicy 'labels' with binding 'labels' denied request: label team", "policy"),
        ('admission webhook "v.example.dev" denied the request: no', "policy"),
        ('Internal error occurred: failed calling webhook "v.example.dev": connection refused', "does not answer"),
        ('jobs.batch is forbidden: User "x" cannot create resource "jobs" in API group "batch"', "bind its role"),
        ("only dynamically provisioned pvc can be resized and the storageclass must support resize", "allowVolume"),
        ("spec: Forbidden: spec is immutable after creation except resources.requests", "undo the change"),
        ("spec.resources.requests.storage: Forbidden: field can not be less than status.capacity", "never shrinks"),
        ('no PriorityClass with name "high" was found', "PriorityClass"),
        (UNKNOWN, ANY),
    ],
)
def test_a_known_refusal_has_its_own_cure_and_any_other_a_general_one(answer: str, expected: str) -> None:
    assert expected in cure(answer)
