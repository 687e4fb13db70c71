"""Uses: what an update made of every rollout, for the archive, and of every other peer, for its record.

Each rank knows what training found about its own share of the samples only, so that is gathered. A tensor is moved from
the device once for each update.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import msgpack
import torch

from swarmgame.game.author_records import RemoteUse
from swarmgame.game.components import RolloutUse
from swarmgame.game.ranks import Ranks
from swarmgame.game.state import GroupKey, PeerId
from swarmgame.trainer.grpo.batch import TrainingBatch
from swarmgame.trainer.grpo.config import GRPOConfig
from swarmgame.trainer.grpo.denominators import filters_none
from swarmgame.trainer.grpo.remote_bounds import signal
from swarmgame.trainer.grpo.samples import TrainingSample
from swarmgame.trainer.rarity import RatedRollout


class _Found(NamedTuple):
    """What training found about a sample: see `TrainingSample`."""

    weight: float = 1.0
    ratios: float = 0.0
    improbable: float = 0.0
    implausible: float = 0.0
    offered: float = 0.0
    initial_logprobs: Sequence[float] = ()


@dataclass(frozen=True)
class UpdateUses:
    """How the updates of a round used rollouts.

    Args:
        rollouts: one entry for each rollout of the groups that were scored.
        peers: by author, of other peers whose rollouts were in an update.
        offered: of each update, the rollouts of other peers, with the weights that they would have if rare ones were
            not bounded.
    """

    rollouts: Mapping[GroupKey, Sequence[RolloutUse]] = field(default_factory=dict)
    peers: Mapping[PeerId, RemoteUse] = field(default_factory=dict)
    offered: Sequence[Sequence[RatedRollout]] = ()

    @property
    def remote_influence(self) -> float:
        """The share of all other peers together."""
        return sum(use.influence for use in self.peers.values())


def uses_of(updates: Sequence[TrainingBatch], options: GRPOConfig, ranks: Ranks) -> UpdateUses:
    """Return how finished updates used their rollouts. A collective call."""
    samples = [sample for update in updates for sample in update.samples]
    found = _gathered(samples, ranks)
    weights = {
        (sample.group, sample.position): each.weight * sample.influence
        for sample, each in zip(samples, found, strict=True)
    }
    rollouts = {
        key: [RolloutUse(value, weights.get((key, position), 0.0)) for position, value in enumerate(values)]
        for update in updates
        for key, values in update.advantages.items()
    }
    seen = iter(zip(samples, found, strict=True))
    offered = [
        [
            RatedRollout.of(
                sample.sampled_ids, sample.of_policy(each.initial_logprobs), signal(sample, options), each.offered
            )
            for sample, each in islice(seen, len(update.samples))
            if sample.remote and sample.sampled_ids and len(each.initial_logprobs) == len(sample.completion)
        ]
        for update in updates
    ]
    return UpdateUses(rollouts, _peers(samples, found, options), offered)


def _peers(samples: Sequence[TrainingSample], found: Sequence[_Found], options: GRPOConfig) -> dict[PeerId, RemoteUse]:
    total = 0.0
    signals: defaultdict[PeerId, float] = defaultdict(float)
    ratios: defaultdict[PeerId, float] = defaultdict(float)
    tokens: Counter[PeerId] = Counter()
    refused: defaultdict[PeerId, Counter[str]] = defaultdict(Counter)
    for sample, each in zip(samples, found, strict=True):
        part = signal(sample, options) * each.weight
        total += part
        if not sample.remote or sample.group is None:
            continue
        author = sample.group.peer
        signals[author] += part
        if sample.behavior_logprobs is not None and filters_none(options):
            tokens[author] += sample.tokens_trained
            ratios[author] += each.ratios
        refused[author].update({"improbable": int(each.improbable), "implausible": int(each.implausible)})
    return {
        author: RemoteUse(
            influence=part / total if total else 0.0,
            tokens=tokens[author],
            ratios=ratios[author],
            refused={reason: count for reason, count in refused[author].items() if count},
        )
        for author, part in sorted(signals.items())
    }


_MEASURED = tuple(name for name in _Found._fields if name != "initial_logprobs")


def _numbers(values: Sequence[float | torch.Tensor]) -> list[float]:
    """Return numbers, those of a device copied at once; 0 for one that is not a number."""
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    if not tensors:
        return [float(value) for value in values]
    devices = {value.device for value in tensors}
    if len(tensors) < len(values) or len(devices) > 1:  # a rollout that was left out has numbers of the processor
        device = next((each for each in devices if each.type != "cpu"), torch.device("cpu"))
        tensors = [torch.as_tensor(value).to(device, torch.float64) for value in values]
    found: list[float] = torch.stack(tensors).double().nan_to_num(nan=0.0).tolist()
    return found


def _rows(tensors: Sequence[torch.Tensor]) -> list[list[float]]:
    """Return the numbers of each tensor, all copied from the device at once."""
    numbers = iter(torch.cat(list(tensors)).double().nan_to_num(nan=0.0).tolist() if tensors else [])
    return [list(islice(numbers, len(each))) for each in tensors]


def _gathered(samples: Sequence[TrainingSample], ranks: Ranks) -> list[_Found]:
    """Return what was found about each sample. A tensor is what this rank has computed; our own have weight 1."""
    found = [_Found()] * len(samples)
    measured = [at for at, sample in enumerate(samples) if isinstance(sample.weight, torch.Tensor)]
    columns = [_numbers([getattr(samples[at], name) for at in measured]) for name in _MEASURED]
    # A rollout that was left out for numbers that are not finite has none.
    rows = iter(_rows([each for at in measured if (each := samples[at].initial_logprobs) is not None]))
    initial = [[] if samples[at].initial_logprobs is None else next(rows) for at in measured]
    own = list(zip(measured, *columns, initial, strict=True))
    if ranks.size > 1:
        own = [row for part in ranks.gather(msgpack.packb(own)) for row in msgpack.unpackb(part)]
    for at, *values in own:
        found[at] = _Found(*values)
    return found
