"""Denominators of the ratio, and importance weights, for a micro-batch.

For a rollout of our own the denominator is what its sampler reported. For a remote one, one of an older version of
ours, or one of another engine it is our policy when training began, and its tokens are weighted by the distance
between that and the policy that sampled it. A claim of another peer cannot be verified, so it only lowers a weight:
tokens of remote rollouts have at most 1. Shapes: B rollouts, T completion tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from swarmgame.game.author_records import LARGEST_RATIO
from swarmgame.trainer.claims import IMPROBABLE_NATS
from swarmgame.trainer.grpo.config import GRPOConfig
from swarmgame.trainer.grpo.loss import importance_weights
from swarmgame.trainer.grpo.samples import TrainingSample, moved, without_gaps
from swarmgame.trainer.own_likelihood import Floors, implausible
from swarmgame.trainer.rarity import UNLIKELY, RarityFactors, Surprise

REMOTE_CAP = 1.0
"""Largest weight of a token of another peer, whatever `importanceCap` is."""


@dataclass(frozen=True)
class Denominators:
    """Args:
    old_BT: log-probabilities.
    importance_BT: weights, [B, T] or [B, 1], 1 in rows of our own; None where all rows are.
    weighted_B: bool, which rows the weights are for; None where none is.
    improbable_B: bool, rows of other peers whose claims are too low to be true: their weight is 0. None where no row
        is weighted.
        refused_B: bool, these and rows of other peers that our own policy would hardly ever sample; likewise.
        scale_B: factor of the advantages, at most 1: 0 in refused rows, less than 1 in rows of other peers whose tokens
            surprise more than our own. None where no row is of another peer.
    """

    old_BT: Tensor
    importance_BT: Tensor | None = None
    weighted_B: Tensor | None = None
    improbable_B: Tensor | None = None
    refused_B: Tensor | None = None
    scale_B: Tensor | None = None


def denominators(
    batch: Sequence[TrainingSample],
    current_BT: Tensor,
    mask_BT: Tensor,
    options: GRPOConfig,
    floors: Floors | None = None,
    surprise: Surprise | None = None,
) -> Denominators:
    """Return what the loss compares the current log-probabilities with.

    Samples that training sees for the first time remember `current_BT` (`initial_logprobs`), and weighted ones what was
    found about them: mean weight, ratios, and whether they were refused.

    Args:
        floors: what our own policy has to give to rows of other peers; None: anything.
        surprise: how much rows of other peers count whose tokens surprise us; None: as much as any.
    """
    # One copy to the device for all samples; padding keeps what `current_BT` has there.
    own = _rectangle([sample.sampler_logprobs for sample in batch], current_BT, mask_BT)
    weighted = [index for index, sample in enumerate(batch) if sample.sampler_logprobs is None]
    if not weighted:
        return Denominators(own)
    started = current_BT.clone()
    rows = current_BT.clone().unbind()  # one operation for all rows, here and below: a step's time is operations
    for index in weighted:
        sample, length = batch[index], len(batch[index].completion)
        if sample.initial_logprobs is None:
            sample.initial_logprobs = rows[index][:length]
        else:
            started[index, :length] = sample.initial_logprobs
    is_weighted = moved([sample.sampler_logprobs is None for sample in batch], torch.bool, current_BT.device)
    old = torch.where(is_weighted.unsqueeze(1), started, own)
    given = [s.behavior_logprobs if s.sampler_logprobs is None else s.sampler_logprobs for s in batch]
    behavior = _rectangle(given, old, mask_BT)
    importance = importance_weights(old, behavior, mask_BT, options)
    lengths = mask_BT.sum(dim=1).clamp(min=1)
    if not any(sample.remote for sample in batch):
        weights = ((importance * mask_BT).sum(dim=1) / lengths).unbind()
        for index in weighted:
            batch[index].weight = weights[index]
        none = torch.zeros_like(is_weighted)
        return Denominators(old, importance, is_weighted, none, none)
    remote = moved([sample.remote for sample in batch], torch.bool, current_BT.device)
    improbable = torch.zeros_like(remote)
    if filters_none(options):
        improbable = remote & (((old - behavior) * mask_BT).sum(dim=1) > IMPROBABLE_NATS)
    unlikely = torch.zeros_like(remote)
    if floors is not None:  # their windows are over consecutive ids of the policy
        unlikely = remote & implausible(*without_gaps(batch, old, mask_BT), floors)
    refused = improbable | unlikely
    importance = torch.where(remote.unsqueeze(1), importance.clamp(max=REMOTE_CAP), importance)
    importance = importance.masked_fill(refused.unsqueeze(1), 0.0)
    scale = (~refused).to(importance.dtype)
    weights_B = (importance * mask_BT).sum(dim=1) / lengths
    if surprise is not None:
        surprises = (importance * (1 - old.exp()) * mask_BT).sum(dim=1) / lengths
        bounded = (surprise.mean / surprises.clamp(min=1e-9)).clamp(max=1.0)
        scale = torch.where(remote, scale * bounded, scale)
    offered = scale * weights_B
    if surprise is not None and surprise.rarity is not None:
        scale = torch.where(remote, scale * _rarity_factors(batch, old, mask_BT, surprise.rarity), scale)
    means = scale * weights_B
    ratios = ((old - behavior).clamp(max=math.log(LARGEST_RATIO)).exp() * mask_BT).sum(dim=1)
    found = [column.unbind() for column in (means, ratios, improbable, unlikely, offered)]
    for index in weighted:
        sample = batch[index]
        sample.weight, sample.ratios, sample.improbable, sample.implausible, sample.offered = (
            column[index] for column in found
        )
    return Denominators(old, importance, is_weighted, improbable, refused, scale)


def _rarity_factors(
    batch: Sequence[TrainingSample], logprobs_BT: Tensor, mask_BT: Tensor, rarity: RarityFactors
) -> Tensor:
    """Return the factor of each rollout, [B]: that of its least likely token, and the least of its unlikely ones."""
    dtype, device = logprobs_BT.dtype, logprobs_BT.device
    levels, factors = moved(rarity.levels, dtype, device), moved(rarity.factors, dtype, device)
    found_B = factors[torch.searchsorted(levels, logprobs_BT.masked_fill(~mask_BT, 0.0).amin(dim=1))]
    if not rarity.tokens:
        return found_B
    ones_BT = torch.ones_like(logprobs_BT)
    of_ids = [[rarity.tokens.get(token, 1.0) for token in sample.completion] for sample in batch]
    tokens_BT = _rectangle(of_ids, ones_BT, mask_BT)
    return torch.minimum(found_B, torch.where(logprobs_BT < UNLIKELY, tokens_BT, ones_BT).amin(dim=1))


def filters_none(options: GRPOConfig) -> bool:
    """Return whether tokens are sampled from all of the distribution.

    Claims are probabilities before top-k and top-p, so with these filters the mean of p(ours) / p(claimed) exceeds 1.
    """
    return not options.top_k and options.top_p >= 1


def _rectangle(given: Sequence[Sequence[float] | None], otherwise_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Return one row per rollout: the given numbers, or `otherwise_BT` on padding and where none are given."""
    values = np.zeros(tuple(otherwise_BT.shape), dtype=np.float32)
    for row, numbers in zip(values, given, strict=True):
        if numbers is not None:
            row[: len(numbers)] = numbers
    known = moved([numbers is not None for numbers in given], torch.bool, otherwise_BT.device).unsqueeze(1)
    return torch.where(known & mask_BT, moved(values, otherwise_BT.dtype, otherwise_BT.device), otherwise_BT)
