"""Games of every kind and the manifests that their plans write, for the golden files and the tests of all pods.

All games but the one with GPUs are the quickstart with other settings, so that their golden files can be differences.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from plan_fixtures import DEFAULTS, EMPTY, apply_plan, valid_game, with_status

from swarmgame_api.resource import GameResource
from swarmgame_operator.defaults import Defaults
from swarmgame_operator.plan import build_plan
from swarmgame_operator.plan.game_context import INTENT_HASH
from swarmgame_operator.snapshot import DryRunFacts, JobCondition, Observed

ROOT = Path(__file__).parents[3]
QUICKSTART: dict[str, Any] = yaml.safe_load((ROOT / "examples/01-quickstart/game.yaml").read_text())["spec"]
ABSENT = "(absent)"
"""Stands in a difference for a field that the quickstart has and the game has not."""

GPU: dict[str, Any] = {
    "game": {
        "maxRounds": 500,
        "stages": 3,
        "data": {"use": "my_game.data:Riddles"},
        "rewards": {"use": "my_game.rewards:Judge"},
        "trainer": {"use": "grpo"},
        "modules": [
            {
                "name": "my-game",
                "image": {"reference": "example.dev/my-game@sha256:" + "0" * 64},
                "mountPath": "/modules/my-game",
            },
            {"name": "patches", "configMapRef": {"name": "patches"}, "mountPath": "/modules/patches"},
        ],
    },
    "model": {"uri": "hf://Qwen/Qwen2.5-0.5B-Instruct", "revision": "main", "secretRef": {"name": "hf-token"}},
    "peers": {
        "replicas": 8,
        "minReplicas": 4,
        "maxReplicas": 16,
        "image": "example.dev/team/worker:2",
        "resources": {"limits": {"nvidia.com/gpu": "1", "memory": "32Gi"}, "requests": {"cpu": "8"}},
        "env": [{"name": "NCCL_DEBUG", "value": "WARN"}],
        "podTemplate": {
            "metadata": {"annotations": {"example.dev/team": "research"}},
            "spec": {
                "runtimeClassName": "nvidia",
                "nodeSelector": {"example.dev/gpu": "h100"},
                "containers": [{"name": "peer", "env": [{"name": "EXTRA", "value": "1"}]}],
            },
        },
    },
    "storage": {
        "cache": {"claimName": "hf-cache"},
        "checkpoints": {
            "claimTemplate": {
                "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "200Gi"}}}
            },
            "everyRounds": 10,
        },
        "sharedMemory": "16Gi",
    },
    "terminationGracePeriodSeconds": 300,
}
EXTERNAL: dict[str, Any] = {
    "communication": {"admission": "Registered", "port": 32000},
    "coordination": {
        "mode": "External",
        "chainId": 11155111,
        "contractAddress": "0x" + "ab" * 20,
        "rpcSecretRef": {"name": "chain"},
        "walletSecretRef": {"name": "wallet"},
        "confirmations": 4,
    },
    "bootnode": {"expose": "NodePort"},
    "completion": {"policy": "Coordinator"},
    "identity": {"retentionPolicy": "Delete"},
}
VLLM: dict[str, Any] = {
    "game": {
        "maxRounds": 500,
        "data": {"use": "reasoning-gym"},
        "rewards": {"use": "reasoning-gym"},
        "trainer": {
            "use": "grpo",
            "with": {
                "generations": 16,
                "lora": {"rank": 20},
                "sampler": {
                    "engine": "vllm",
                    "gpuMemoryUtilization": 0.9,
                    "maxModelLen": 8192,
                    "arguments": ["--enforce-eager"],
                    "startupSeconds": 900,
                    "resources": {"limits": {"nvidia.com/gpu": "1", "memory": "24Gi"}, "requests": {"cpu": "4"}},
                },
            },
        },
    },
    "model": {"uri": "hf://Qwen/Qwen2.5-0.5B-Instruct", "revision": "main"},
    "peers": {"replicas": 2, "resources": {"limits": {"nvidia.com/gpu": "1", "memory": "32Gi"}}},
}
SECRETS = {"hf-token": frozenset({"token"}), "chain": frozenset({"url"}), "wallet": frozenset({"key"})}
EXISTING = Observed(
    EMPTY.now, secrets=SECRETS, config_maps={"patches": frozenset({"fix.py"})}, claims=frozenset({"hf-cache"})
)


def quickstart(spec: dict[str, Any] | None = None, **metadata: Any) -> GameResource:
    """Return the quickstart, with blocks of its spec replaced."""
    return valid_game({**QUICKSTART, **(spec or {})}, name="quickstart", **metadata)


GAMES: dict[str, GameResource] = {
    "quickstart": quickstart(),
    "gpu-hub-claims-modules": valid_game(GPU),
    "generation-by-vllm": quickstart(VLLM),
    "dev-chain": quickstart({"coordination": {"mode": "Dev"}}),
    "external-isolated-nodeport": quickstart(EXTERNAL),
    "suspended": quickstart({"suspend": True}),
    "two-ranks": quickstart({"peers": {"replicas": 2, "processesPerPeer": 2, "resources": {"requests": {"cpu": "2"}}}}),
    "queued": quickstart(
        {"networkPolicy": {"mode": "None"}},
        labels={"kueue.x-k8s.io/queue-name": "research"},
        annotations={"kueue.x-k8s.io/elastic-job": "true"},
    ),
    "closed-swarm": quickstart(
        {"communication": {"backend": "TorchDistributed"}, "peers": {"replicas": 3, "minReplicas": 3}}
    ),
    "pod-defaults": quickstart(
        {
            "podDefaults": {
                "labels": {"team": "research"},
                "annotations": {"mesh.example/inject": "false"},
                "nodeSelector": {"pool": "games"},
                "tolerations": [{"key": "games", "operator": "Exists"}],
                "resources": {"limits": {"cpu": "2"}},
                "imagePullSecrets": [{"name": "registry"}],
                "env": [{"name": "HTTPS_PROXY", "value": "http://proxy.example:3128"}],
                "volumes": [{"name": "company-ca", "configMap": {"name": "company-ca"}}],
                "volumeMounts": [{"name": "company-ca", "mountPath": "/etc/ssl/company", "readOnly": True}],
            },
            "podTemplates": {
                "bootnode": {
                    "spec": {"containers": [{"name": "bootnode", "resources": {"limits": {"memory": "256Mi"}}}]}
                }
            },
            "peers": {"resources": {"limits": {"cpu": "8", "memory": "16Gi"}}},
        }
    ),
    "without-a-bootnode": quickstart(
        {
            "model": None,
            "bootnode": {"enabled": False},
            "communication": {"initialPeers": [f"/ip4/192.0.2.1/tcp/31000/p2p/16Uiu2HAm{'2' * 44}"]},
        }
    ),
}


def written_manifests(resource: GameResource, defaults: Defaults = DEFAULTS) -> list[dict[str, Any]]:
    """Return everything that the plans of a new game write until nothing is left to do. The initializer succeeds at
    once. Keys are without their bytes.
    """
    observed = EXISTING
    written: list[dict[str, Any]] = []
    for _ in range(10):
        found = build_plan(resource, observed, defaults)
        if found.dry_run is not None:
            observed = replace(observed, dry_run=DryRunFacts(found.dry_run.hash))
            continue
        if not (found.keys or found.children):
            return written
        assert not found.deletions
        written += [{**each.secret, "stringData": dict.fromkeys(each.missing, "made at random")} for each in found.keys]
        written += [child.create_manifest or child.apply_manifest for child in found.children]
        observed = apply_plan(observed, found, resource.name)
        if observed.initializer is not None:
            done = replace(observed.initializer, conditions=(JobCondition("Complete"),))
            observed = replace(observed, initializer=done)
        resource = with_status(resource, found.status)
    raise AssertionError("the plans do not settle")


def difference(base: list[dict[str, Any]], other: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how the second list of manifests differs from the first: added objects, removed ones, and changed fields
    by path. Intent hashes are left out, as they differ with every other field.
    """
    old, new = ({_name(each): _comparable(each) for each in manifests} for manifests in (base, other))
    changed: dict[str, Any] = {}
    for name in (name for name in new if name in old):
        fields: dict[str, Any] = {}
        _compare(old[name], new[name], "", fields)
        if fields:
            changed[name] = fields
    return {
        "removed": [name for name in old if name not in new],
        "changed": changed,
        "added": {name: manifest for name, manifest in new.items() if name not in old},
    }


def _name(manifest: Mapping[str, Any]) -> str:
    return f"{manifest['kind']} {manifest['metadata']['name']}"


def _comparable(manifest: Mapping[str, Any]) -> dict[str, Any]:
    found = copy.deepcopy(dict(manifest))
    found["metadata"].get("annotations", {}).pop(INTENT_HASH, None)
    if manifest["kind"] == "ConfigMap":
        found["data"] = {
            name: json.loads(text) if name.endswith(".yaml") else text for name, text in manifest["data"].items()
        }
    return found


def _compare(old: Any, new: Any, path: str, fields: dict[str, Any]) -> None:
    if old == new:
        return
    old_entries, new_entries = _entries(old), _entries(new)
    if old_entries is None or new_entries is None:
        fields[path] = new
        return
    for key in (*old_entries, *(key for key in new_entries if key not in old_entries)):
        below = f"{path}{key}" if key.startswith("[") or not path else f"{path}.{key}"
        if key not in new_entries:
            fields[below] = ABSENT
        elif key not in old_entries:
            fields[below] = new_entries[key]
        else:
            _compare(old_entries[key], new_entries[key], below, fields)


def _entries(value: Any) -> dict[str, Any] | None:
    """Return the entries of a mapping, or of a list of named entries; None for other values."""
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and value and all(isinstance(each, dict) and "name" in each for each in value):
        names = [each.get("mountPath", each["name"]) for each in value]
        return (
            {f"[{name}]": each for name, each in zip(names, value, strict=True)}
            if len(set(names)) == len(names)
            else None
        )
    return None
