"""A game for every reason of the reference, whose plan reports it, with its status and a part of its message."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

from plan_fixtures import (
    DEFAULTS,
    EMPTY,
    NOW,
    apply_plan,
    failed_pod,
    game,
    heard,
    job_with,
    later,
    ready_pod,
    running,
    settled,
    starting_pod,
    valid_game,
    waiting_pod,
)

from swarmgame_api.resource import GameResource
from swarmgame_operator.plan import Plan, build_plan, plan_of_failure, plan_of_unserved
from swarmgame_operator.snapshot import (
    ChainFacts,
    ChildFacts,
    ContainerFacts,
    Diagnosis,
    DryRunFacts,
    JobCondition,
    Observed,
    PodFacts,
    PollFacts,
    ProgressFacts,
    Refusal,
    WarningFacts,
)

QUEUE = {"kueue.x-k8s.io/queue-name": "research"}
CHAIN: dict[str, Any] = {"coordination": {"mode": "Dev"}}
CLAIMS: dict[str, Any] = {
    "storage": {"cache": {"claimTemplate": {"spec": {"resources": {"requests": {"storage": "1Gi"}}}}}}
}


def planned(resource: GameResource, observed: Observed) -> Plan:
    return build_plan(resource, observed, DEFAULTS)


def fresh(spec: dict[str, Any] | None = None, observed: Observed = EMPTY, **rest: Any) -> Plan:
    return planned(game(spec, **rest), observed)


def with_pods(*pods: PodFacts, spec: dict[str, Any] | None = None, **job: Any) -> Plan:
    """Plan a running game whose pods are these now."""
    resource, observed = running(valid_game(spec))
    assert observed.job is not None
    return planned(resource, replace(observed, pods=pods, job=replace(observed.job, **job)))


def with_chain(chain: ChainFacts | None, *, begun: bool = True, pods: tuple[PodFacts, ...] = (), **spec: Any) -> Plan:
    resource, observed = running(valid_game({**CHAIN, **spec})) if begun else settled(valid_game({**CHAIN, **spec}))
    return planned(resource, replace(observed, chain=chain, pods=observed.pods + pods))


def over(
    *conditions: tuple[str, str], spec: dict[str, Any] | None = None, pods: tuple[PodFacts, ...] = (), **job: Any
) -> Plan:
    resource, observed = running(valid_game(spec))
    return planned(resource, replace(job_with(observed, *conditions, **job), pods=pods))


def module_missing() -> Plan:
    modules = [{"name": "mine", "configMapRef": {"name": "mine"}, "mountPath": "/modules/mine"}]
    base = valid_game().game
    assert base is not None
    return fresh(
        {"game": {**base.spec.game.model_dump(mode="json", by_alias=True, exclude_none=True), "modules": modules}}
    )


def pod_refused() -> Plan:
    resource = valid_game({"peers": {"podTemplate": {"spec": {"hostNetwork": "perhaps"}}}})
    resource, observed = settled(resource)
    first = planned(resource, observed)
    assert first.dry_run is not None
    return planned(
        resource,
        replace(
            observed, dry_run=DryRunFacts(first.dry_run.hash, "spec.template.spec.hostNetwork: a boolean was expected")
        ),
    )


def model_missing() -> Plan:
    resource, observed = settled(valid_game(CLAIMS))
    assert observed.initializer is not None
    failed = replace(observed.initializer, conditions=(JobCondition("Failed", "BackoffLimitExceeded"),))
    ended = ContainerFacts(
        "initializer", exit_code=75, exit_reason="Error", termination_message="the hub was not reached"
    )
    pod = PodFacts("sums-initializer-x", "initializer", phase="Failed", containers=(ended,))
    return planned(resource, replace(observed, initializer=failed, pods=(pod,)))


def initializing() -> Plan:
    resource, observed = settled(valid_game(CLAIMS))
    return planned(resource, observed)


def queued(*, ran: bool) -> Plan:
    resource, observed = running(valid_game(labels=QUEUE)) if ran else settled(valid_game(labels=QUEUE))
    assert observed.job is not None
    return planned(resource, replace(observed, pods=(), job=replace(observed.job, suspended=True)))


def scaled(size: int) -> Plan:
    resource, observed = running(valid_game({"peers": {"replicas": 4}}))
    changed = valid_game({"peers": {"replicas": size}}, status=resource.status, generation=2)
    assert observed.job is not None
    return planned(changed, replace(observed, job=replace(observed.job, parallelism=size, completions=size)))


def rolled_out(spec: dict[str, Any]) -> Plan:
    resource, observed = running(valid_game(spec))
    changed = {**spec, "peers": {"image": "example.dev/other:2"}}
    return planned(valid_game(changed, status=resource.status, generation=2), observed)


def stalled() -> Plan:
    resource, observed = running(valid_game())
    return planned(resource, later(heard(observed), 3_600))


def polled(poll: PollFacts) -> Plan:
    resource, observed = running(valid_game())
    return planned(resource, later(replace(observed, poll=poll), 60))


def key_unusable() -> Plan:
    resource = valid_game()
    observed = apply_plan(EMPTY, planned(resource, EMPTY))
    return planned(resource, replace(observed, bootnode_peer="", bootnode_key_unusable=True))


def refused(*, taken: bool = False) -> Plan:
    resource, observed = settled(valid_game())
    refusal = Refusal("Service", "sums-peers", 403, "exceeded quota: small", observed.now, taken)
    return planned(resource, replace(observed, refusals=(refusal,)))


def diagnosed(kind: str, *pods: PodFacts, name: str, spec: dict[str, Any] | None = None) -> Plan:
    resource, observed = running(valid_game(spec))
    assert observed.job is not None
    job = replace(observed.job, created=observed.now)
    answer = Diagnosis(observed.now, "", (WarningFacts("Failed", "the reason why", observed.now),))
    return planned(resource, replace(observed, pods=pods, job=job, diagnoses={(kind, name): answer}))


def claim_kept() -> Plan:
    spec = {"storage": {"checkpoints": CLAIMS["storage"]["cache"]}}
    claim = ("PersistentVolumeClaim", "sums-checkpoints")
    return fresh(spec, replace(EMPTY, children={claim: ChildFacts(made_for="another")}))


def extended() -> Plan:
    spec = {"storage": {"checkpoints": CLAIMS["storage"]["cache"]}}
    resource, observed = running(valid_game(spec))
    ended = job_with(observed, ("Complete", ""))
    done = planned(resource, ended)
    base = valid_game().game
    assert base is not None
    game = {**base.spec.game.model_dump(mode="json", by_alias=True, exclude_none=True), "maxRounds": 200}
    return planned(valid_game({**spec, "game": game}, status=done.status, generation=2), ended)


def out_of_time(seconds: float, *, ran: bool, **spec: Any) -> Plan:
    resource, observed = running(valid_game(spec)) if ran else settled(valid_game(spec))
    return planned(resource, later(observed, seconds))


def with_progress(rounds: int, checkpoint: int | None) -> Plan:
    resource, observed = running(valid_game())
    facts = ProgressFacts(
        observed.now, rounds_finished=rounds, max_rounds=100, round_finished=observed.now, checkpoint=checkpoint
    )
    return planned(resource, replace(observed, progress=facts))


OOM = failed_pod(1, 137, reason="OOMKilled")
REFUSED = PodFacts(
    "sums-gateway-x",
    "gateway",
    phase="Running",
    containers=(ContainerFacts("gateway", exit_code=77, termination_message="no code there"),),
)
COORDINATOR = {"completion": {"policy": "Coordinator"}}

CASES: dict[tuple[str, str], tuple[Callable[[], Plan], str, str]] = {
    ("Accepted", "Valid"): (lambda: fresh(), "True", "exists"),
    ("Accepted", "InvalidGame"): (lambda: fresh({"peers": {"replicas": -1}}), "False", "spec.peers.replicas is -1"),
    ("Accepted", "InvalidPodTemplate"): (pod_refused, "False", "hostNetwork"),
    ("Accepted", "SecretNotFound"): (
        lambda: fresh({"model": {"uri": "hf://a/b", "secretRef": {"name": "hub"}}}),
        "False",
        "the Secret hub",
    ),
    ("Accepted", "ModuleNotFound"): (module_missing, "False", "spec.game.modules[0].configMapRef.name is mine"),
    ("Accepted", "ModelNotFound"): (model_missing, "False", "the hub was not reached"),
    ("Accepted", "UnsupportedCluster"): (
        lambda: fresh(None, replace(EMPTY, cluster_version=(1, 33))),
        "False",
        "Kubernetes 1.33",
    ),
    ("Accepted", "ManagedExternally"): (
        lambda: fresh({"managedBy": "example.dev/other"}),
        "False",
        "example.dev/other",
    ),
    ("Registered", "NotRequired"): (lambda: fresh(), "True", "no chain"),
    ("Registered", "AllRegistered"): (lambda: with_chain(ChainFacts(registered=4)), "True", "4 of 4"),
    ("Registered", "PartlyRegistered"): (lambda: with_chain(ChainFacts(registered=0)), "False", "0 of 4"),
    ("Registered", "RPCUnavailable"): (
        lambda: with_chain(ChainFacts(problem="no route to host")),
        "False",
        "no route to host",
    ),
    ("Registered", "WrongChain"): (lambda: with_chain(None, pods=(REFUSED,)), "False", "no code there"),
    ("Registered", "InsufficientFunds"): (lambda: with_chain(ChainFacts(wallet_empty=True)), "False", "fund it"),
    ("Registered", "TransactionReverted"): (
        lambda: with_chain(ChainFacts(reverted="PeerIdTaken")),
        "False",
        "PeerIdTaken",
    ),
    ("Ready", "PeersReady"): (lambda: planned(*running(valid_game())), "True", "4 of 4"),
    ("Ready", "WaitingForQueue"): (lambda: queued(ran=False), "False", "by the queue research"),
    ("Ready", "WaitingForPeers"): (
        lambda: with_pods(starting_pod(0), spec={"peers": {"minReplicas": 2}}),
        "False",
        "0 of 4 peers are in the swarm; 2 are needed",
    ),
    ("Ready", "WaitingForBootnode"): (lambda: planned(*settled(valid_game())), "False", "bootnode"),
    ("Ready", "Initializing"): (initializing, "False", "cache"),
    ("Ready", "Unschedulable"): (
        lambda: with_pods(
            PodFacts("sums-peers-0-a", "peer", 0, unschedulable="0/3 nodes: Insufficient nvidia.com/gpu.")
        ),
        "False",
        "sums-peers-0-a: 0/3 nodes: Insufficient nvidia.com/gpu.",
    ),
    ("Ready", "NotAccepted"): (
        lambda: fresh({"model": {"uri": "hf://a/b", "secretRef": {"name": "hub"}}}),
        "False",
        "not accepted",
    ),
    ("Ready", "GameSuspended"): (lambda: fresh({"suspend": True}), "False", "suspended"),
    ("Ready", "Blocked"): (refused, "False", "exceeded quota: small"),
    ("Ready", "Complete"): (lambda: over(("Complete", "")), "True", "complete"),
    ("Ready", "Failed"): (lambda: out_of_time(61, ran=True, activeDeadlineSeconds=60), "False", "failed"),
    ("Progressing", "RoundAdvancing"): (lambda: with_progress(7, 0), "True", "7 of 100"),
    ("Progressing", "ScalingUp"): (lambda: scaled(6), "True", "4 of 6"),
    ("Progressing", "ScalingDown"): (lambda: scaled(2), "True", "2 peers are leaving; 2 stay"),
    ("Progressing", "RollingOut"): (
        lambda: rolled_out({"storage": {"checkpoints": CLAIMS["storage"]["cache"]}}),
        "True",
        "save their state",
    ),
    ("Progressing", "Stalled"): (stalled, "False", "none has ended yet"),
    ("Progressing", "NoAnswer"): (lambda: polled(PollFacts(silent_since=NOW, error="refused")), "Unknown", "refused"),
    ("Progressing", "NotPolled"): (lambda: polled(PollFacts(enabled=False)), "Unknown", "progressSeconds"),
    ("Progressing", "Finished"): (lambda: over(("Complete", "")), "False", "over"),
    ("Degraded", "AsExpected"): (lambda: planned(*running(valid_game())), "False", "no problem is known"),
    ("Degraded", "NotObserved"): (lambda: fresh(), "Unknown", "has not started"),
    ("Degraded", "PlanFailed"): (
        lambda: plan_of_failure(valid_game(), NOW, ZeroDivisionError("no rounds")),
        "True",
        "ZeroDivisionError: no rounds.",
    ),
    ("Degraded", "NotServed"): (
        lambda: plan_of_unserved(valid_game(), NOW, "NetworkPolicy", "networkpolicies is forbidden"),
        "True",
        "NetworkPolicy: networkpolicies is forbidden.",
    ),
    ("Degraded", "NameTaken"): (lambda: refused(taken=True), "True", "Rename or delete it"),
    ("Degraded", "KeyUnusable"): (key_unusable, "True", "bootnode.key in the Secret sums-bootnode-key is not a key"),
    ("Degraded", "ClaimKept"): (claim_kept, "True", "spec.storage.checkpoints.claimName"),
    ("Degraded", "ObjectRefused"): (refused, "True", "exceeded quota: small"),
    ("Degraded", "PodsRefused"): (lambda: diagnosed("Job", name="sums-peers"), "True", "the reason why"),
    ("Degraded", "PodBlocked"): (
        lambda: diagnosed("Pod", PodFacts("a", "peer", 0, created=NOW, node="n7"), name="a"),
        "True",
        "Failed: the reason why",
    ),
    ("Degraded", "VolumeMissing"): (
        lambda: diagnosed(
            "PersistentVolumeClaim",
            *(PodFacts(f"p{i}", "peer", i, unschedulable="PersistentVolumeClaim", created=NOW) for i in range(4)),
            name="sums-checkpoints",
            spec={"storage": {"checkpoints": CLAIMS["storage"]["cache"]}},
        ),
        "True",
        "the reason why",
    ),
    ("Degraded", "NodeLost"): (
        lambda: with_pods(PodFacts("a", "peer", 0, phase="Running", node="n7", node_lost=True)),
        "True",
        "n7",
    ),
    ("Degraded", "PodStuck"): (
        lambda: with_pods(PodFacts("a", "peer", 0, terminating=True, end_due=NOW - timedelta(hours=1))),
        "True",
        "3600 s ago",
    ),
    ("Degraded", "SidecarRuns"): (
        lambda: with_pods(
            PodFacts(
                "a",
                "peer",
                0,
                phase="Running",
                containers=(
                    ContainerFacts("peer", exit_code=0, ended=NOW - timedelta(hours=1)),
                    ContainerFacts("mesh", running=True),
                ),
            )
        ),
        "True",
        "mesh",
    ),
    ("Degraded", "SidecarEnded"): (
        lambda: with_pods(
            PodFacts(
                "a",
                "peer",
                0,
                phase="Running",
                containers=(ContainerFacts("peer", running=True), ContainerFacts("mesh", exit_code=3)),
            )
        ),
        "True",
        "mesh of the pod a has ended with exit code 3",
    ),
    ("Degraded", "ChangeWaits"): (lambda: rolled_out({}), "True", "lose all rounds"),
    ("Degraded", "PeersFailing"): (
        lambda: with_pods(ready_pod(0), failed_pod(1, 1, "ValueError: no")),
        "True",
        "Peer 1, Error: peer ended",
    ),
    ("Degraded", "ImagePullFailed"): (
        lambda: with_pods(waiting_pod(0, "ImagePullBackOff", "example.dev/worker:1: not found")),
        "True",
        "example.dev/worker:1: not found",
    ),
    ("Degraded", "OutOfMemory"): (lambda: with_pods(ready_pod(0), OOM), "True", "limits.memory"),
    ("Degraded", "ChainLagging"): (lambda: with_chain(ChainFacts(registered=4, problem="timeout")), "True", "timeout"),
    ("Degraded", "CheckpointFailing"): (lambda: with_progress(50, 10), "True", "40 rounds old"),
    ("Suspended", "SuspendedByUser"): (lambda: fresh({"suspend": True}), "True", "spec.suspend"),
    ("Suspended", "ScaledToZero"): (lambda: fresh({"peers": {"replicas": 0}}), "True", "spec.peers.replicas is 0"),
    ("Suspended", "NotAdmitted"): (lambda: queued(ran=False), "True", "research"),
    ("Suspended", "Preempted"): (lambda: queued(ran=True), "True", "while it ran"),
    ("Suspended", "Resumed"): (lambda: fresh(), "False", "may run"),
    ("Complete", "RoundsReached"): (lambda: over(("Complete", "")), "True", "all 100 rounds"),
    ("Complete", "CoordinatorFinished"): (
        lambda: with_chain(ChainFacts(registered=4, round=100), **COORDINATOR),
        "True",
        "round 100",
    ),
    ("Complete", "AllPeersSucceeded"): (
        lambda: over(("Complete", ""), spec={"completion": {"policy": "AllPeers"}}, completed_indexes="0-3"),
        "True",
        "4 peers",
    ),
    ("Complete", "PlaysOn"): (extended, "False", "raised to 200"),
    ("Failed", "DeadlineExceeded"): (lambda: out_of_time(61, ran=True, activeDeadlineSeconds=60), "True", "60"),
    ("Failed", "PreRunningDeadlineExceeded"): (
        lambda: out_of_time(3_601, ran=False),
        "True",
        "Last known: The bootnode",
    ),
    ("Failed", "TooManyFailedPeers"): (
        lambda: over(
            ("Failed", "MaxFailedIndexesExceeded"), failed_indexes="0-2", pods=(failed_pod(2, 1, "KeyError: 'x'"),)
        ),
        "True",
        "3 peers have failed for good; spec.failurePolicy allows 2. Peer 2: peer ended with exit code 1: KeyError: 'x'",
    ),
    ("Failed", "FatalExitCode"): (
        lambda: over(
            ("Failed", "PodFailurePolicy"), pods=(failed_pod(0, 78, "game.yaml: spec.game.trainer is wrong"),)
        ),
        "True",
        "game.yaml: spec.game.trainer is wrong",
    ),
}
