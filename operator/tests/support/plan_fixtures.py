"""Games and snapshots for tests of plans, and a simulated cluster that carries plans out."""

from __future__ import annotations

import copy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import yaml

from swarmgame_api.resource import GameResource, status_document
from swarmgame_api.status import Condition, SwarmGameStatus
from swarmgame_operator.defaults import Defaults
from swarmgame_operator.plan import Plan, build_plan
from swarmgame_operator.plan.game_context import INTENT_HASH, TEMPLATE_HASH, GameContext
from swarmgame_operator.plan.storage import checkpoints_claim
from swarmgame_operator.snapshot import (
    ChildFacts,
    ContainerFacts,
    JobCondition,
    JobFacts,
    Observed,
    PodFacts,
    ProgressFacts,
    ServiceFacts,
    WorkloadFacts,
)

NOW = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)
BOOTNODE_PEER = "16Uiu2HAm1111111111111111111111111111111111111111111"
DEFAULTS = Defaults(
    worker_image="example.dev/worker:1", gateway_image="example.dev/operator:1", chain_image="example.dev/chain:1"
)
EMPTY = Observed(NOW)

SPEC = """
game:
  maxRounds: 100
  data: {use: reasoning-gym}
  rewards: {use: reasoning-gym}
  trainer: {use: grpo}
model: {uri: "builtin://tiny"}
"""


def body(
    spec: dict[str, Any] | None = None,
    *,
    name: str = "sums",
    status: SwarmGameStatus | None = None,
    generation: int = 1,
    **metadata: Any,
) -> dict[str, Any]:
    """Return an object as the API server does. `spec` replaces top-level fields of the smallest spec."""
    return {
        "apiVersion": "swarmgame.dev/v1alpha1",
        "kind": "SwarmGame",
        "metadata": {
            "name": name,
            "namespace": "lab",
            "uid": "5f0c7b9e-0000-4000-8000-000000000001",
            "creationTimestamp": "2026-01-31T11:59:59Z",
            "generation": generation,
            **metadata,
        },
        "spec": {**yaml.safe_load(SPEC), **copy.deepcopy(spec or {})},
        "status": status_document(status) if status is not None else {},
    }


def peer_id(index: int) -> str:
    """Return the id of a peer's key."""
    return f"{BOOTNODE_PEER[:-1]}{index + 2}"


def game(spec: dict[str, Any] | None = None, **rest: Any) -> GameResource:
    return GameResource.parse(body(spec, **rest))


def valid_game(spec: dict[str, Any] | None = None, **rest: Any) -> GameResource:
    found = game(spec, **rest)
    assert found.game is not None, [str(problem) for problem in found.problems]
    return found


def game_context(resource: GameResource, defaults: Defaults = DEFAULTS) -> GameContext:
    assert resource.game is not None
    return GameContext(resource, resource.game, defaults, BOOTNODE_PEER)


def with_status(resource: GameResource, status: SwarmGameStatus) -> GameResource:
    return replace(resource, status=status)


def later(observed: Observed, seconds: float) -> Observed:
    return replace(observed, now=observed.now + timedelta(seconds=seconds))


def condition(found: Plan | SwarmGameStatus, type: str) -> Condition | None:
    status = found.status if isinstance(found, Plan) else found
    return next((each for each in status.conditions if each.type == type), None)


def reported(found: Plan | SwarmGameStatus) -> dict[str, tuple[str, str]]:
    """Return the conditions as type → (status, reason)."""
    status = found.status if isinstance(found, Plan) else found
    return {each.type: (each.status, each.reason) for each in status.conditions}


def apply_plan(observed: Observed, done: Plan, name: str = "sums") -> Observed:
    """Return the snapshot after the plan was carried out: keys, written objects, finished deletions. No pods appear."""
    children = dict(observed.children)
    secrets = dict(observed.secrets)
    job, initializer = observed.job, observed.initializer
    workloads, services = list(observed.workloads), list(observed.services)
    for each in done.keys:
        secrets[each.name] = secrets.get(each.name, frozenset()) | set(each.missing)
        children[("Secret", each.name)] = ChildFacts(each.secret["metadata"]["annotations"][INTENT_HASH])
    for child in done.children:
        manifest = child.create_manifest or child.apply_manifest
        annotations = manifest["metadata"]["annotations"]
        owners = tuple(str(each["uid"]) for each in manifest["metadata"].get("ownerReferences") or ())
        children[(child.kind, child.name)] = ChildFacts(annotations[INTENT_HASH], owners=owners)
        if child.kind == "Job":
            made = job if child.name == f"{name}-peers" else initializer
            if child.create_manifest is not None:
                made = JobFacts(
                    child.name,
                    suspended=bool(manifest["spec"].get("suspend")),
                    template_hash=annotations[TEMPLATE_HASH],
                    queue=manifest["metadata"]["labels"].get("kueue.x-k8s.io/queue-name", ""),
                    checkpoints_claim=checkpoints_claim(manifest["spec"]["template"]["spec"]),
                )
            assert made is not None, f"a Job that does not exist cannot be changed: {child.name}"
            numbers = manifest.get("spec", {})
            made = replace(
                made,
                parallelism=numbers.get("parallelism", made.parallelism),
                completions=numbers.get("completions", made.completions),
            )
            if child.name == f"{name}-peers":
                job = made
            else:
                initializer = made
        if child.kind in ("Deployment", "StatefulSet"):
            workloads = [each for each in workloads if each.name != child.name or each.kind != child.kind]
            workloads.append(WorkloadFacts(child.kind, child.name))
        if child.kind == "Service" and all(each.name != child.name for each in services):
            services.append(ServiceFacts(child.name))
    for gone in done.deletions:
        children.pop((gone.kind, gone.name), None)
        if gone.kind == "Job" and gone.name == f"{name}-peers":
            job = None
        elif gone.kind == "Job":
            initializer = None
    return replace(
        observed,
        children=children,
        secrets=secrets,
        job=job,
        initializer=initializer,
        workloads=tuple(workloads),
        services=tuple(services),
        bootnode_peer=BOOTNODE_PEER if f"{name}-bootnode-key" in secrets else "",
        peer_ids=tuple(peer_id(index) for index in range(len(secrets.get(f"{name}-peer-keys", ())))),
    )


def settled(
    resource: GameResource, observed: Observed = EMPTY, defaults: Defaults = DEFAULTS
) -> tuple[GameResource, Observed]:
    """Plan and carry out until nothing is left to do."""
    for _ in range(10):
        found = build_plan(resource, observed, defaults)
        if not (found.keys or found.children or found.deletions):
            return with_status(resource, found.status), observed
        observed = apply_plan(observed, found, resource.name)
        resource = with_status(resource, found.status)
    raise AssertionError("the plans do not settle")


def peer_pod(index: int, *, attempt: int = 0, **fields: Any) -> PodFacts:
    return PodFacts(f"sums-peers-{index}-{'abcdefgh'[attempt]}", "peer", index, **fields)


def ready_pod(index: int) -> PodFacts:
    return peer_pod(index, phase="Running", ready=True, containers=(ContainerFacts("peer", ready=True),))


def starting_pod(index: int) -> PodFacts:
    return peer_pod(index, phase="Running", containers=(ContainerFacts("peer"),))


def failed_pod(
    index: int, code: int, message: str = "", *, reason: str = "Error", container: str = "peer", attempt: int = 0
) -> PodFacts:
    ended = ContainerFacts(container, exit_code=code, exit_reason=reason, termination_message=message)
    return peer_pod(index, attempt=attempt, phase="Failed", containers=(ended,))


def waiting_pod(index: int, reason: str, message: str = "", container: str = "peer") -> PodFacts:
    return peer_pod(index, containers=(ContainerFacts(container, waiting=reason, waiting_message=message),))


def running(resource: GameResource, observed: Observed = EMPTY) -> tuple[GameResource, Observed]:
    """Return the game and its snapshot with all peers and the bootnode ready."""
    assert resource.game is not None
    resource, observed = settled(resource, observed)
    assert observed.job is not None
    size = resource.game.spec.peers.replicas
    observed = replace(
        observed,
        job=replace(observed.job, suspended=False, active=size, ready=size),
        pods=tuple(ready_pod(index) for index in range(size)),
        workloads=tuple(replace(each, ready=1) for each in observed.workloads),
    )
    return with_status(resource, build_plan(resource, observed, DEFAULTS).status), observed


def heard(observed: Observed) -> Observed:
    """Return the snapshot with an answer of a peer that has not finished a round."""
    return replace(observed, progress=ProgressFacts(observed.now))


def job_with(observed: Observed, *conditions: tuple[str, str], **fields: Any) -> Observed:
    """Return the snapshot with these conditions, (type, reason), on the peers' Job."""
    assert observed.job is not None
    added = tuple(JobCondition(type, reason) for type, reason in conditions)
    return replace(observed, job=replace(observed.job, conditions=added, **fields))


def jobs(found: Plan) -> list[str]:
    """Return the names of the Jobs that a plan writes."""
    return [child.name for child in found.children if child.kind == "Job"]


def changed(spec: dict[str, Any], before: dict[str, Any] | None = None) -> tuple[GameResource, Observed]:
    """Return a game whose spec has just changed, and its snapshot with all peers and the bootnode ready."""
    resource, observed = running(valid_game(before))
    return valid_game(spec, status=resource.status, generation=2), observed
