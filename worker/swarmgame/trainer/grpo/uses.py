"""Rollout uses: the advantage and the weight of every rollout of an update, for the archive.

Each rank knows the importance weights of its own share of the samples only, so they are gathered. A tensor is moved
from the device once for each update.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgpack
import torch

from swarmgame.game.components import RolloutUse
from swarmgame.game.ranks import Ranks
from swarmgame.game.state import GroupKey
from swarmgame.trainer.grpo.batch import TrainingBatch, TrainingSample


def rollout_uses(updates: Sequence[TrainingBatch], ranks: Ranks) -> Mapping[GroupKey, Sequence[RolloutUse]]:
    """Return how finished updates used each rollout of the groups that were scored. A collective call."""
    samples = [sample for update in updates for sample in update.samples]
    weights = _weights(samples, ranks)
    trained = {(sample.group, sample.position): weight for sample, weight in zip(samples, weights, strict=True)}
    return {
        key: [RolloutUse(value, trained.get((key, position), 0.0)) for position, value in enumerate(values)]
        for update in updates
        for key, values in update.advantages.items()
    }


def _weights(samples: Sequence[TrainingSample], ranks: Ranks) -> list[float]:
    """Return the weight of each sample. A tensor is a weight that this rank has computed; the others are 1."""
    weights = [1.0] * len(samples)
    measured = {at: sample.weight for at, sample in enumerate(samples) if isinstance(sample.weight, torch.Tensor)}
    own = torch.stack(list(measured.values())).double().tolist() if measured else []
    found = [*zip(measured, own, strict=True)]
    if ranks.size > 1:
        gathered = ranks.gather(msgpack.packb(found))
        found = [(at, weight) for part in gathered for at, weight in msgpack.unpackb(part)]
    for at, weight in found:
        weights[at] = weight
    return weights
