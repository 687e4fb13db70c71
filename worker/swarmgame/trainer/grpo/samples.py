"""Training samples: one rollout each, with what training needs to know of it and finds out about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from swarmgame.game.state import GroupKey, Rollout

Value = TypeVar("Value")


@dataclass(slots=True)
class TrainingSample:
    """One rollout to train on.

    Args:
        prompt, completion: ids; EOS, when there was one, is the completion's last. With an environment, the completion
            has its ids too.
        trained: for each id of the completion, whether the policy sampled it; None: all of them. Log-probabilities
            are one an id of the completion, 0 where the environment wrote it.
        advantage: finite; of a remote one, scaled down to its author's share.
        truncated: whether the budget ran out.
        sampler_logprobs: of our policy in its current version, by our own sampler; None for every other sample.
        behavior_logprobs: of a different behavior policy: a remote one, as claimed, where its ids are ours too; an
            older version of ours; or ours as another engine computed them. Else None.
        initial_logprobs: of our policy when training first saw the sample; filled in then, for samples without
            `sampler_logprobs`.
        remote: whether another peer sampled it.
        lagged: an older version of our own policy sampled it (`overlap`).
        group, position: which rollout it is.
        influence: the factor by which the advantage was scaled.
        weight: mean importance weight of its tokens, once training has seen it; 1 for our own.
        ratios: sum over its tokens of p(ours) / p(claimed), cut; of remote ones with claims, once training has seen it.
        offered: the weight that it would have if rare rollouts were not bounded, likewise.
        turns: place among the policy's ids of each turn's last one, and what the environment gave for the turn.
        token_advantages, values, returns: of a critic (`critic`), one an id of the completion; None without one. The
            advantage is then the mean absolute one of its tokens.
        improbable, implausible: whether it got no weight because of its claims, or because our own policy would hardly
            ever sample it; once training has seen it.
    """

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    advantage: float
    truncated: bool
    sampler_logprobs: tuple[float, ...] | None = None
    behavior_logprobs: tuple[float, ...] | None = None
    initial_logprobs: Tensor | None = None
    remote: bool = False
    lagged: bool = False
    group: GroupKey | None = None
    position: int = 0
    influence: float = 1.0
    weight: float | Tensor = 1.0
    ratios: float | Tensor = 0.0
    offered: float | Tensor = 0.0
    improbable: bool | Tensor = False
    implausible: bool | Tensor = False
    trained: tuple[bool, ...] | None = None
    turns: tuple[tuple[int, float], ...] = ()
    token_advantages: tuple[float, ...] | None = None
    values: tuple[float, ...] | None = None
    returns: tuple[float, ...] | None = None

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.completion)

    @property
    def tokens_trained(self) -> int:
        """Ids that the policy sampled."""
        return len(self.completion) if self.trained is None else sum(self.trained)

    @property
    def sampled_ids(self) -> tuple[int, ...]:
        """Ids that the policy sampled."""
        return self.of_policy(self.completion)

    @property
    def sampled_logprobs(self) -> tuple[float, ...]:
        """Log-probabilities of the ids that the policy sampled, as it gave them; empty where there are none."""
        return self.of_policy(self.sampler_logprobs or self.behavior_logprobs or ())

    def spread(self, values: Sequence[float]) -> tuple[float, ...]:
        """Return one value an id of the completion, given those of the policy's ids in order."""
        return spread(values, self.trained)

    def of_policy(self, values: Sequence[Value]) -> tuple[Value, ...]:
        """Return the values of the ids that the policy sampled, given one for each id of the completion; or none."""
        if self.trained is None or not values:
            return tuple(values)
        return tuple(value for value, sampled in zip(values, self.trained, strict=True) if sampled)


def trained_of(rollout: Rollout) -> tuple[bool, ...] | None:
    """Return which ids of a rollout the policy sampled; None: all."""
    return rollout.trained if rollout.segments else None


def turns_of(rollout: Rollout) -> tuple[tuple[int, float], ...]:
    """Return where each turn of the policy with a reward ends, among its ids, and the reward."""
    if len(rollout.segments) < 2:  # one turn: its reward is that of the rollout
        return ()
    ends = accumulate(segment.tokens for segment in rollout.segments[::2])
    return tuple(
        (end - 1, reward) for end, reward in zip(ends, rollout.turn_rewards, strict=False) if not math.isnan(reward)
    )


def spread(logprobs: Sequence[float], trained: Sequence[bool] | None) -> tuple[float, ...]:
    """Return one log-probability an id, given those of the policy's ids in order: 0 for the environment's."""
    if trained is None:
        return tuple(logprobs)
    sampled = iter(logprobs)
    return tuple(next(sampled) if each else 0.0 for each in trained)


def rectangle(rows: Sequence[Sequence[float] | None], mask_BT: Tensor) -> Tensor:
    """Return one row a rollout, [B, T], in float32: the given numbers, 0 on padding and where none are given."""
    values = np.zeros(tuple(mask_BT.shape), dtype=np.float32)
    for row, numbers in zip(values, rows, strict=True):
        if numbers is not None:
            row[: len(numbers)] = numbers
    return moved(values, torch.float32, mask_BT.device)


def moved(values: Any, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Move numbers to a device without waiting for it."""
    made = torch.as_tensor(values, dtype=dtype)
    device = torch.device(device)
    return made.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else made.to(device)


def trained_mask(batch: Sequence[TrainingSample], mask_BT: Tensor) -> Tensor:
    """Return the mask of completions [B, T] without the ids of environments."""
    if all(sample.trained is None for sample in batch):
        return mask_BT
    kept = torch.ones(mask_BT.shape, dtype=torch.bool)
    for row, sample in zip(kept, batch, strict=True):
        if sample.trained is not None:
            row[: len(sample.trained)] = torch.tensor(sample.trained)
    return mask_BT & kept.to(mask_BT.device)


def without_gaps(batch: Sequence[TrainingSample], values_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Return values and mask [B, T] with the ids of each policy side by side, those of environments behind them."""
    if all(sample.trained is None for sample in batch):
        return values_BT, mask_BT
    order_BT = torch.argsort((~mask_BT).to(torch.uint8), dim=1, stable=True)
    return values_BT.gather(1, order_BT), mask_BT.gather(1, order_BT)


def advantages_of(batch: Sequence[TrainingSample], mask_BT: Tensor) -> Tensor:
    """Return advantages [B], or those of a critic [B, T]; of other peers scaled down to their authors' shares."""
    if any(sample.token_advantages is None for sample in batch):
        return moved([sample.advantage for sample in batch], torch.float32, mask_BT.device)
    influence_B = moved([sample.influence for sample in batch], torch.float32, mask_BT.device)
    return rectangle([sample.token_advantages for sample in batch], mask_BT) * influence_B.unsqueeze(1)
