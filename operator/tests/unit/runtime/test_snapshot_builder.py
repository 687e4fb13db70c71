"""Facts from objects as real API servers return them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmgame_operator import snapshot_builder
from swarmgame_operator.adoption import belongs_to_another, is_of_an_earlier_game
from swarmgame_operator.snapshot import ContainerFacts, JobCondition, PodFacts, WarningFacts


def pod(**status: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": "sums-peers-3-x",
            "labels": {"swarmgame.dev/role": "peer"},
            "annotations": {"batch.kubernetes.io/job-completion-index": "3"},
        },
        "status": status,
    }


@pytest.mark.parametrize("index", ["²", "٣", "-1", "1e3", " 3", "9" * 5000])
def test_an_index_that_is_no_number_makes_a_pod_without_an_index(index: str) -> None:
    body = pod()
    body["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"] = index
    assert snapshot_builder.pod_facts(body).facts == of(index=None)


@pytest.mark.parametrize(
    ("volumes", "expected"),
    [
        ([{"name": "checkpoints", "persistentVolumeClaim": {"claimName": "sums-checkpoints"}}], "sums-checkpoints"),
        ([{"name": "checkpoints", "emptyDir": {}}], ""),
        ([{"name": "cache", "persistentVolumeClaim": {"claimName": "cache"}}], ""),
        (None, ""),
    ],
)
def test_a_jobs_checkpoints_are_on_the_claim_of_its_template(volumes: Any, expected: str) -> None:
    job = {"metadata": {"name": "sums-peers"}, "spec": {"template": {"spec": {"volumes": volumes}}}}
    assert snapshot_builder.job_facts(job).checkpoints_claim == expected


def of(**changes: Any) -> PodFacts:
    return PodFacts(**{"name": "sums-peers-3-x", "role": "peer", "index": 3, **changes})


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (pod(), of()),
        (
            pod(phase="Running", hostIP="192.0.2.1", conditions=[{"type": "Ready", "status": "True"}]),
            of(phase="Running", ready=True, host_ip="192.0.2.1"),
        ),
        (
            pod(
                conditions=[
                    {
                        "type": "PodScheduled",
                        "status": "False",
                        "reason": "Unschedulable",
                        "message": "0/3 nodes: no GPU",
                    }
                ]
            ),
            of(unschedulable="0/3 nodes: no GPU"),
        ),
        (pod(conditions=[{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]), of()),
        (
            pod(phase="Failed", conditions=[{"type": "DisruptionTarget", "status": "True"}]),
            of(phase="Failed", disrupted=True),
        ),
        (
            pod(
                containerStatuses=[
                    {"name": "peer", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
                ]
            ),
            of(containers=(ContainerFacts("peer", waiting="ImagePullBackOff", waiting_message="no such image"),)),
        ),
        (
            pod(
                initContainerStatuses=[
                    {"name": "model", "ready": True, "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}
                ],
                containerStatuses=[
                    {
                        "name": "peer",
                        "restartCount": 2,
                        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                        "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled", "message": "killed"}},
                    }
                ],
            ),
            of(
                containers=(
                    ContainerFacts("model", ready=True, exit_code=0, exit_reason="Completed"),
                    ContainerFacts(
                        "peer",
                        restarts=2,
                        waiting="CrashLoopBackOff",
                        exit_code=137,
                        exit_reason="OOMKilled",
                        termination_message="killed",
                    ),
                )
            ),
        ),
    ],
)
def test_pod_facts_are_those_of_its_status(body: dict[str, Any], expected: PodFacts) -> None:
    assert snapshot_builder.pod_facts(body).facts == expected


def test_job_facts_are_those_of_its_spec_and_status_with_the_conditions_that_are_true() -> None:
    found = snapshot_builder.job_facts(
        {
            "metadata": {"name": "sums-peers", "uid": "u", "labels": {"kueue.x-k8s.io/queue-name": "q"}},
            "spec": {"suspend": True, "parallelism": 4, "completions": 4},
            "status": {
                "active": 3,
                "failed": 2,
                "completedIndexes": "0,2-3",
                "startTime": "2026-01-31T12:00:00Z",
                "conditions": [
                    {
                        "type": "Suspended",
                        "status": "True",
                        "reason": "JobSuspended",
                        "lastTransitionTime": "2026-01-31T12:00:01Z",
                    },
                    {"type": "Failed", "status": "False"},
                ],
            },
        }
    )
    assert (found.name, found.queue, found.suspended, found.parallelism, found.active, found.failed) == (
        "sums-peers",
        "q",
        True,
        4,
        3,
        2,
    )
    assert found.completed_indexes == "0,2-3"
    assert found.started == datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert found.conditions == (
        JobCondition("Suspended", "JobSuspended", "", datetime(2026, 1, 31, 12, 0, 1, tzinfo=UTC)),
    )


@pytest.mark.parametrize(("observed", "ready"), [(2, 3), (1, 0), (None, 0)])
def test_a_rollout_that_its_controller_has_not_observed_has_nothing_ready(observed: int | None, ready: int) -> None:
    body = {"metadata": {"name": "d", "generation": 2}, "status": {"readyReplicas": 3, "observedGeneration": observed}}
    assert snapshot_builder.workload_facts("Deployment", body).ready == ready


def test_service_facts_are_its_node_ports_and_addresses() -> None:
    body = {
        "metadata": {"name": "s"},
        "spec": {"ports": [{"name": "p2p", "port": 31000, "nodePort": 30001}, {"name": "http", "port": 8080}]},
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}, {"hostname": "lb.example"}, {}]}},
    }
    found = snapshot_builder.service_facts(body)
    assert found.node_ports == {"p2p": 30001}
    assert found.ingress == ("192.0.2.7", "lb.example")


def test_the_keys_of_a_secret_are_known_from_its_metadata() -> None:
    managed = [
        {"manager": "a", "fieldsV1": {"f:data": {".": {}, "f:peer-0.key": {}}, "f:type": {}}},
        {"manager": "b", "fieldsV1": {"f:data": {"f:peer-1.key": {}}}},
    ]
    assert snapshot_builder.secret_keys({"metadata": {"managedFields": managed}}) == {"peer-0.key", "peer-1.key"}
    assert snapshot_builder.secret_keys({"metadata": {}, "data": {"token": "…"}}) == {"token"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(
    metadata=st.dictionaries(st.sampled_from(["name", "labels", "annotations", "uid"]), JSON), spec=JSON, status=JSON
)
def test_an_object_of_an_unknown_shape_gives_empty_facts_and_no_error(metadata: Any, spec: Any, status: Any) -> None:
    body = {"metadata": metadata, "spec": spec, "status": status}
    assert snapshot_builder.pod_facts(body).facts.containers == ()
    assert snapshot_builder.job_facts(body).conditions == ()
    assert snapshot_builder.workload_facts("Deployment", body).ready == 0
    assert snapshot_builder.service_facts(body).node_ports == {}


NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


def test_a_pod_shows_when_it_should_end_what_holds_it_and_whether_its_node_is_lost() -> None:
    body = pod(phase="Running", conditions=[{"type": t, "status": s} for t, s in LOST])
    body["metadata"] |= {"deletionTimestamp": "2026-01-31T12:00:00Z", "finalizers": ["example.dev/hold"]}
    body["metadata"] |= {"creationTimestamp": "2026-01-31T12:00:00Z"}
    body["spec"] = {"nodeName": "n7"}
    facts = snapshot_builder.pod_facts(body).facts
    assert (facts.end_due, facts.created, facts.finalizers, facts.node) == (NOON, NOON, ("example.dev/hold",), "n7")
    assert facts.node_lost
    body["spec"]["readinessGates"] = [{"conditionType": "example.dev/gate"}]
    assert not snapshot_builder.pod_facts(body).facts.node_lost, "the gate may be why it is not ready"


LOST = (("Ready", "False"), ("ContainersReady", "True"))


def test_a_running_container_and_one_that_has_ended_are_told_apart() -> None:
    ended = {"terminated": {"exitCode": 0, "finishedAt": "2026-01-31T12:00:00Z"}}
    statuses = [{"name": "peer", "state": ended}, {"name": "mesh", "state": {"running": {}}}]
    peer, mesh = snapshot_builder.pod_facts(pod(phase="Running", containerStatuses=statuses)).facts.containers
    assert (peer.running, peer.ended, mesh.running, mesh.ended) == (False, NOON, True, None)


def test_a_workload_shows_why_its_pods_are_refused() -> None:
    failure = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}
    body = {"metadata": {"name": "b", "uid": "u"}, "spec": {"replicas": 2}, "status": {"conditions": [failure]}}
    facts = snapshot_builder.workload_facts("Deployment", body)
    assert (facts.refused, facts.replicas, facts.uid) == ("exceeded quota", 2, "u")
    failure["status"] = "False"
    assert snapshot_builder.workload_facts("Deployment", body).refused == ""


def event(reason: str, minute: int, uid: str = "u", kind: str = "Warning") -> dict[str, Any]:
    when = f"2026-01-31T12:{minute:02}:00Z"
    return {"type": kind, "reason": reason, "message": f"{reason} {minute}", "lastTimestamp": when,
            "involvedObject": {"uid": uid}}  # fmt: skip


def test_the_newest_warning_of_each_reason_is_kept_and_those_of_an_earlier_object_are_not() -> None:
    events = [event("A", 1), event("B", 3), event("A", 5), event("C", 9, uid="old"), event("D", 9, kind="Normal")]
    found = snapshot_builder.warning_facts(events, "u")
    assert [(each.reason, each.message) for each in found] == [("A", "A 5"), ("B", "B 3")]
    assert [each.reason for each in snapshot_builder.warning_facts(events, "")] == ["C", "A", "B"]
    series = {
        "type": "Warning",
        "reason": "S",
        "eventTime": None,
        "series": {"lastObservedTime": "2026-01-31T12:00:00Z"},
    }
    assert snapshot_builder.warning_facts([series, {"type": "Warning"}], "") == (
        WarningFacts("S", "", NOON),
        WarningFacts("", "", None),
    )


OURS = {"app.kubernetes.io/managed-by": "swarmgame-operator", "swarmgame.dev/game": "sums"}


@pytest.mark.parametrize(
    ("labels", "owner", "ours"),
    [
        (OURS, None, True),  # kept, or left by an orphaning deletion
        ({}, ("SwarmGame", "sums", "u"), True),  # its labels were removed by hand
        ({}, None, False),
        ({"swarmgame.dev/game": "sums"}, None, False),
        ({**OURS, "swarmgame.dev/game": "other"}, None, False),
        (OURS, ("Deployment", "web", "x"), False),
        (OURS, ("SwarmGame", "sums", "old"), False),
    ],
)
def test_an_object_is_the_games_by_its_controller_or_else_by_its_labels(
    labels: dict[str, str], owner: tuple[str, str, str] | None, ours: bool
) -> None:
    metadata: dict[str, Any] = {"labels": labels}
    if owner is not None:
        kind, name, uid = owner
        metadata["ownerReferences"] = [{"kind": "Node"}, {"kind": kind, "name": name, "uid": uid, "controller": True}]
    body = {"metadata": metadata}
    assert (belongs_to_another(body, "sums", "u") == "") is ours
    assert is_of_an_earlier_game(body, "sums", "u") is (owner == ("SwarmGame", "sums", "old"))
