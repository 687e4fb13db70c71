"""The entropy below which no token of an update is trained on (`topEntropyQuantile`): a pass over its samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from swarmgame.game.ranks import Ranks
from swarmgame.trainer.grpo.config import GRPOConfig
from swarmgame.trainer.grpo.loss import Normalizer, entropy_threshold
from swarmgame.trainer.grpo.policy import Policy
from swarmgame.trainer.grpo.samples import TrainingSample, moved, trained_mask
from swarmgame.trainer.grpo.step_stats import over_ranks


def with_entropy_threshold(
    normalizer: Normalizer,
    batches: Sequence[Sequence[TrainingSample]],
    policy: Policy,
    options: GRPOConfig,
    ranks: Ranks,
    *,
    empty_passes: int,
) -> Normalizer:
    """Return the normalizer with the update's threshold. A collective call.

    Args:
        batches: micro-batches of this rank.
        empty_passes: to take part in those of the other ranks of a sharded policy.
    """
    found = []
    with torch.no_grad():
        for batch in batches:
            _, entropies, mask = policy.score(
                [sample.prompt for sample in batch], [sample.completion for sample in batch]
            )
            # Of our own rollouts: tokens of others must not decide which of these are trained on.
            own = moved([[not sample.remote] for sample in batch], torch.bool, mask.device)
            found.append(entropies[trained_mask(batch, mask) & own].float().cpu())
        for _ in range(empty_passes):
            policy.empty_pass(backward=False)
    every = over_ranks(torch.cat(found) if found else torch.zeros(0), ranks)
    threshold = entropy_threshold(every, options) if every.numel() else -math.inf
    return replace(normalizer, entropy_threshold=threshold)
