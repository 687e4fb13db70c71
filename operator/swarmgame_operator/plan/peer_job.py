"""The peers' Job: one elastic Indexed Job.

A Job's template is immutable, and other controllers write into it (Kueue: suspend, nodeSelector, tolerations,
schedulingGates). So the complete Job is created once, and later only the number of peers is applied. A running game
keeps its template when the operator's defaults change; the Job is replaced only if its author changed what the pods
are made from. `completions` equals `parallelism` and is never 0, because such a Job succeeds at once;
`maxFailedIndexes` is at most that.
"""

from __future__ import annotations

from typing import Any

from swarmgame_operator.plan import initializer, sampler, storage
from swarmgame_operator.plan.devices import processes, tolerations, uncounted_devices
from swarmgame_operator.plan.game_context import TEMPLATE_HASH, GameContext
from swarmgame_operator.plan.plan_types import Child, Manifest
from swarmgame_operator.plan.pod import (
    container,
    from_field,
    http_port,
    http_probe,
    mount,
    p2p_port,
    pod_spec,
    pod_template,
    slow_start_probes,
    threads,
    value,
    volume,
)
from swarmgame_operator.plan.services import bootnode_address, chain_environment, own_address, rendezvous

JOB = "peers"
CONTAINER = "peer"
FATAL_EXIT_CODES = (64, 78)
REFUSED_EXIT_CODE = 77
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
KUEUE = "kueue.x-k8s.io/"
PARTIAL_ADMISSION = "kueue.x-k8s.io/job-min-parallelism"
INDEX_ANNOTATION = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def peer_job(game: GameContext, *, template_hash: str = "") -> Child:
    """Return the Job: the fields that the operator keeps applying, and the complete object for its creation. The hash
    of its template is applied too: an earlier operator's hash contains the size of claims, and would match no more
    after the next change of a size.

    Args:
        template_hash: of a Job whose pods the game's settings wait for. Empty: the game's.
    """
    size = game.spec.peers.replicas
    if size < 1:
        raise ValueError("a Job of no peers would succeed at once; a game without peers is suspended")
    metadata = game.metadata(JOB, "peer", annotations={TEMPLATE_HASH: template_hash or game.template_hash})
    numbers = {
        "parallelism": size,
        "completions": size,
        "maxFailedIndexes": min(game.spec.failure_policy.max_failed_peers, size),
    }
    identity = {"apiVersion": "batch/v1", "kind": "Job"}
    # Under partial admission Kueue may lower the number of peers.
    applied = {} if PARTIAL_ADMISSION in game.resource.annotations else {"spec": numbers}
    labels, annotations = _for_kueue(game)
    created = {
        **metadata,
        "labels": {**labels, **metadata["labels"]},
        "annotations": {**annotations, **metadata["annotations"]},
    }
    spec: Manifest = {
        **numbers,
        "completionMode": "Indexed",
        "backoffLimitPerIndex": game.spec.failure_policy.backoff_limit_per_peer,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": _failure_rules(game)},
        "template": template(game),
    }
    if game.spec.completion.policy == "AnyPeer":
        spec["successPolicy"] = {"rules": [{"succeededCount": 1}]}
    if queue(game):
        spec["suspend"] = True
    return Child({**identity, "metadata": metadata, **applied}, {**identity, "metadata": created, "spec": spec})


def queue(game: GameContext) -> str:
    """Return the Kueue queue that admits the game; empty if there is none."""
    return game.resource.labels.get(QUEUE_LABEL, "")


def template(game: GameContext) -> Manifest:
    """Return the peers' pod template, with the author's podTemplate merged into it."""
    return pod_template(game, "peer", _pod(game))


def _pod(game: GameContext) -> Manifest:
    fields: Manifest = {
        "restartPolicy": "Never",
        "subdomain": game.name("peers"),
        "terminationGracePeriodSeconds": game.spec.termination_grace_period_seconds,
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": game.selector("peer")},
            }
        ],
        "containers": [_container(game)],
        "volumes": [
            *storage.game_volumes(game),
            storage.shared_memory(game),
            storage.checkpoint_volume(game),
            volume("identity", secret={"secretName": game.key_secret, "defaultMode": storage.READ_BY_GROUP}),
        ],
    }
    if initializer.in_the_pod(game):
        fields["initContainers"] = [initializer.initializer_container(game)]
        fields["volumes"] += storage.token_volumes(game)
    if (options := game.vllm_sidecar) is not None:
        fields.setdefault("initContainers", []).append(sampler.sampler_container(game, options))
        fields["volumes"] += sampler.sampler_volumes()
    if found := tolerations(game):
        fields["tolerations"] = found
    return pod_spec(game, **fields)


def _container(game: GameContext) -> Manifest:
    peers = game.spec.peers
    fields: dict[str, Any] = {
        "args": ["pod", "peer"],
        "env": _environment(game),
        "ports": [p2p_port(game), http_port()],
        "volumeMounts": [
            *storage.game_mounts(game),
            mount("shm", "/dev/shm"),
            storage.checkpoint_mount(game),
            mount(
                "identity",
                f"{storage.IDENTITY}/peer.key",
                subPathExpr="peer-$(JOB_COMPLETION_INDEX).key",
                readOnly=True,
            ),
            *(sampler.sampler_mounts() if game.vllm_sidecar is not None else []),
        ],
        "lifecycle": {"preStop": http_probe("/drain")},
        **slow_start_probes(),
    }
    return container(game, CONTAINER, game.worker_image, variables=peers.env, own_resources=peers.resources, **fields)


def _environment(game: GameContext) -> list[Manifest]:
    found = [
        from_field("JOB_COMPLETION_INDEX", INDEX_ANNOTATION),
        from_field("POD_IP", "status.podIP"),
        *storage.game_environment(game),
        value("SWARMGAME_DIRECTORY", f"{storage.CHECKPOINTS}/peer"),
        value("SWARMGAME_IDENTITY", f"{storage.IDENTITY}/peer.key"),
        *([value("SWARMGAME_RENDEZVOUS", rendezvous(game))] if game.closed else []),
        value("SWARMGAME_INITIAL_PEERS", bootnode_address(game) if game.has_bootnode else ""),
        value("SWARMGAME_ANNOUNCE", own_address(game)),
        *chain_environment(game),
        *(sampler.sampler_environment() if game.vllm_sidecar is not None else []),
    ]
    if game.must_be_initialized and (game.model_on_hub or game.data_on_hub):
        found.append(value("HF_HUB_OFFLINE", "1"))
    uncounted = uncounted_devices(game) if processes(game) == "auto" else ()
    if uncounted:
        found += [value("SWARMGAME_DEVICES", ", ".join(uncounted)), threads(game, CONTAINER, "SWARMGAME_CPUS")]
    elif processes(game) in ("auto", "1"):
        found.append(threads(game, CONTAINER))
    return found


def _failure_rules(game: GameContext) -> list[Manifest]:
    """Return the rules, in order: a disruption is ignored; a game that cannot be played fails the Job; a refused peer
    fails its index.
    """
    names = [CONTAINER, *([initializer.CONTAINER] if initializer.in_the_pod(game) else [])]
    return [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        *(_on_exit("FailJob", name, list(FATAL_EXIT_CODES)) for name in names),
        *(_on_exit("FailIndex", name, [REFUSED_EXIT_CODE]) for name in names),
    ]


def _on_exit(action: str, name: str, codes: list[int]) -> Manifest:
    return {"action": action, "onExitCodes": {"containerName": name, "operator": "In", "values": codes}}


def _for_kueue(game: GameContext) -> tuple[dict[str, str], dict[str, str]]:
    """Return the labels and annotations for Kueue, which reads them from the Job only."""
    found = [
        {key: text for key, text in pairs.items() if key.startswith(KUEUE)}
        for pairs in (game.resource.labels, game.resource.annotations)
    ]
    return found[0], found[1]
