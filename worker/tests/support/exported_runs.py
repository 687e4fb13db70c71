"""Runs on disk for tests of exports: a game with its own module, and checkpoints of real trainers, without a swarm."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from language_rounds import MODEL

from swarmgame.game.components import Trainer
from swarmgame.observability.run_directory import RunDirectory
from swarmgame.runtime.checkpoint import CheckpointStore

MODULE = '''
import torch
from torch import nn
from swarmgame import DataManager, RewardManager, Trainer


class Data(DataManager):
    def round_data(self, round): return []
    def stage_inputs(self, state, stage): return []
    def resolve(self, reference): return None


class Rewards(RewardManager):
    def rewards(self, state): return {}


class Minimal(Trainer):
    """A trainer of an author who wrote no export."""

    policy_version, tokenizer = 0, "none"

    def __init__(self, config, context):
        super().__init__(config, context)
        self.build()

    def build(self):
        self._actor, self.critic = nn.Linear(3, 2), nn.Linear(3, 1)

    def generate(self, prompts, round): return []
    def train(self, state, rewards): return {}
    def state_dict(self): return {"actor": self._actor.state_dict(), "critic": self.critic.state_dict()}

    def load_state_dict(self, state):
        self._actor.load_state_dict(state["actor"])
        self.critic.load_state_dict(state["critic"])


class NoModule(Minimal):
    def build(self): self.table = torch.zeros(3)
    def state_dict(self): return {"table": self.table}
    def load_state_dict(self, state): self.table = state["table"]


class OwnExport(NoModule):
    def export(self, folder):
        (folder / "table.txt").write_text(str(self.table.tolist()))


class WritesNothing(NoModule):
    def export(self, folder): pass
'''


def make_run(
    root: Path,
    *,
    trainer: Mapping[str, Any],
    model: str = MODEL,
    max_rounds: int = 20,
    export: Mapping[str, Any] | None = None,
) -> RunDirectory:
    """Write a run of a game `letters` with a module of its own; it has no peer yet.

    Args:
        trainer: `use` and `with`.
        model: empty for a game without a model.
    """
    source = root / "source"
    source.mkdir(parents=True)
    (source / "export_game.py").write_text(MODULE)
    run = RunDirectory(root / "runs" / "letters")
    spec: dict[str, Any] = {
        "game": {
            "maxRounds": max_rounds,
            "data": {"use": "export_game:Data"},
            "rewards": {"use": "export_game:Rewards"},
            "trainer": dict(trainer),
        }
    }
    if model:
        spec["model"] = {"uri": model, **({"export": dict(export)} if export is not None else {})}
    body = {
        "apiVersion": "swarmgame.dev/v1alpha1",
        "kind": "SwarmGame",
        "metadata": {"name": "letters"},
        "spec": spec,
    }
    run.keep_manifest(body)
    (source / "game.yaml").write_text(yaml.safe_dump(body))
    run.keep_source(source)
    return run


def add_checkpoint(run: RunDirectory, peer: int, rounds: int, trainer: Trainer, *, keep: int = 100) -> None:
    """Save a trainer as the checkpoint of a peer after that many rounds."""
    CheckpointStore(run.peer(peer).checkpoints, keep=keep).save(rounds, {"trainer": trainer.state_dict()})


def add_rounds(run: RunDirectory, peer: int, rounds: int, evaluations: Mapping[int, float]) -> None:
    """Write the lines of finished rounds, with an evaluation after some of them."""
    lines = []
    for number in range(rounds):
        reward = evaluations.get(number + 1)
        evaluation = None
        if reward is not None:
            evaluation = {"average": {"all": reward, "letters": reward}, "passed": {"all": reward / 2}, "samples": 1}
        line = {"round": number, "peer": f"16Uiu2HA{peer}", "reward": number / 10, "external": {"other": 2}}
        lines.append(json.dumps({**line, "environments": {"letters": 0.5}, "evaluation": evaluation}))
    run.peer(peer).root.mkdir(parents=True, exist_ok=True)
    run.peer(peer).metrics.write_text("".join(f"{line}\n" for line in lines))


def files_of(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, by relative name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
