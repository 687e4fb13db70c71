"""Losses of the GRPO family, as one pure function of tensors.

Nothing here knows of models, peers, devices or optimizers; where tensors come from is `logprobs.py`, how a batch is
cut is the trainer's. Option names are TRL's, and the same batch with the same options gives TRL's loss and gradients
(tested to 1e-5). Invariant: denominators come from a `Normalizer` that describes the complete update, so the losses of
micro-batches and ranks add up to the loss of the complete batch, and a rollout without influence (advantage zero, no
KL term) may be left out before the forward pass without changing any gradient.

Shapes: B rollouts, T completion tokens, right-padded; `mask_BT` is 1 on completion tokens, EOS included, and 0 on
padding.

Sources: GRPO arXiv 2402.03300; Dr. GRPO 2503.20783; DAPO 2503.14476; BNPO 2506.02864; CISPO 2506.13585; GSPO
2507.18071; LUSPO 2602.05261; SAPO, *soft adaptive policy optimization*, 2511.20347 (not Gensyn's swarm sampling of the
same name); VESPO 2602.10693; top-entropy tokens 2506.01939; off-policy sequence mask and unbiased KL, DeepSeek-V3.2
2512.02556.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from swarmgame.trainer.grpo.loss_options import LossOptions, LossType

__all__ = [
    "PER_ROLLOUT",
    "LossInputs",
    "LossOptions",
    "LossOutputs",
    "LossType",
    "Mean",
    "Normalizer",
    "entropy_threshold",
    "importance_weights",
    "loss",
]

_CLIPPED = frozenset({"grpo", "gspo", "bnpo", "dr_grpo", "dapo", "luspo"})
PER_ROLLOUT = frozenset({"grpo", "gspo", "sapo"})
"""Losses that are a mean over rollouts; the others add up tokens."""
_VESPO_FLOOR, _VESPO_CEILING = math.log(1e-8), 20.0


@dataclass(frozen=True)
class LossInputs:
    """A micro-batch. All floats may be of any dtype; the loss is computed in fp32 at least.

    Args:
        logprobs_BT: log-probabilities under the policy that learns, with gradient.
        old_logprobs_BT: the same ids under the policy before the update: the sampler's own for our rollouts, those
            of a forward pass at the start of training for remote rollouts. None means `logprobs_BT` itself, detached
            (a ratio of exactly 1).
        advantages_B: one a rollout, finite; or one a token, [B, T], where a value function gives them.
        mask_BT: completion tokens, EOS included.
        entropies_BT: of the policy at each position, no gradient needed; None when needed neither as a metric nor for
            the loss.
        reference_logprobs_BT: under the reference model; needed when `beta` > 0.
        truncated_B: which rollouts ran out of budget; needed for `mask_truncated_completions`.
        remote_importance_weights_BT: weights from `importance_weights`, of shape [B, T] or [B, 1]; None when all
            rollouts are our own.
        weighted_B: bool, which rollouts these weights are for; the others have weight 1. None: for all.
        own_B: bool, which rollouts the term of the reference is for: those of another policy would choose where ours is
            pulled. None: for all.
    """

    logprobs_BT: Tensor
    old_logprobs_BT: Tensor | None
    advantages_B: Tensor
    mask_BT: Tensor
    entropies_BT: Tensor | None = None
    reference_logprobs_BT: Tensor | None = None
    truncated_B: Tensor | None = None
    remote_importance_weights_BT: Tensor | None = None
    weighted_B: Tensor | None = None
    own_B: Tensor | None = None


@dataclass(frozen=True)
class Normalizer:
    """What the update holds: all micro-batches of all ranks, rollouts that were skipped included.

    Args:
        rollouts: how many.
        tokens: completion tokens that count (with `mask_truncated_completions`: of rollouts that were not truncated).
        max_completion_length: longest completion allowed; `dr_grpo` only.
        entropy_threshold: tokens below it are not trained on; None: `top_entropy_quantile` of each micro-batch, as TRL
            does.
        own_tokens: those of our own rollouts among the tokens; for a value loss (`gae`).
    """

    rollouts: int
    tokens: int
    max_completion_length: int
    entropy_threshold: float | None = None
    own_tokens: int = 0

    @classmethod
    def of(cls, inputs: LossInputs, options: LossOptions, max_completion_length: int) -> Normalizer:
        """For an update that is this one batch."""
        return cls(inputs.mask_BT.shape[0], int(effective_mask(inputs, options).sum().item()), max_completion_length)


@dataclass(frozen=True)
class Mean:
    """A mean in the making: add those of micro-batches and ranks, divide at the end."""

    total: Tensor | float
    weight: Tensor | float

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.weight + other.weight)

    @property
    def value(self) -> float:
        """NaN when nothing was counted."""
        weight = float(self.weight)
        return float(self.total) / weight if weight > 0 else math.nan


@dataclass(frozen=True)
class LossOutputs:
    """Args:
    loss: scalar with gradient; the sum over micro-batches and ranks is the update's loss.
    metrics: by name, each to be added up: entropy, kl (to the reference), mismatch_kl (sampler to trainer), clip_low,
    clip_high, clip,
        ratio, importance (of the weighted rollouts), truncated, zero_advantage, off_policy.
    """

    loss: Tensor
    metrics: Mapping[str, Mean]


def importance_weights(
    initial_logprobs_BT: Tensor, behavior_logprobs_BT: Tensor, mask_BT: Tensor, options: LossOptions
) -> Tensor:
    """Return the weights of another policy's rollouts: p(ours) / p(theirs), truncated or masked at both bounds.

    Args:
        initial_logprobs_BT: under our policy at the start of training, without gradient.
        behavior_logprobs_BT: as the sender claims; a value that is not finite gives weight 0 to its token (or
            rollout).

    Returns:
        Weights [B, T], or [B, 1] in the sequence modes; without gradient. Exactly 1 where both agree.
    """
    mask = mask_BT.bool()
    difference = (_wide(initial_logprobs_BT.detach()) - _wide(behavior_logprobs_BT.detach())).masked_fill(~mask, 0.0)
    # A sender that claims invalid numbers must lose influence, never gain it.
    difference = torch.where(torch.isfinite(difference), difference, -math.inf)
    if options.importance_mode.startswith("sequence"):
        difference = difference.sum(-1, keepdim=True)
    weights, impossible = difference.exp(), difference == -math.inf
    if options.importance_mode.endswith("truncate"):
        if options.importance_floor is not None or options.importance_cap is not None:
            weights = weights.clamp(min=options.importance_floor, max=options.importance_cap)
    else:
        floor, cap = (
            options.importance_floor or 0.0,
            math.inf if options.importance_cap is None else options.importance_cap,
        )
        weights = weights.masked_fill((weights < floor) | (weights > cap), 0.0)
    return weights.masked_fill(impossible, 0.0)


def entropy_threshold(entropies_N: Tensor, options: LossOptions) -> float:
    """The entropy below which tokens are not trained on, given the entropies of all completion tokens of an update."""
    return (
        float(torch.quantile(entropies_N.float(), 1 - options.top_entropy_quantile))
        if entropies_N.numel()
        else math.inf
    )


def loss(inputs: LossInputs, options: LossOptions, normalizer: Normalizer) -> LossOutputs:
    """The loss of one micro-batch, to be added to those of the others.

    Raises:
        ValueError: the options need an input that is missing.
    """
    mask = effective_mask(inputs, options)
    kept = mask.bool()
    # Padding may hold anything: made zero here, so that 0 · inf never becomes NaN.
    new = _wide(inputs.logprobs_BT).masked_fill(~kept, 0.0)
    old = new.detach() if inputs.old_logprobs_BT is None else _wide(inputs.old_logprobs_BT).masked_fill(~kept, 0.0)
    advantages = _wide(inputs.advantages_B)
    by_rollout = advantages.dim() == 1
    advantages = advantages.unsqueeze(1) if by_rollout else advantages.masked_fill(~kept, 0.0)
    log_ratio = new - old
    lengths = mask.sum(-1)
    ratio = log_ratio.exp()
    if options.ratio_level == "sequence":
        ratio = ((log_ratio * mask).sum(-1) / lengths.clamp(min=1.0)).unsqueeze(-1).exp()

    objective, metrics = _policy_term(inputs, options, new, log_ratio, ratio, advantages, mask)

    if options.off_policy_mask_threshold is not None:
        drift = -(log_ratio.detach() * mask).sum(-1, keepdim=True) / lengths.unsqueeze(1).clamp(min=1.0)
        keep = (advantages >= 0) | (drift <= options.off_policy_mask_threshold)
        objective = objective * keep
        metrics["off_policy"] = _mean((~keep).float(), mask, by_rollout=True)
    if options.needs_entropies:
        objective = objective * _high_entropy(inputs.entropies_BT, kept, options, normalizer)
    if inputs.remote_importance_weights_BT is not None:
        if options.loss_type != "vespo":
            objective = objective * inputs.remote_importance_weights_BT
        # Over the weighted rollouts alone: the mean must not depend on which others share their micro-batch.
        metrics["importance"] = _mean(
            _wide(inputs.remote_importance_weights_BT),
            mask,
            by_rollout=options.importance_mode.startswith("sequence"),
            rows_B=inputs.weighted_B,
        )
    if options.beta > 0:
        if inputs.reference_logprobs_BT is None:
            raise ValueError("beta > 0 needs the reference model's log-probabilities")
        behind = _wide(inputs.reference_logprobs_BT).masked_fill(~kept, 0.0) - new
        kl = behind.exp() - behind - 1
        if inputs.own_B is not None:
            kl = kl.masked_fill(~inputs.own_B.unsqueeze(1), 0.0)
        if options.use_bias_correction_kl:
            kl = kl * ratio
        objective = objective + options.beta * kl
        # Over our own alone: the number of other peers' tokens must not move it.
        metrics["kl"] = _mean(kl, mask, rows_B=inputs.own_B)

    if inputs.entropies_BT is not None:
        metrics["entropy"] = _mean(_wide(inputs.entropies_BT).masked_fill(~kept, 0.0), mask)
    drift_BT = log_ratio.detach()
    metrics["mismatch_kl"] = _mean(drift_BT.exp() - drift_BT - 1, mask)
    metrics["zero_advantage"] = _mean((advantages == 0).float(), mask, by_rollout=by_rollout)
    if inputs.truncated_B is not None:
        metrics["truncated"] = _mean(inputs.truncated_B.float().unsqueeze(1), mask, by_rollout=True)
    return LossOutputs(_aggregate(objective, mask, options, normalizer), metrics)


def _policy_term(
    inputs: LossInputs,
    options: LossOptions,
    new: Tensor,
    log_ratio: Tensor,
    ratio: Tensor,
    advantages: Tensor,
    mask: Tensor,
) -> tuple[Tensor, dict[str, Mean]]:
    """What is minimised at each token, before masks and weights; [B, T], or [B, 1] where the ratio is per rollout."""
    mean = partial(_mean, mask=mask, by_rollout=options.ratio_level == "sequence")
    metrics = {"ratio": mean(ratio)}
    if options.loss_type in _CLIPPED:
        bounded = ratio if options.delta is None else ratio.clamp(max=options.delta)
        clipped = ratio.clamp(1 - options.epsilon, 1 + options.upper)
        low = (ratio < 1 - options.epsilon) & (advantages < 0)
        high = (ratio > 1 + options.upper) & (advantages > 0)
        metrics |= {
            "clip_low": mean(low.float()),
            "clip_high": mean(high.float()),
            "clip": mean((low | high).float()),
        }
        return -torch.min(bounded * advantages, clipped * advantages), metrics
    if options.loss_type == "cispo":
        high = (ratio > options.upper) & (advantages > 0)
        metrics |= {"clip_high": mean(high.float()), "clip": mean(high.float())}
        return -ratio.clamp(max=options.upper).detach() * advantages * new, metrics
    if options.loss_type == "sapo":
        temperatures = torch.where(advantages > 0, options.sapo_temperature_pos, options.sapo_temperature_neg)
        return -torch.sigmoid(temperatures * (ratio - 1)) * 4 / temperatures * advantages, metrics
    return -_vespo_weights(inputs, options, log_ratio, advantages, mask) * advantages * new, metrics


@torch.no_grad()
def _vespo_weights(
    inputs: LossInputs, options: LossOptions, log_ratio: Tensor, advantages: Tensor, mask: Tensor
) -> Tensor:
    """exp(λ) · w^k · exp(-λw) with w the rollout's ratio, in log space; 1 at w = 1."""
    log_w = (log_ratio.clamp(-20.0, 20.0) * mask).sum(-1, keepdim=True)
    if inputs.remote_importance_weights_BT is not None:
        log_w = log_w + (
            _wide(inputs.remote_importance_weights_BT).log().clamp(_VESPO_FLOOR, _VESPO_CEILING) * mask
        ).sum(-1, keepdim=True)
    log_w = log_w.clamp(_VESPO_FLOOR, _VESPO_CEILING)
    gains = advantages >= 0
    k = torch.where(gains, options.vespo_k_pos, options.vespo_k_neg)
    decay = torch.where(gains, options.vespo_lambda_pos, options.vespo_lambda_neg).clamp(min=1e-4)
    return (decay + k * log_w - decay * log_w.exp()).exp().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _high_entropy(entropies: Tensor | None, kept: Tensor, options: LossOptions, normalizer: Normalizer) -> Tensor:
    if entropies is None:
        raise ValueError("topEntropyQuantile below 1 needs entropies")
    detached = entropies.detach().float()
    threshold = normalizer.entropy_threshold
    if threshold is None:
        threshold = entropy_threshold(detached[kept], options)
    return (detached >= threshold) & kept


def _aggregate(objective: Tensor, mask: Tensor, options: LossOptions, normalizer: Normalizer) -> Tensor:
    rollouts = max(1, normalizer.rollouts)
    if options.loss_type in PER_ROLLOUT:
        return ((objective * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).sum() / rollouts
    if options.loss_type == "luspo":
        return (objective * mask).sum() / rollouts
    if options.loss_type == "dr_grpo":
        return (objective * mask).sum() / (rollouts * normalizer.max_completion_length)
    return (objective * mask).sum() / max(1, normalizer.tokens)


def effective_mask(inputs: LossInputs, options: LossOptions) -> Tensor:
    """Return 1.0 for each token that counts, else 0.0, [B, T]."""
    mask = inputs.mask_BT.float()
    if not options.mask_truncated_completions:
        return mask
    if inputs.truncated_B is None:
        raise ValueError("maskTruncatedCompletions needs to know which rollouts were truncated")
    return mask * (~inputs.truncated_B.bool()).float().unsqueeze(1)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _mean(values: Tensor, mask: Tensor, *, by_rollout: bool = False, rows_B: Tensor | None = None) -> Mean:
    """Over tokens.

    Args:
        by_rollout: over rollouts: there is one value a rollout, [B, 1], as there is one a token where T is 1.
        rows_B: bool, the rollouts that count; None: all.
    """
    values = values.detach()
    weights = torch.ones_like(values) if by_rollout else mask
    if rows_B is not None:
        weights = weights * rows_B.unsqueeze(1)
    return Mean((values * weights).sum(), weights.sum())
