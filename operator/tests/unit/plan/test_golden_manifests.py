"""What a game becomes, written out: one file a kind of game, for a person to review.

`pytest operator/tests/unit/plan/test_golden_manifests.py --update-golden` writes them anew.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from plan_fixtures import DEFAULTS, EMPTY, apply_plan, valid_game, with_status

from swarmgame_api.resource import GameResource
from swarmgame_operator.plan import build_plan
from swarmgame_operator.snapshot import DryRunFacts, JobCondition, Observed

GOLDEN = Path(__file__).parents[2] / "golden"
ROOT = Path(__file__).parents[4]

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
AROUND = Observed(
    EMPTY.now, secrets=SECRETS, config_maps={"patches": frozenset({"fix.py"})}, claims=frozenset({"hf-cache"})
)


class _Readable(yaml.SafeDumper):
    """Texts of several lines as such, and nothing by reference."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Readable.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def quickstart() -> GameResource:
    manifest = yaml.safe_load((ROOT / "examples/01-quickstart/game.yaml").read_text())
    return valid_game(manifest["spec"], name="quickstart")


GAMES: dict[str, GameResource] = {
    "quickstart": quickstart(),
    "gpu-hub-claims-modules": valid_game(GPU),
    "generation-by-vllm": valid_game(VLLM),
    "dev-chain": valid_game({"coordination": {"mode": "Dev"}}),
    "external-isolated-nodeport": valid_game(EXTERNAL),
    "suspended": valid_game({"suspend": True}),
    "two-ranks": valid_game({"peers": {"replicas": 2, "processesPerPeer": 2, "resources": {"requests": {"cpu": "2"}}}}),
    "queued": valid_game(
        {"networkPolicy": {"mode": "None"}},
        labels={"kueue.x-k8s.io/queue-name": "research"},
        annotations={"kueue.x-k8s.io/elastic-job": "true"},
    ),
    "closed-world": valid_game(
        {"communication": {"backend": "TorchDistributed"}, "peers": {"replicas": 3, "minReplicas": 3}}
    ),
    "without-a-bootnode": valid_game(
        {
            "model": None,
            "bootnode": {"enabled": False},
            "communication": {"initialPeers": [f"/ip4/192.0.2.1/tcp/31000/p2p/16Uiu2HAm{'2' * 44}"]},
        }
    ),
}


def everything_written(resource: GameResource) -> list[dict[str, Any]]:
    """All that the plans of a new game write, until they come to rest; the initializer succeeds at once. Keys without
    their bytes.
    """
    observed, written = AROUND, []
    for _ in range(10):
        found = build_plan(resource, observed, DEFAULTS)
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
    raise AssertionError("the plan does not come to rest")


@pytest.mark.parametrize("name", GAMES)
def test_a_game_becomes_what_was_reviewed(name: str, request: pytest.FixtureRequest) -> None:
    text = yaml.dump_all(
        everything_written(GAMES[name]), Dumper=_Readable, sort_keys=False, width=120, allow_unicode=True
    )
    golden = GOLDEN / f"{name}.yaml"
    if request.config.getoption("--update-golden", default=False):
        golden.write_text(text, encoding="utf-8")
    assert golden.exists(), "no golden file; run with --update-golden and review it"
    assert text == golden.read_text(encoding="utf-8")


def test_every_golden_file_has_its_game() -> None:
    assert {path.stem for path in GOLDEN.glob("*.yaml")} == set(GAMES)
