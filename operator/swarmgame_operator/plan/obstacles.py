"""Obstacles: what keeps a game's objects or pods from existing or ending, in the API server's own words.

`obstacle` returns the most serious one, for the conditions Degraded and Ready; `subjects` says which objects have not
started, so that their events are read; `seconds_to_obstacle` says when time alone may change either. An obstacle that
often passes by itself counts only after some seconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import NamedTuple

from swarmgame_operator.plan import initializer, sampler
from swarmgame_operator.plan.condition_policy import ConditionUpdate, Reason
from swarmgame_operator.plan.cures import cure
from swarmgame_operator.plan.peer_job import CONTAINER
from swarmgame_operator.plan.plan_types import Subject
from swarmgame_operator.plan.reconcile_context import (
    ENDED,
    IMAGE_ERRORS,
    ORDINARY_WAITS,
    ReconcileContext,
    job_condition_reason,
)
from swarmgame_operator.plan.storage import BOOTNODE_KEY
from swarmgame_operator.snapshot import Diagnosis, JobFacts, PodFacts, Refusal, WarningFacts

UNSTARTED_SECONDS = 8.0
"""An object that has not started for this long has its events read. A pod's image is often pulled for longer; that
costs one request at growing intervals.
"""
PASSING_SECONDS = 10.0
"""A refused write that may pass by itself (a webhook that is restarted) is reported after this long."""
LEAVING_SECONDS = 30.0
"""A pod that is still there this long after its grace period is stuck, and so is a container beside a finished peer."""
EVENT_SECONDS = 360.0
"""A pod's warning that is older has been overcome: the kubelet repeats a mount at least every two minutes, and
client-go's event correlator lets one of an object's events pass every five minutes after the first 25.
"""
HARMLESS = frozenset({"FailedScheduling", "DNSConfigForming"})
"""Warnings of a pod that keep nothing from starting: a node has taken it since, or its DNS settings were cut."""
LASTING = frozenset({400, 403, 404, 405, 413, 422})
"""Answers of the API server that the same request gets again until somebody acts."""
MAX_PODS = 3
"""Pods of a game whose events are read: the others usually have the same problem."""

NAME_TAKEN = Reason(
    "Degraded",
    "True",
    "NameTaken",
    "The {kind} {name} exists and is not this game's: {why}. Rename or delete it, or give the game another name; "
    "the operator leaves it as it is.",
    warning=True,
)
KEY_UNUSABLE = Reason(
    "Degraded",
    "True",
    "KeyUnusable",
    "{key} in the Secret {name} is not a key that the bootnode can use: expected the 36 bytes of a secp256k1 libp2p "
    "key. Restore it; or delete it from the Secret, and a new one is made, with another peer id in the bootnode's "
    "address.",
    warning=True,
)
OBJECT_REFUSED = Reason(
    "Degraded", "True", "ObjectRefused", "The {kind} {name} cannot be written: {answer} {cure}", warning=True
)
PODS_REFUSED = Reason(
    "Degraded", "True", "PodsRefused", "Pods of the {kind} {name} cannot be created: {answer} {cure}", warning=True
)
POD_BLOCKED = Reason(
    "Degraded", "True", "PodBlocked", "The pod {pod} does not start: {reason}: {answer} {cure}", warning=True
)
VOLUME_MISSING = Reason(
    "Degraded", "True", "VolumeMissing", "The claim {name} has no volume: {answer} {cure}", warning=True
)
NODE_LOST = Reason(
    "Degraded",
    "True",
    "NodeLost",
    "The node {node} of the pod {pod} no longer answers. Kubernetes replaces the pod after some minutes; delete the "
    "node if it does not come back.",
    warning=True,
)
POD_STUCK = Reason(
    "Degraded",
    "True",
    "PodStuck",
    "The pod {pod} should have ended {seconds} s ago and is still there: {why}",
    warning=True,
)
SIDECAR_RUNS = Reason(
    "Degraded",
    "True",
    "SidecarRuns",
    "The peer in the pod {pod} has ended, and the container {container} of spec.peers.podTemplate still runs, so the "
    "pod never ends. Move it to initContainers with restartPolicy Always: such a container ends with the peer.",
    warning=True,
)
CLAIM_KEPT = Reason(
    "Degraded",
    "True",
    "ClaimKept",
    "The claim {name} has the checkpoints of a deleted game of this name. To play on from them, name it in "
    "spec.storage.checkpoints.claimName; to begin anew, delete it, or give the game another name.",
    warning=True,
)
SIDECAR_ENDED = Reason(
    "Degraded",
    "True",
    "SidecarEnded",
    "The container {container} of the pod {pod} has ended with exit code {code}, and the peer goes on without it; at "
    "its end the pod counts as failed. Repair the container, or move it to initContainers with restartPolicy Always.",
    warning=True,
)
OBSTACLES = (
    NAME_TAKEN,
    KEY_UNUSABLE,
    CLAIM_KEPT,
    OBJECT_REFUSED,
    PODS_REFUSED,
    POD_BLOCKED,
    VOLUME_MISSING,
    NODE_LOST,
    POD_STUCK,
    SIDECAR_RUNS,
    SIDECAR_ENDED,
)


class _Candidate(NamedTuple):
    due: datetime
    update: ConditionUpdate


def obstacle(context: ReconcileContext) -> ConditionUpdate | None:
    """Return the most serious obstacle; None if none is known."""
    now = context.observed.now
    return next((each.update for each in _candidates(context) if each.due <= now), None)


def subjects(context: ReconcileContext) -> tuple[Subject, ...]:
    """Return the objects that should have started and have not, without those whose cause is known already."""
    return tuple(_subjects(context)) if context.playing else ()


def unread(context: ReconcileContext) -> tuple[Subject, ...]:
    """Return the objects that have not started and whose events were never read."""
    return tuple(each for each in subjects(context) if _diagnosis(context, each) is None)


def to_read(context: ReconcileContext) -> tuple[Subject, ...]:
    """Return the objects whose events should be read now."""
    return tuple(each for each in subjects(context) if _read_due(context, each) <= context.observed.now)


def seconds_to_obstacle(context: ReconcileContext) -> float | None:
    """Return the seconds until time alone may bring an obstacle, or until events should be read; None: never."""
    now = context.observed.now
    moments = [each.due for each in _candidates(context)]
    moments += [_read_due(context, each) for each in subjects(context)]
    waits = [(moment - now).total_seconds() for moment in moments]
    return min((wait + 0.1 for wait in waits if wait > 0), default=None)


def sentence(answer: str) -> str:
    """Return an answer of the API server as a sentence, without the request that it answers."""
    text = re.sub(r"^(GET|POST|PUT|PATCH|DELETE) \S+: ", "", " ".join(answer.split()))
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _diagnosis(context: ReconcileContext, subject: Subject) -> Diagnosis | None:
    found = context.observed.diagnoses.get((subject.kind, subject.name))
    return found if found is not None and subject.uid in ("", found.uid) else None


def _read_due(context: ReconcileContext, subject: Subject) -> datetime:
    """Return when its events should be read: after some seconds, and then after half as long again each time."""
    found = _diagnosis(context, subject)
    if found is None:
        return subject.since + timedelta(seconds=UNSTARTED_SECONDS)
    waited = (found.read - subject.since).total_seconds()
    return found.read + timedelta(seconds=min(300.0, max(UNSTARTED_SECONDS, waited / 2)))


def _candidates(context: ReconcileContext) -> Iterator[_Candidate]:
    for (kind, name), facts in sorted(context.observed.children.items()):
        if facts.controller:
            update = NAME_TAKEN(kind=kind, name=name, why=f"it belongs to the {facts.controller}")
            yield _Candidate(context.observed.now, update)
    if context.observed.bootnode_key_unusable and context.game.has_bootnode and not context.over:
        update = KEY_UNUSABLE(key=BOOTNODE_KEY, name=context.game.name("bootnode-key"))
        yield _Candidate(context.observed.now, update)
    kept = context.observed.children.get(("PersistentVolumeClaim", context.kept_claim))
    if kept is not None and not kept.deleting and not context.over:
        yield _Candidate(context.observed.now, CLAIM_KEPT(name=context.kept_claim))
    yield from _refusals(context)
    if not context.playing:
        yield from _stuck_pods(context)
        return
    yield from _refused_pods(context)
    yield from _diagnosed(context)
    yield from _lost_nodes(context)
    yield from _stuck_pods(context)
    yield from _sidecars(context)


def _refusals(context: ReconcileContext) -> Iterator[_Candidate]:
    for each in sorted(context.observed.refusals, key=lambda each: not each.taken):
        due = each.since if each.taken or each.status in LASTING else each.since + timedelta(seconds=PASSING_SECONDS)
        yield _Candidate(due, _refusal(each))


def _refusal(refusal: Refusal) -> ConditionUpdate:
    if refusal.taken:
        return NAME_TAKEN(kind=refusal.kind, name=refusal.name, why=refusal.message)
    answer = sentence(refusal.message)
    return OBJECT_REFUSED(kind=refusal.kind, name=refusal.name, answer=answer, cure=cure(answer))


def _refused_pods(context: ReconcileContext) -> Iterator[_Candidate]:
    """Yield the Deployments whose pods are refused, as their controller reports it."""
    for each in context.observed.workloads:
        if each.refused and each.ready < each.replicas:
            answer = sentence(_without_suffixes(each.refused, each.name))
            update = PODS_REFUSED(kind=each.kind, name=each.name, answer=answer, cure=cure(answer))
            yield _Candidate(context.observed.now, update)


def _diagnosed(context: ReconcileContext) -> Iterator[_Candidate]:
    """Yield what the events say about objects that have not started."""
    for subject in subjects(context):
        found = _diagnosis(context, subject)
        warning = None if found is None else _warning(context, subject, found)
        if warning is None or _image_fails(context, subject):
            continue
        answer = sentence(_without_suffixes(warning.message, subject.name))
        if subject.kind == "Pod":
            update = POD_BLOCKED(pod=subject.name, reason=warning.reason, answer=answer, cure=cure(answer))
        elif subject.kind == "PersistentVolumeClaim":
            update = VOLUME_MISSING(name=subject.name, answer=answer, cure=cure(answer))
        else:
            update = PODS_REFUSED(kind=subject.kind, name=subject.name, answer=answer, cure=cure(answer))
        yield _Candidate(context.observed.now, update)


def _image_fails(context: ReconcileContext, subject: Subject) -> bool:
    """Return whether the subject is a pod whose image cannot be pulled, which Degraded reports with its own reason."""
    pods = [pod for pod in context.observed.pods if subject.kind == "Pod" and pod.name == subject.name]
    return any(container.waiting in IMAGE_ERRORS for pod in pods for container in pod.containers)


def _warning(context: ReconcileContext, subject: Subject, found: Diagnosis) -> WarningFacts | None:
    oldest = None
    if subject.kind == "Pod":
        oldest = context.observed.now - timedelta(seconds=EVENT_SECONDS)
    elif subject.kind == "Job":  # what refused a pod before the newest one was made has been overcome
        role = "peer" if context.job is not None and subject.name == context.job.name else "initializer"
        oldest = max((pod.created for pod in context.observed.pods_of(role) if pod.created), default=None)
    for warning in found.warnings:
        overcome = oldest is not None and warning.last is not None and warning.last < oldest
        if not overcome and not (subject.kind == "Pod" and warning.reason in HARMLESS):
            return warning
    return None


def _without_suffixes(text: str, name: str) -> str:
    """Return the text with the generated part of pods' names left out, so that it is the same at every attempt."""
    return re.sub(rf"({re.escape(name)})(-[a-z0-9]+)+", r"\1-…", text)


def _lost_nodes(context: ReconcileContext) -> Iterator[_Candidate]:
    for pod in context.observed.pods:
        if pod.node_lost and pod.phase not in ENDED:
            yield _Candidate(context.observed.now, NODE_LOST(node=pod.node, pod=pod.name))


def _stuck_pods(context: ReconcileContext) -> Iterator[_Candidate]:
    for pod in context.observed.pods:
        if pod.end_due is None:
            continue
        due = pod.end_due + timedelta(seconds=LEAVING_SECONDS)
        late = max(0, round((context.observed.now - pod.end_due).total_seconds()))
        if pod.finalizers:
            why = f"its finalizers {', '.join(pod.finalizers)} are not removed. Find out what set them."
        else:
            why = f"its node {pod.node or '(none)'} does not confirm its end. Delete the node if it does not come back."
        # Rounded, so that the passing seconds are no change of the status.
        yield _Candidate(due, POD_STUCK(pod=pod.name, seconds=max(30, late - late % 300), why=why))


def _sidecars(context: ReconcileContext) -> Iterator[_Candidate]:
    own = {CONTAINER, initializer.CONTAINER, sampler.CONTAINER}
    for pod in context.active_pods:
        peer = next((each for each in pod.containers if each.name == CONTAINER), None)
        others = [each for each in pod.containers if each.name not in own]
        for each in others:
            if peer is not None and not peer.running and peer.ended is not None and each.running:
                due = peer.ended + timedelta(seconds=LEAVING_SECONDS)
                yield _Candidate(due, SIDECAR_RUNS(pod=pod.name, container=each.name))
            if peer is not None and peer.running and each.exit_code and not each.running:
                update = SIDECAR_ENDED(pod=pod.name, container=each.name, code=each.exit_code)
                yield _Candidate(context.observed.now, update)


def _subjects(context: ReconcileContext) -> Iterator[Subject]:
    for job, role in ((context.job, "peer"), (context.observed.initializer, "initializer")):
        if job is not None and (since := _unstarted(context, job, role)) is not None:
            yield Subject("Job", job.name, job.uid, since)
    for each in context.observed.workloads:
        role = each.name.rpartition("-")[2]
        if each.replicas and not each.refused and each.created and not context.observed.pods_of(role):
            yield Subject(each.kind, each.name, each.uid, each.created)
    yield from _pods(context)
    yield from _claims(context)


def _unstarted(context: ReconcileContext, job: JobFacts, role: str) -> datetime | None:
    """Return since when a Job lacks a pod that it should have; None if it lacks none, or is not to have any."""
    started = job.started or job.created
    over = job_condition_reason(job, "Complete", "Failed", "SuccessCriteriaMet", "FailureTarget") is not None
    if started is None or job.suspended or job.deleting or over:
        return None
    pods = context.observed.pods_of(role)
    if role != "peer":
        return None if pods else started
    covered = {pod.index for pod in pods if not _gave_up(context, pod)}
    wanted = min(job.parallelism, context.desired)  # the Job may be another's, with any number
    missing = set(range(wanted)) - covered - context.completed_indexes - context.failed_indexes
    return started if missing else None


def _gave_up(context: ReconcileContext, pod: PodFacts) -> bool:
    """Return whether a pod failed so long ago that its successor should exist: a Job waits ten seconds first."""
    ended = [each.ended for each in pod.containers if each.ended is not None]
    late = context.observed.now - timedelta(seconds=LEAVING_SECONDS)
    return pod.phase == "Failed" and bool(ended) and max(ended) < late


def _pods(context: ReconcileContext) -> Iterator[Subject]:
    """Yield pods that a node has and does not start. Before it has one, the scheduler's words are in its status."""
    waiting = (pod for pod in context.observed.pods if pod.phase == "Pending" and pod.node and not pod.terminating)
    found = [pod for pod in waiting if _has_no_other_cause(pod)]
    for pod in found[:MAX_PODS]:
        if pod.created is not None:
            yield Subject("Pod", pod.name, "", pod.created)


def _has_no_other_cause(pod: PodFacts) -> bool:
    """Return whether nothing in the pod's status says why it waits. Of an image that cannot be pulled, the events say
    whether a pull Secret is missing.
    """
    if any(each.running for each in pod.containers):
        return False
    return all(each.waiting in ORDINARY_WAITS | IMAGE_ERRORS for each in pod.containers)


def _claims(context: ReconcileContext) -> Iterator[Subject]:
    pods = [pod for pod in context.observed.pods if pod.created and "PersistentVolumeClaim" in pod.unschedulable]
    if pods and pods[0].created is not None:
        for kind, name in sorted(context.observed.children):
            if kind == "PersistentVolumeClaim":
                yield Subject(kind, name, "", pods[0].created)
