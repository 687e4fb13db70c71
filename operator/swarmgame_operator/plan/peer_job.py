"""The peers: one elastic Indexed Job.

A Job's template cannot be changed, and other controllers write into it (Kueue: suspend, nodeSelector, tolerations,
schedulingGates). So the whole is posted once, and from then on only the number of peers is ours. A running game keeps
the template that it began with, whatever the operator's defaults become; it is made anew only where its author changed
what the pods are made from. Invariants: `completions` is never 0, as such a Job succeeds at once; parallelism and
completions are one number; `maxFailedIndexes` is at most that.
"""

from __future__ import annotations

from typing import Any

from swarmgame_operator.plan import initializer, sampler, storage
from swarmgame_operator.plan.merge import merge
from swarmgame_operator.plan.outcome import Child, Manifest
from swarmgame_operator.plan.pod import (
    container,
    from_field,
    gpu_toleration,
    gpus,
    http_port,
    http_probe,
    mount,
    p2p_port,
    patient_probes,
    pod_spec,
    threads,
    value,
    volume,
    with_memory_requested,
)
from swarmgame_operator.plan.services import bootnode_address, chain_environment, rendezvous
from swarmgame_operator.plan.setting import HTTP_PORT, TEMPLATE_HASH, Setting, digest

JOB = "peers"
CONTAINER = "peer"
FATAL_EXIT_CODES = (64, 78)
REFUSED_EXIT_CODE = 77
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
KUEUE = "kueue.x-k8s.io/"
PARTIAL_ADMISSION = "kueue.x-k8s.io/job-min-parallelism"
INDEX_ANNOTATION = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def peer_job(setting: Setting) -> Child:
    """The Job: what is ours for good, and the whole of it for the moment when it is made."""
    size = setting.spec.peers.replicas
    if size < 1:
        raise ValueError("a Job of no peers would succeed at once; a game without peers is suspended")
    metadata = setting.metadata(JOB, "peer")
    numbers = {
        "parallelism": size,
        "completions": size,
        "maxFailedIndexes": min(setting.spec.failure_policy.max_failed_peers, size),
    }
    identity = {"apiVersion": "batch/v1", "kind": "Job"}
    # Under partial admission the number of peers is Kueue's to lower.
    ours = {} if PARTIAL_ADMISSION in setting.resource.annotations else {"spec": numbers}
    labels, annotations = _for_kueue(setting)
    created = {
        **metadata,
        "labels": {**labels, **metadata["labels"]},
        "annotations": {**annotations, TEMPLATE_HASH: template_hash(setting)},
    }
    spec: Manifest = {
        **numbers,
        "completionMode": "Indexed",
        "backoffLimitPerIndex": setting.spec.failure_policy.backoff_limit_per_peer,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": _failure_rules(setting)},
        "template": template(setting),
    }
    if setting.spec.completion.policy == "AnyPeer":
        spec["successPolicy"] = {"rules": [{"succeededCount": 1}]}
    if queue(setting):
        spec["suspend"] = True
    return Child({**identity, "metadata": metadata, **ours}, {**identity, "metadata": created, "spec": spec})


def queue(setting: Setting) -> str:
    """The Kueue queue that admits the game; empty where none does."""
    return setting.resource.labels.get(QUEUE_LABEL, "")


def template_hash(setting: Setting) -> str:
    """Tells what the author asked the pods to be. A scale, a deadline, or another version of the operator is not part
    of it.
    """
    data = setting.spec_data
    peers = {
        key: entry
        for key, entry in data.get("peers", {}).items()
        if key not in ("replicas", "minReplicas", "maxReplicas")
    }
    communication = {key: entry for key, entry in data.get("communication", {}).items() if key != "initialPeers"}
    failure = {key: entry for key, entry in data.get("failurePolicy", {}).items() if key == "backoffLimitPerPeer"}
    storage_data = data.get("storage", {})
    checkpoints = {key: entry for key, entry in storage_data.get("checkpoints", {}).items() if key != "retentionPolicy"}
    return digest(
        {
            "game": data.get("game"),
            "model": data.get("model"),
            "peers": peers,
            "communication": communication,
            "coordination": data.get("coordination"),
            "bootnode": data.get("bootnode", {}).get("enabled"),
            "identity": data.get("identity", {}).get("secretName"),
            "storage": {**storage_data, "checkpoints": checkpoints},
            "completion": data.get("completion"),
            "failure": failure,
            "grace": data.get("terminationGracePeriodSeconds"),
        }
    )


def processes(setting: Setting) -> str:
    """Processes of a peer; `auto` where the limits name no GPU: claims of other kinds are known inside the pod alone."""
    asked = setting.spec.peers.processes_per_peer
    if asked != "auto":
        return str(asked)
    return str(gpus(setting)) if gpus(setting) else "auto"


def template(setting: Setting) -> Manifest:
    """The peers' pods, with the author's podTemplate laid over."""
    patch = setting.spec.peers.pod_template
    labels = {**patch.metadata.labels, **setting.labels("peer")}
    metadata: Manifest = {"labels": labels}
    if patch.metadata.annotations:
        metadata["annotations"] = dict(patch.metadata.annotations)
    return {"metadata": metadata, "spec": merge(_pod(setting), patch.spec)}


def _pod(setting: Setting) -> Manifest:
    fields: Manifest = {
        "restartPolicy": "Never",
        "subdomain": setting.name("peers"),
        "terminationGracePeriodSeconds": setting.spec.termination_grace_period_seconds,
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": setting.selector("peer")},
            }
        ],
        "containers": [_container(setting)],
        "volumes": [
            *storage.game_volumes(setting),
            storage.shared_memory(setting),
            storage.checkpoint_volume(setting),
            volume("identity", secret={"secretName": setting.key_secret, "defaultMode": storage.READ_BY_GROUP}),
        ],
    }
    if initializer.in_the_pod(setting):
        fields["initContainers"] = [initializer.initializer_container(setting)]
        fields["volumes"] += storage.token_volumes(setting)
    if (options := setting.vllm_sidecar) is not None:
        fields.setdefault("initContainers", []).append(sampler.sampler_container(setting, options))
        fields["volumes"] += sampler.sampler_volumes()
    return pod_spec(setting, **fields, **gpu_toleration(setting))


def _container(setting: Setting) -> Manifest:
    peers = setting.spec.peers
    fields: dict[str, Any] = {
        "args": ["pod", "peer"],
        "env": merge(_environment(setting), [_variable(each) for each in peers.env], "env"),
        "ports": [p2p_port(setting), http_port()],
        "volumeMounts": [
            *storage.game_mounts(setting),
            mount("shm", "/dev/shm"),
            storage.checkpoint_mount(setting),
            mount(
                "identity",
                f"{storage.IDENTITY}/peer.key",
                subPathExpr="peer-$(JOB_COMPLETION_INDEX).key",
                readOnly=True,
            ),
            *(sampler.sampler_mounts() if setting.vllm_sidecar is not None else []),
        ],
        "lifecycle": {"preStop": http_probe("/drain")},
        **patient_probes(),
    }
    if resources := with_memory_requested(peers.resources.limits, peers.resources.requests):
        fields["resources"] = resources
    return container(setting, CONTAINER, setting.worker_image, **fields)


def _environment(setting: Setting) -> list[Manifest]:
    spec = setting.spec
    found = [
        from_field("JOB_COMPLETION_INDEX", INDEX_ANNOTATION),
        from_field("POD_IP", "status.podIP"),
        *storage.game_environment(setting),
        value("SWARMGAME_DIRECTORY", f"{storage.CHECKPOINTS}/peer"),
        value("SWARMGAME_IDENTITY", f"{storage.IDENTITY}/peer.key"),
        *([value("SWARMGAME_RENDEZVOUS", rendezvous(setting))] if setting.closed else []),
        value("SWARMGAME_PORT", str(spec.communication.port)),
        value("SWARMGAME_HTTP_HOST", "0.0.0.0"),
        value("SWARMGAME_HTTP_PORT", str(HTTP_PORT)),
        value("SWARMGAME_INITIAL_PEERS", bootnode_address(setting) if setting.has_bootnode else ""),
        value("SWARMGAME_ANNOUNCE", f"/ip4/$(POD_IP)/tcp/{spec.communication.port}"),
        value("SWARMGAME_AT_LEAST", str(spec.peers.min_replicas)),
        value("SWARMGAME_JOIN_SECONDS", str(spec.pre_running_deadline_seconds)),
        value("SWARMGAME_PROCESSES", processes(setting)),
        *chain_environment(setting),
        *(sampler.sampler_environment() if setting.vllm_sidecar is not None else []),
    ]
    if setting.must_be_initialized and spec.model is not None and spec.model.uri.startswith("hf://"):
        found.append(value("HF_HUB_OFFLINE", "1"))
    if processes(setting) in ("auto", "1"):
        found.append(threads(setting, CONTAINER))
    return found


def _variable(variable: Any) -> Manifest:
    data: Manifest = variable.model_dump(mode="json", by_alias=True, exclude_none=True)
    return data


def _failure_rules(setting: Setting) -> list[Manifest]:
    """In order: a disruption is nobody's fault; a game that cannot be played fails as a whole; a peer that was refused
    fails alone.
    """
    names = [CONTAINER, *([initializer.CONTAINER] if initializer.in_the_pod(setting) else [])]
    return [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        *(_on_exit("FailJob", name, list(FATAL_EXIT_CODES)) for name in names),
        *(_on_exit("FailIndex", name, [REFUSED_EXIT_CODE]) for name in names),
    ]


def _on_exit(action: str, name: str, codes: list[int]) -> Manifest:
    return {"action": action, "onExitCodes": {"containerName": name, "operator": "In", "values": codes}}


def _for_kueue(setting: Setting) -> tuple[dict[str, str], dict[str, str]]:
    """Kueue reads its labels and annotations from the Job alone."""
    found = [
        {key: text for key, text in pairs.items() if key.startswith(KUEUE)}
        for pairs in (setting.resource.labels, setting.resource.annotations)
    ]
    return found[0], found[1]
