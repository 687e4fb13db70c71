"""What the operator sees of one game's surroundings: slim facts, taken from objects, never the objects themselves.

The runtime makes these; `plan` reads them. Nothing here decides anything. Invariant: no secret's value is among them,
only the names of its keys, and every time is aware and in UTC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True)
class ContainerFacts:
    """One container of a pod.

    Args:
        name: of the container.
        ready: it passes its readiness probe.
        restarts: how often the kubelet has started it again.
        waiting: why it waits (`ImagePullBackOff`, `CrashLoopBackOff`, `CreateContainerConfigError`); empty when it does
            not.
        waiting_message: the kubelet's words for that.
        exit_code: of its last end; None if it never ended.
        exit_reason: `OOMKilled`, `Error`, `Completed`; empty if it never ended.
        termination_message: what it left in /dev/termination-log.
    """

    name: str
    ready: bool = False
    restarts: int = 0
    waiting: str = ""
    waiting_message: str = ""
    exit_code: int | None = None
    exit_reason: str = ""
    termination_message: str = ""


@dataclass(frozen=True, slots=True)
class PodFacts:
    """One pod of the game.

    Args:
        role: the value of `swarmgame.dev/role`.
        index: the Job's completion index; None for pods of no Indexed Job.
        phase: Pending, Running, Succeeded, Failed, Unknown.
        ready: the pod's Ready condition.
        terminating: it has a deletion timestamp.
        disrupted: its DisruptionTarget condition is True: evicted, preempted, its node gone.
        unschedulable: the scheduler's words where PodScheduled is False for the reason Unschedulable; else empty.
        host_ip: of its node; empty before it has one.
        containers: init containers first.
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
        completed_indexes, failed_indexes: as the status writes them: `0-2,5`.
        started: `status.startTime`, which Kubernetes resets when a Job is resumed.
        template_hash: the annotation `swarmgame.dev/template-hash`, that we set when we made it.
        queue: the label `kueue.x-k8s.io/queue-name`; empty where there is none.
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
    template_hash: str = ""
    queue: str = ""
    conditions: tuple[JobCondition, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkloadFacts:
    """A Deployment or StatefulSet of ours: how many of its pods are ready."""

    kind: str
    name: str
    ready: int = 0


@dataclass(frozen=True, slots=True)
class ServiceFacts:
    """A Service of ours, as far as outsiders need it.

    Args:
        node_ports: by the port's name; empty unless it has some.
        ingress: addresses or names that a load balancer gave it.
    """

    name: str
    node_ports: Mapping[str, int] = field(default_factory=dict)
    ingress: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProgressFacts:
    """What a ready peer's `/status` said last; field by field `swarmgame.observability.status.Snapshot`.

    Args:
        seen: when it was asked.
        rounds_finished: rounds behind it, earlier processes included.
        stage: of the round under way; -1 before the first.
        round_finished: when its last round ended; None before the first end.
        checkpoint: round of its newest checkpoint; None without one.
        last_error: its words for the last thing that went wrong.
        metrics: figures of the last round, by name: `reward` and the like.
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
    """What the gateway's `/status` said last.

    Args:
        problem: why nothing gets through at present, in the gateway's words; empty when all is well.
        wallet_empty: it cannot pay for gas.
        registered: peers of this game whose registration is final.
        reverted: the contract's word for the last registration that it rejected; empty if none.
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
    """An object that we have applied.

    Args:
        intent_hash: the annotation `swarmgame.dev/intent-hash`.
        drifted: somebody else changed a field that we own.
        deleting: it has a deletion timestamp.
        owned: the game is among its owners.
    """

    intent_hash: str = ""
    drifted: bool = False
    deleting: bool = False
    owned: bool = True


@dataclass(frozen=True, slots=True)
class DryRunFacts:
    """What the API server said to the peers' Job when it was asked to make it without making it.

    Args:
        hash: of what was asked: `plan.DryRun.hash`.
        error: its words; empty when it would have been made.
    """

    hash: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything that a plan may depend on besides the game itself.

    Args:
        now: the only clock.
        cluster_version: major and minor, (1, 36).
        job, initializer: the peers' Job and the one that fills the cache; None where there is none.
        pods: all pods with the game's label.
        workloads, services: ours.
        secrets: of those in `plan.references(game)` that exist, and of our own key Secrets: the names of their keys.
        config_maps: of those in `plan.references(game)` that exist: the names of their keys.
        claims: of those in `plan.references(game)` that exist, by name.
        bootnode_peer: the peer id of the bootnode's key; empty while there is no key.
        progress, chain: as last heard; None if never, or not since the pods in question were replaced.
        children: what we have applied and is there, by (kind, name): ConfigMap, Service, Deployment, StatefulSet,
            NetworkPolicy, PersistentVolumeClaim, Job, Secret.
        dry_run: the last answer to `Plan.dry_run`; None if nothing was asked.
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
    progress: ProgressFacts | None = None
    chain: ChainFacts | None = None
    children: Mapping[tuple[str, str], ChildFacts] = field(default_factory=dict)
    dry_run: DryRunFacts | None = None

    def workload(self, kind: str, name: str) -> WorkloadFacts | None:
        return next((each for each in self.workloads if (each.kind, each.name) == (kind, name)), None)

    def service(self, name: str) -> ServiceFacts | None:
        return next((each for each in self.services if each.name == name), None)

    def pods_of(self, role: str) -> tuple[PodFacts, ...]:
        return tuple(pod for pod in self.pods if pod.role == role)
