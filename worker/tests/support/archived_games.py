"""Games that are archived: a peer with toy components, and another one whose contributions are scripted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scripted_game import TWO, Scripted, manager, remote
from toys import ToyData, ToyTrainer

from swarmgame import Contribution, GameState, Group, GroupKey, Message, Prompt, Rewards, Round, RoundReport
from swarmgame.archive.rows import RoundRecord, StageRecord
from swarmgame.archive.writer import RolloutArchive
from swarmgame.game.components import RolloutUse
from swarmgame.game.external_sampling import ExternalSamplingPolicy
from swarmgame.game.manager import Progression
from swarmgame.game.packed_numbers import PackedNumbers
from swarmgame.game.protocol import ClosedBy, Collected, Origin
from swarmgame.game.report import Observer
from swarmgame.game.verification import VerifiedRollouts
from swarmgame.observability.metrics_file import MetricsFile
from swarmgame.observability.run_directory import PeerDirectory
from swarmgame.runtime.checkpoint import CheckpointStore
from swarmgame.runtime.weights import weights_hash
from swarmgame.swarm.identity import Identity
from swarmgame.swarm.messages import make_outbound, parse_index
from swarmgame_api.manifest import SwarmGame

RUN = "toys-5"
FACTS = {"run": RUN, "peer": "me", "folder": ".", "threads": 1, "processes": 1, "device": "cpu"}

MANIFEST: dict[str, Any] = {
    "apiVersion": "swarmgame.dev/v1alpha1",
    "kind": "SwarmGame",
    "metadata": {"name": "toys"},
    "spec": {
        "game": {
            "maxRounds": 6,
            "seed": 5,
            "data": {"use": "toys:ToyData"},
            "rewards": {"use": "toys:ToyRewards"},
            "trainer": {"use": "toys:ToyTrainer"},
            "sharing": {"externalGroups": 8},
        }
    },
}
"""The manifest of `play`'s game."""


def toy_manifest() -> SwarmGame:
    return SwarmGame.model_validate(MANIFEST)


class Saving(Observer):
    """Saves a checkpoint every two rounds."""

    def __init__(self, store: CheckpointStore, trainer: ToyTrainer) -> None:
        self._store, self._trainer = store, trainer

    def round_finished(self, report: RoundReport, state: GameState, rewards: Rewards) -> None:
        if report.round % 2 == 1:
            self._store.save(report.round + 1, {"trainer": self._trainer.state_dict(), "data": {}})


def play(
    root: Path,
    *,
    rounds: int = 6,
    first_round: int = 0,
    trainer: ToyTrainer | None = None,
    others: Callable[[Contribution], Sequence[Contribution]] = lambda own: [remote("other", own.round)],
    max_bytes: int = 10_000_000,
    **changes: Any,
) -> RolloutArchive:
    """Play rounds of a toy game with a second peer, and keep metrics, archive and checkpoints under `root`."""
    import torch

    directory, trainer = PeerDirectory(root), trainer or ToyTrainer()
    root.mkdir(parents=True, exist_ok=True)
    archive = RolloutArchive(
        directory.rollouts,
        max_bytes=max_bytes,
        first_round=first_round,
        facts={**FACTS, "folder": str(root), "versions": {"torch": torch.__version__}},
        last_update=trainer.last_update,
    )
    observers: list[Observer] = [
        MetricsFile(directory.metrics, index=0, first_round=first_round),
        archive,
        Saving(CheckpointStore(root / "checkpoints", keep=2), trainer),
    ]
    progression = Progression(max_rounds=rounds, seed=5, sharing=ExternalSamplingPolicy(external_groups=8), **changes)
    game, _, _ = manager(
        Scripted(others, members=TWO),
        progression,
        trainer=trainer,
        data=ToyData(),
        observers=observers,
        weights_hash=lambda: weights_hash(trainer),
    )
    game.run(first_round)
    archive.close()
    return archive


# ── one round, made by hand


def packed(contribution: Contribution) -> Contribution:
    """Return a contribution as it is after decoding: numbers are read-only views of a message."""

    def view(numbers: Sequence[Any], kind: str) -> PackedNumbers[Any]:
        values = np.asarray(numbers, dtype=kind)
        values.flags.writeable = False
        return PackedNumbers(values)

    groups = tuple(
        replace(
            group,
            rollouts=tuple(
                replace(r, token_ids=view(r.token_ids, "<u4"), logprobs=view(r.logprobs, "<f2")) for r in group.rollouts
            ),
        )
        for group in contribution.groups
    )
    return replace(contribution, groups=groups)


def signed(identity: Identity, contribution: Contribution, *, run: str = RUN) -> Origin:
    """Return the origin of a contribution that its author has signed; several shards."""
    outbound = make_outbound(contribution, (), run=run, sign=identity.sign, now=1_000.0, shard_bytes=600)
    announcement = outbound.announcement
    assert len(outbound.shards) > 1
    return Origin(
        announcement=announcement.message,
        index=b"" if announcement.index else outbound.index,
        shards=tuple(entry.name for entry in parse_index(outbound.index)),
        groups=tuple(entry.groups for entry in parse_index(outbound.index)),
    )


def record(
    own: Contribution,
    received: Sequence[Contribution],
    *,
    reasons: Sequence[dict[str, str]] = (),
    origins: Sequence[Origin] = (),
    external: Sequence[GroupKey] = (),
    rewards: Rewards | None = None,
    uses: dict[GroupKey, list[RolloutUse]] | None = None,
) -> RoundRecord:
    """Return the record of a round of one stage."""
    members = tuple(sorted([own.peer, *(c.peer for c in received)]))
    roles = {own.peer: "solver", **{c.peer: "critic" for c in received}}
    round = Round(own.round, 1, 2, 1, own.peer, members, roles=roles)
    state = GameState.begin(round).with_contribution(own).with_external(external)
    reasons = reasons or [{} for _ in received]
    collected = Collected(tuple(received), round.members, (), ClosedBy.QUORUM, origins=tuple(origins))
    verified = VerifiedRollouts(state, frozenset(external), {}, tuple(reasons))
    return RoundRecord(state, rewards or {}, (StageRecord(collected, verified),), uses)


def with_text(contribution: Contribution, text: str) -> Contribution:
    """Return a contribution whose first rollout and first prompt have another text."""
    first, *rest = contribution.groups
    rollouts = (replace(first.rollouts[0], text=text), *first.rollouts[1:])
    prompt = Prompt(first.question_id, (Message("user", text),), first.prompt.token_ids)
    return replace(contribution, groups=(Group(prompt, rollouts), *rest))
