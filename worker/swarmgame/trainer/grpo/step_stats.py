"""Statistics of optimizer steps: sums of loss and metrics over micro-batches, steps and ranks; a round's metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from swarmgame.game.ranks import Ranks
from swarmgame.trainer.grpo.loss import Mean
from swarmgame.trainer.grpo.samples import TrainingSample

LOSS_METRICS = (
    "entropy", "kl", "mismatch_kl", "lag_kl", "clip_low", "clip_high", "ratio", "importance", "improbable_share",
)  # fmt: skip
"""Metrics of the loss, as means over the trained tokens (`kl`: over our own; `lag_kl`: over those of lagged samples;
`importance`: over those of weighted samples; `improbable_share`: over these samples).
"""
VALUE_METRICS = ("value_loss", "value_clip")
"""Those of a critic, as means over the tokens of our own rollouts."""


class StepStats:
    """Sums of loss and metrics over micro-batches, steps and ranks."""

    def __init__(self, loss: Tensor | float = 0.0, means: Mapping[str, Mean] | None = None) -> None:
        self.loss = loss
        self.means = dict(means or {})
        self.norms: list[float] = []
        self.skipped = 0

    def add(self, other: StepStats) -> None:
        self.loss = self.loss + other.loss
        for name, mean in other.means.items():
            self.means[name] = self.means[name] + mean if name in self.means else mean
        self.norms += other.norms
        self.skipped += other.skipped

    def packed(self) -> bytes:
        # One tensor for all numbers: each float() of a tensor on a device waits for it.
        values = [self.loss, *(part for mean in self.means.values() for part in (mean.total, mean.weight))]
        tensors = [value.detach().double() for value in values if isinstance(value, Tensor)]
        measured = iter(torch.stack(tensors).tolist() if tensors else [])
        loss, *parts = [next(measured) if isinstance(value, Tensor) else float(value) for value in values]
        means = dict(zip(self.means, zip(parts[::2], parts[1::2], strict=True), strict=True))
        return json.dumps({"loss": loss, "means": means}).encode()

    def over(self, payloads: Sequence[bytes]) -> StepStats:
        """Return this rank's steps, with the losses and means of all ranks."""
        total = StepStats()
        for payload in payloads:
            part = json.loads(payload)
            total.add(StepStats(part["loss"], {name: Mean(*pair) for name, pair in part["means"].items()}))
        total.norms, total.skipped = self.norms, self.skipped
        return total


def lag(samples: Sequence[TrainingSample]) -> StepStats:
    """Return `lag_kl`: the KL from the version that sampled our lagged rollouts to the policy when training began."""
    lagged = [sample for sample in samples if sample.lagged and sample.initial_logprobs is not None]
    if not lagged:
        return StepStats()
    started = torch.cat([sample.initial_logprobs for sample in lagged if sample.initial_logprobs is not None]).float()
    sampled = torch.tensor(
        [logprob for sample in lagged for logprob in sample.behavior_logprobs or ()], device=started.device
    )
    drift = started - sampled
    return StepStats(0.0, {"lag_kl": Mean(float((drift.exp() - drift - 1).sum()), float(len(drift)))})


def report(counts: Mapping[str, int], stats: StepStats, rate: float) -> dict[str, float]:
    """Return the metrics of a round."""
    steps = len(stats.norms) + stats.skipped
    groups = counts.get("groups_trained", 0) + counts.get("groups_zero_advantage", 0)
    rollouts = counts.get("rollouts", 0)
    metrics = {
        "loss": float(stats.loss) / steps if steps else math.nan,
        "grad_norm": sum(stats.norms) / len(stats.norms) if stats.norms else math.nan,
        "learning_rate": rate,
        "steps": float(len(stats.norms)),
        "steps_skipped": float(stats.skipped),
        "zero_advantage_share": counts.get("groups_zero_advantage", 0) / groups if groups else math.nan,
        "truncated_share": counts.get("rollouts_truncated", 0) / rollouts if rollouts else math.nan,
        "completion_length": counts.get("completion_tokens", 0) / rollouts if rollouts else math.nan,
    }
    metrics |= {name: stats.means[name].value for name in VALUE_METRICS if name in stats.means}
    for name in LOSS_METRICS:
        metrics[name] = stats.means[name].value if name in stats.means else math.nan
    for name in (
        "groups_trained",
        "groups_external",
        "groups_retokenised",
        "rollouts_not_reversible",
        "groups_unscored",
        "remote_dropped",
        "tokens_trained",
    ):
        metrics[name] = float(counts.get(name, 0))
    return metrics


def over_ranks(values_N: Tensor, ranks: Ranks) -> Tensor:
    """Return the finite numbers of all ranks, in float32."""
    gathered = ranks.gather(values_N[values_N.isfinite()].numpy().astype("<f4").tobytes())
    return torch.from_numpy(np.concatenate([np.frombuffer(part, dtype="<f4") for part in gathered]))
