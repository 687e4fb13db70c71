"""A snapshot of one game's cluster objects: a few facts of each object, which plans are made from.

`snapshot_builder` and `cache` make them; `plan` reads them. Invariant: they contain no secret's value, only the names
of its keys, and every time is aware and in UTC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True)
class ContainerFacts:
    """One container of a pod.

    Args:
        ready: it passes its readiness probe.
        restarts: how often the kubelet has restarted it.
        waiting: why it waits (`ImagePullBackOff`, `CrashLoopBackOff`, `CreateContainerConfigError`); else empty.
        waiting_message: the kubelet's message about that.
        exit_code: of its last termination; None if it never ended.
        exit_reason: `OOMKilled`, `Error`, `Completed`; empty if it never ended.
        termination_message: what it wrote to /dev/termination-log.
        running: it runs now.
        ended: when it last ended; None if it never did.
    """

    name: str
    ready: bool = False
    restarts: int = 0
    waiting: str = ""
    waiting_message: str = ""
    exit_code: int | None = None
    exit_reason: str = ""
    termination_message: str = ""
    running: bool = False
    ended: datetime | None = None


@dataclass(frozen=True, slots=True)
class PodFacts:
    """One pod of the game.

    Args:
        role: the value of `swarmgame.dev/role`.
        index: the Job's completion index; None for pods outside an Indexed Job.
        phase: Pending, Running, Succeeded, Failed, Unknown.
        ready: the pod's Ready condition.
        terminating: it has a deletion timestamp.
        disrupted: its DisruptionTarget condition is True: evicted, preempted, or its node is gone.
        unschedulable: the scheduler's message if PodScheduled is False with reason Unschedulable; else empty.
        host_ip: of its node; empty before it has one.
        containers: init containers first.
        created: when it was created.
        end_due: when its grace period is over; None if it is not terminating.
        finalizers: what must release it before it is deleted.
        node: its node's name; empty before it has one.
        node_lost: its containers are ready and the pod is not, as the node's controller marks pods of a lost node.
    """

    name: str
    role: str
    index: int | None = None
    phase: str = "Pending"
    ready: bool = False
    terminating: bool = False
    disrupted: bool = False
    unschedulable: str = ""
    host_ip: str = ""
    containers: tuple[ContainerFacts, ...] = ()
    created: datetime | None = None
    end_due: datetime | None = None
    finalizers: tuple[str, ...] = ()
    node: str = ""
    node_lost: bool = False


@dataclass(frozen=True, slots=True)
class JobCondition:
    """A condition of a Job whose status is True: Complete, Failed, FailureTarget, SuccessCriteriaMet, Suspended."""

    type: str
    reason: str = ""
    message: str = ""
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class JobFacts:
    """A Job.

    Args:
        deleting: it has a deletion timestamp.
        suspended: `spec.suspend`.
        parallelism, completions: of the spec.
        active, ready, succeeded, failed, terminating: of the status; `failed` counts pods, not indexes.
        completed_indexes, failed_indexes: in the status's format: `0-2,5`.
        started: `status.startTime`, which Kubernetes resets when a Job is resumed.
        created: when it was created.
        template_hash: the annotation `swarmgame.dev/template-hash`, set at its creation.
        queue: the label `kueue.x-k8s.io/queue-name`; empty if there is none.
        checkpoints_claim: the claim on which its pods have their checkpoints; empty if they are on none.
        conditions: those that are True.
    """

    name: str
    uid: str = ""
    deleting: bool = False
    suspended: bool = False
    parallelism: int = 1
    completions: int = 1
    active: int = 0
    ready: int = 0
    succeeded: int = 0
    failed: int = 0
    terminating: int = 0
    completed_indexes: str = ""
    failed_indexes: str = ""
    started: datetime | None = None
    created: datetime | None = None
    template_hash: str = ""
    queue: str = ""
    checkpoints_claim: str = ""
    conditions: tuple[JobCondition, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkloadFacts:
    """A Deployment or StatefulSet of a game.

    Args:
        ready: how many of its pods are ready.
        replicas: how many it should have.
        refused: why its pods cannot be created, in the API server's words (condition ReplicaFailure); else empty.
        created: when it was created.
    """

    kind: str
    name: str
    ready: int = 0
    replicas: int = 1
    refused: str = ""
    uid: str = ""
    created: datetime | None = None


@dataclass(frozen=True, slots=True)
class ServiceFacts:
    """A Service of a game, as far as remote peers need it.

    Args:
        node_ports: by the port's name.
        ingress: addresses or names that a load balancer assigned.
    """

    name: str
    node_ports: Mapping[str, int] = field(default_factory=dict)
    ingress: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProgressFacts:
    """The last answer of a ready peer's `/status`; the fields are those of `swarmgame.observability.status.Snapshot`.

    Args:
        seen: when it was polled.
        rounds_finished: finished rounds, including those of earlier processes.
        stage: of the current round; -1 before the first.
        round_finished: when its last round ended; None before the first end.
        checkpoint: round of its newest checkpoint; None without one.
        last_error: its last error message.
        metrics: figures of the last round by name, such as `reward`.
    """

    seen: datetime
    index: int = 0
    phase: str = "running"
    rounds_finished: int = 0
    stage: int = -1
    max_rounds: int = 0
    members: int = 0
    round_finished: datetime | None = None
    checkpoint: int | None = None
    last_error: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChainFacts:
    """The last answer of the gateway's `/status`.

    Args:
        problem: why no transaction gets through now, as the gateway reports it; else empty.
        wallet_empty: it cannot pay for gas.
        registered: peers of this game whose registration is final.
        reverted: the contract's error for the last rejected registration; empty if none.
        round: of the contract; -1 before it was read.
        round_age: seconds since the round began.
        last_block: the last block that was read.
    """

    problem: str = ""
    wallet_empty: bool = False
    chain_id: int | None = None
    contract: str = ""
    registered: int = 0
    reverted: str = ""
    round: int = -1
    round_age: float = 0.0
    last_block: int = 0


@dataclass(frozen=True, slots=True)
class ChildFacts:
    """An object that the operator has applied.

    Args:
        intent_hash: the annotation `swarmgame.dev/intent-hash`.
        deleting: it has a deletion timestamp.
        drift_unknown: it changed since it was last compared with its manifest; only then are the next two read.
        owned_fields: the fields that the operator owns, as `ownership.owned_fields` returns them.
        owners: uids of its owners.
        controller: kind and name of another object that controls it; empty if there is none.
        made_for: uid of the game that a claim was made for; empty if it is not known, and for other kinds.
        uid: its own.
    """

    intent_hash: str = ""
    deleting: bool = False
    drift_unknown: bool = False
    owned_fields: str = "{}"
    owners: tuple[str, ...] = ()
    controller: str = ""
    made_for: str = ""
    uid: str = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A write that the API server did not carry out.

    Args:
        kind, name: of the object.
        status: the HTTP status of the answer; 0 without one.
        message: its sentence.
        since: when the first of these attempts failed.
        taken: an object of the name exists and is not the game's; `message` says why.
    """

    kind: str
    name: str
    status: int
    message: str
    since: datetime
    taken: bool = False


@dataclass(frozen=True, slots=True)
class WarningFacts:
    """The newest event of one reason about an object, of type Warning."""

    reason: str
    message: str
    last: datetime | None = None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What the events say about an object that does not start.

    Args:
        read: when they were read.
        uid: of the object; its successor needs a diagnosis of its own. Empty: any.
        warnings: newest first.
        error: why they could not be read; else empty.
    """

    read: datetime
    uid: str = ""
    warnings: tuple[WarningFacts, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class PollFacts:
    """Whether the peers answer the operator.

    Args:
        enabled: the operator polls at all.
        silent_since: since when no ready peer has answered; None if the last one did, or none is ready.
        error: the last error.
    """

    enabled: bool = True
    silent_since: datetime | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class DryRunFacts:
    """The API server's answer to a dry run of the peers' Job.

    Args:
        hash: `plan.DryRun.hash` of the request.
        error: its message; empty if it would create the Job.
    """

    hash: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything that a plan depends on besides the game and the defaults.

    Args:
        now: the only clock.
        cluster_version: major and minor, (1, 36).
        job, initializer: the peers' Job and the one that fills the cache; None if it does not exist, or is another's.
        pods: all pods with the game's label.
        workloads, services: of the game, without what another object controls.
        secrets: names of the keys of the existing Secrets in `plan.references(game)`, and of the game's key Secrets.
        config_maps: names of the keys of the existing ConfigMaps in `plan.references(game)`.
        claims: names of the existing claims in `plan.references(game)`.
        bootnode_peer: the peer id of the bootnode's key; empty while there is no key.
        bootnode_key_unusable: there is a key, and it is no libp2p key.
        peer_ids: the peer ids of the peers' keys, by index; those without a valid key are left out.
        progress, chain: the last answers; None if there was none since the operator started.
        children: existing objects that the operator has applied, by (kind, name): ConfigMap, Service, Deployment,
            StatefulSet, NetworkPolicy, PersistentVolumeClaim, Job, Secret.
        dry_run: the answer to the last `Plan.dry_run`; None if there was none.
        refusals: writes of the last attempts that were not carried out.
        diagnoses: the answers to `Plan.diagnose`, by kind and name.
        poll: whether the peers answer.
    """

    now: datetime
    cluster_version: tuple[int, int] = (1, 36)
    job: JobFacts | None = None
    initializer: JobFacts | None = None
    pods: tuple[PodFacts, ...] = ()
    workloads: tuple[WorkloadFacts, ...] = ()
    services: tuple[ServiceFacts, ...] = ()
    secrets: Mapping[str, frozenset[str]] = field(default_factory=dict)
    config_maps: Mapping[str, frozenset[str]] = field(default_factory=dict)
    claims: frozenset[str] = frozenset()
    bootnode_peer: str = ""
    bootnode_key_unusable: bool = False
    peer_ids: tuple[str, ...] = ()
    progress: ProgressFacts | None = None
    chain: ChainFacts | None = None
    children: Mapping[tuple[str, str], ChildFacts] = field(default_factory=dict)
    dry_run: DryRunFacts | None = None
    refusals: tuple[Refusal, ...] = ()
    diagnoses: Mapping[tuple[str, str], Diagnosis] = field(default_factory=dict)
    poll: PollFacts = PollFacts()

    def workload(self, kind: str, name: str) -> WorkloadFacts | None:
        return next((each for each in self.workloads if (each.kind, each.name) == (kind, name)), None)

    def service(self, name: str) -> ServiceFacts | None:
        return next((each for each in self.services if each.name == name), None)

    def pods_of(self, role: str) -> tuple[PodFacts, ...]:
        return tuple(pod for pod in self.pods if pod.role == role)
