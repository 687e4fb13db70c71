"""Facts from the API server's objects: pure functions that keep a few fields of an object's JSON.

An object of an unknown shape gives empty facts and never an error, because a kubelet may not have written a field yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from swarmgame_operator.plan.game_context import ROLE_LABEL, TEMPLATE_HASH
from swarmgame_operator.plan.reconcile_context import INDEX
from swarmgame_operator.plan.storage import checkpoints_claim
from swarmgame_operator.snapshot import (
    ContainerFacts,
    JobCondition,
    JobFacts,
    PodFacts,
    ServiceFacts,
    WarningFacts,
    WorkloadFacts,
)

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"
LONGEST_TEXT = 1024
"""Characters of a kubelet's or a container's message that are kept."""
Object = Mapping[str, Any]
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class PodRecord:
    """A pod and its address.

    Args:
        ip: empty before it has one.
    """

    facts: PodFacts
    ip: str = ""


def time_of(text: object) -> datetime | None:
    """Parse a time of the API, aware and in UTC; None if it is missing, malformed or out of range."""
    if not isinstance(text, str):
        return None
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def pod_facts(body: Object) -> PodRecord:
    """Return a pod's facts."""
    metadata, status = _at(body, "metadata"), _at(body, "status")
    conditions = {each.get("type"): each for each in status.get("conditions") or ()}
    scheduled = conditions.get("PodScheduled", {})
    unschedulable = scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable"
    ready, terminating = _is_true(conditions.get("Ready")), "deletionTimestamp" in metadata
    gates = bool(_at(body, "spec").get("readinessGates"))
    labels, annotations = _at(metadata, "labels"), _at(metadata, "annotations")
    index = annotations.get(INDEX_ANNOTATION, labels.get(INDEX_ANNOTATION))
    statuses = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    facts = PodFacts(
        name=str(metadata.get("name", "")),
        role=str(labels.get(ROLE_LABEL, "")),
        index=int(index) if isinstance(index, str) and INDEX.fullmatch(index) else None,
        phase=str(status.get("phase") or "Pending"),
        ready=ready,
        terminating=terminating,
        disrupted=_is_true(conditions.get("DisruptionTarget")),
        unschedulable=_short(scheduled.get("message")) or "Unschedulable" if unschedulable else "",
        host_ip=str(status.get("hostIP") or ""),
        containers=tuple(_container(each) for each in statuses),
        created=time_of(metadata.get("creationTimestamp")),
        end_due=time_of(metadata.get("deletionTimestamp")),  # Kubernetes adds the grace period to it
        finalizers=tuple(metadata.get("finalizers") or ()),
        node=str(_at(body, "spec").get("nodeName") or ""),
        node_lost=not ready and not gates and _is_true(conditions.get("ContainersReady")),
    )
    return PodRecord(facts, str(status.get("podIP") or ""))


def _container(status: Object) -> ContainerFacts:
    state, last = _at(status, "state"), _at(status, "lastState")
    waiting = _at(state, "waiting")
    ended = _at(state, "terminated") or _at(last, "terminated")
    code = ended.get("exitCode")
    return ContainerFacts(
        name=str(status.get("name", "")),
        ready=bool(status.get("ready")),
        restarts=int(status.get("restartCount") or 0),
        waiting=str(waiting.get("reason") or ""),
        waiting_message=_short(waiting.get("message")),
        exit_code=code if isinstance(code, int) else None,
        exit_reason=str(ended.get("reason") or ""),
        termination_message=_short(ended.get("message")),
        running=isinstance(state.get("running"), Mapping),
        ended=time_of(ended.get("finishedAt")),
    )


def job_facts(body: Object) -> JobFacts:
    """Return a Job's facts."""
    metadata, spec, status = _at(body, "metadata"), _at(body, "spec"), _at(body, "status")
    completions = spec.get("completions")
    return JobFacts(
        name=str(metadata.get("name", "")),
        uid=str(metadata.get("uid", "")),
        deleting="deletionTimestamp" in metadata,
        suspended=bool(spec.get("suspend")),
        parallelism=_count(spec.get("parallelism"), 1),
        completions=_count(completions, 1),
        active=_count(status.get("active")),
        ready=_count(status.get("ready")),
        succeeded=_count(status.get("succeeded")),
        failed=_count(status.get("failed")),
        terminating=_count(status.get("terminating")),
        completed_indexes=str(status.get("completedIndexes") or ""),
        failed_indexes=str(status.get("failedIndexes") or ""),
        started=time_of(status.get("startTime")),
        created=time_of(metadata.get("creationTimestamp")),
        template_hash=str(_at(metadata, "annotations").get(TEMPLATE_HASH, "")),
        queue=str(_at(metadata, "labels").get(QUEUE_LABEL, "")),
        checkpoints_claim=checkpoints_claim(_at(_at(spec, "template"), "spec")),
        conditions=tuple(
            JobCondition(
                str(each.get("type", "")),
                str(each.get("reason") or ""),
                _short(each.get("message")),
                time_of(each.get("lastTransitionTime")),
            )
            for each in status.get("conditions") or ()
            if each.get("status") == "True"
        ),
    )


def workload_facts(kind: str, body: Object) -> WorkloadFacts:
    """Return the facts of a Deployment or StatefulSet; 0 ready until its controller has observed the newest spec."""
    metadata, status = _at(body, "metadata"), _at(body, "status")
    seen = _count(status.get("observedGeneration")) >= _count(metadata.get("generation"))
    conditions = [each for each in status.get("conditions") or () if each.get("type") == "ReplicaFailure"]
    return WorkloadFacts(
        kind,
        str(metadata.get("name", "")),
        ready=_count(status.get("readyReplicas")) if seen else 0,
        replicas=_count(_at(body, "spec").get("replicas"), 1),
        refused=next((_short(each.get("message")) for each in conditions if _is_true(each)), ""),
        uid=str(metadata.get("uid", "")),
        created=time_of(metadata.get("creationTimestamp")),
    )


def warning_facts(events: Iterable[Object], uid: str) -> tuple[WarningFacts, ...]:
    """Return the newest warning of each reason, newest first.

    Args:
        uid: of the object; events about an earlier object of its name are left out. Empty: all.
    """
    found: dict[str, WarningFacts] = {}
    for event in events:
        if event.get("type") != "Warning" or uid not in ("", _at(event, "involvedObject").get("uid")):
            continue
        times = (event.get("lastTimestamp"), _at(event, "series").get("lastObservedTime"), event.get("eventTime"))
        last = max((moment for text in times if (moment := time_of(text)) is not None), default=None)
        warning = WarningFacts(str(event.get("reason") or ""), _short(event.get("message")), last)
        if warning.reason not in found or _before(found[warning.reason].last, last):
            found[warning.reason] = warning
    return tuple(sorted(found.values(), key=lambda each: each.last or _LONG_AGO, reverse=True))


def _before(one: datetime | None, other: datetime | None) -> bool:
    return (one or _LONG_AGO) < (other or _LONG_AGO)


def service_facts(body: Object) -> ServiceFacts:
    """Return a Service's facts."""
    ports = _at(body, "spec").get("ports") or ()
    balancer = _at(_at(body, "status"), "loadBalancer").get("ingress") or ()
    return ServiceFacts(
        name=str(_at(body, "metadata").get("name", "")),
        node_ports={
            str(each.get("name") or each.get("port")): int(each["nodePort"]) for each in ports if each.get("nodePort")
        },
        ingress=tuple(
            str(each.get("ip") or each.get("hostname")) for each in balancer if each.get("ip") or each.get("hostname")
        ),
    )


def secret_keys(body: Object) -> frozenset[str]:
    """Return the names of the keys of a Secret or ConfigMap. If only its metadata is known, they are read from its
    managedFields.
    """
    if "data" in body or "binaryData" in body:
        return frozenset({*(body.get("data") or ()), *(body.get("binaryData") or ())})
    managed = _at(body, "metadata").get("managedFields") or ()
    trees = [_at(each, "fieldsV1") for each in managed]
    places = [_at(tree, place) for tree in trees for place in ("f:data", "f:binaryData")]
    return frozenset(key[2:] for place in places for key in place if key.startswith("f:"))


def _at(value: Object, key: str) -> Object:
    found = value.get(key)
    return found if isinstance(found, Mapping) else {}


def _is_true(condition: object) -> bool:
    return isinstance(condition, Mapping) and condition.get("status") == "True"


def _count(value: object, default: int = 0) -> int:
    return value if isinstance(value, int) else default


def _short(value: object) -> str:
    return value[:LONGEST_TEXT] if isinstance(value, str) else ""
