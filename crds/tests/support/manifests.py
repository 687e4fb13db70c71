"""A manifest with every object, every field of the schema, and invalid values for a field."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any, Literal, Union

from swarmgame_api import loads_manifest
from swarmgame_api.errors import join_path
from swarmgame_api.load import manifest_data
from swarmgame_api.rules import objects
from swarmgame_api.type_descriptions import TypeInfo, field_type_info

LARGEST = """
apiVersion: swarmgame.dev/v1alpha1
kind: SwarmGame
metadata:
  name: multistage-math
  namespace: research
  labels: {kueue.x-k8s.io/queue-name: research}
  annotations: {example.dev/why: "because"}
spec:
  suspend: false
  managedBy: swarmgame.dev/operator
  game:
    maxRounds: 200
    stages: 3
    seed: 42
    data:
      use: reasoning-gym
      with: {environments: [{name: chain_sum, weight: 2, config: {max_terms: 2}}, {name: gcd}]}
    rewards: {use: "my_game.rewards:Mine"}
    trainer: {use: grpo, with: {generations: 8, loss: dapo, learningRate: 6.0e-4, update: per-round}}
    environment: {use: number-guessing, with: {perTurn: 0.2}, maxTurns: 4, maxObservationTokens: 64}
    roles: [{name: solver, share: 50%}, {name: proposer, count: 1}, {name: evaluator}]
    modules:
      - {name: my-game, image: {reference: "example.dev/my-game@sha256:0123"}, mountPath: /modules/my-game}
      - {name: other, configMapRef: {name: other}, mountPath: /modules/other}
    sharing: {externalGroups: 8, strategy: nonzero-advantage, maxPerPeer: 4, maxStalenessRounds: 1, exchange: Pull}
    progression: {quorum: "67%", stageDeadlineSeconds: 120, whenAlone: Stop}
    evaluation: {everyRounds: 10, questions: 64}
  model: {uri: "hf://Qwen/Qwen2.5-0.5B-Instruct", revision: "main", secretRef: {name: hf-token}}
  communication:
    backend: Hivemind
    port: 31000
    admission: Registered
    initialPeers: ["/ip4/192.0.2.1/tcp/31000/p2p/16Uiu2HAm"]
  coordination:
    mode: External
    chainId: 1
    contractAddress: "0x00000000000000000000000000000000000000aa"
    rpcSecretRef: {name: rpc}
    walletSecretRef: {name: wallet}
    confirmations: 3
  peers:
    replicas: 4
    minReplicas: 2
    maxReplicas: 16
    processesPerPeer: 2
    image: example.dev/worker@sha256:0123
    resources: {limits: {nvidia.com/gpu: "1", memory: 32Gi}, requests: {cpu: 8}}
    env: [{name: A, value: b}, {name: B, valueFrom: {secretKeyRef: {name: s, key: k, optional: null}}}]
    podTemplate: {metadata: {labels: {a: b}, annotations: {c: d}}, spec: {tolerations: [{key: gpu}]}}
  bootnode: {enabled: true, expose: NodePort}
  identity: {secretName: keys, retentionPolicy: Delete}
  storage:
    cache: {emptyDir: {medium: Memory, sizeLimit: 4Gi}}
    checkpoints:
      claimTemplate:
        metadata: {labels: {a: b}}
        spec: {accessModes: [ReadWriteMany], storageClassName: fast, resources: {requests: {storage: 10Gi}}}
      everyRounds: 10
      keep: 2
      retentionPolicy: {whenDeleted: Retain, whenFinished: Delete}
    sharedMemory: 8Gi
  networkPolicy: {mode: None}
  completion: {policy: Coordinator}
  failurePolicy: {maxFailedPeers: 2, backoffLimitPerPeer: 3}
  preRunningDeadlineSeconds: 3600
  activeDeadlineSeconds: 86400
  ttlSecondsAfterFinished: 86400
  terminationGracePeriodSeconds: 120
"""


def complete() -> dict[str, Any]:
    """Return plain data with every object of the schema at least once."""
    return copy.deepcopy(_complete())


@cache
def _complete() -> dict[str, Any]:
    data = manifest_data(loads_manifest(LARGEST))
    data["spec"]["storage"]["cache"] = {"claimTemplate": {"spec": {"resources": {"requests": {"storage": "1Gi"}}}}}
    data["spec"]["storage"]["checkpoints"] = {
        "emptyDir": {"medium": ""},
        "retentionPolicy": {"whenDeleted": "Delete", "whenFinished": "Delete"},
    }
    data["spec"]["podDefaults"] = {"env": [{"name": "A", "value": "b"}], "imagePullSecrets": [{"name": "a"}]}
    return data


def fields() -> list[tuple[str, TypeInfo]]:
    """Return every field of the schema by a path that exists in `complete()` or can be created there."""
    first = {"modules[*].image": "modules[0].image", "modules[*].configMapRef": "modules[1].configMapRef"}
    found = []
    for path, model in objects():
        for pattern, place in first.items():
            path = path.replace(pattern, place)
        path = path.replace("[*]", "[0]")
        if path.startswith(("spec.storage.cache.emptyDir", "spec.storage.checkpoints.claimTemplate")):
            continue  # the same classes as the other volume's
        found += [
            (join_path(path, field.alias or name), field_type_info(field)) for name, field in model.model_fields.items()
        ]
    return found


def wrong_values(info: TypeInfo) -> list[object]:
    """Return values that no field of this type takes."""
    if info.model is not None or info.kind is dict:
        return [5, "text", [1]]
    if info.kind is tuple:
        return [5, "text", {"a": 1}]
    if info.kind is bool:
        return [1, "true", []]
    if info.kind in (int, float):
        return ["5", True, [1], -1, 10**12 * 10**5]
    if info.kind in (Literal, Union):
        return ["no-such-choice", True, {}, 0]
    return [True, [], {}, 1.5, "\t", "x" * 40_000] if len(info.metadata) else [5]
