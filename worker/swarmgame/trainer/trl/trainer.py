"""The TRL trainer: a policy as that of `grpo`, with the losses, optimizers and schedules of TRL's GRPOTrainer.

Sampling, data, rewards, exchange, bounds of other peers, checkpoints and exports are those of `grpo`; the loss of each
micro-batch is computed by TRL (`learner`), and its optimizer takes the step (`optimization`). With equal options both
make the same update. TRL takes seconds to import, so that happens when a policy is created or a game is checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import BaseModel
from torch import Tensor

from swarmgame.errors import InvalidManifest
from swarmgame.game.components import ComponentContext
from swarmgame.game.state import GameState, Prompt, Rewards
from swarmgame.trainer.grpo.batch import engine_mismatch
from swarmgame.trainer.grpo.denominators import Denominators, denominators
from swarmgame.trainer.grpo.loss import LossOptions, Mean, Normalizer
from swarmgame.trainer.grpo.samples import TrainingSample, moved
from swarmgame.trainer.grpo.step_stats import StepStats
from swarmgame.trainer.grpo.trainer import GRPOTrainer
from swarmgame.trainer.optimization import Optimization
from swarmgame.trainer.trl.config import TrlConfig, settings_of

if TYPE_CHECKING:
    from swarmgame.trainer.trl.learner import Result

MEASURED = {
    "kl": "kl",
    "clip_ratio/low_mean": "clip_low",
    "clip_ratio/high_mean": "clip_high",
    "cispo_clip_ratio": "clip_high",
}
"""Metrics of TRL, and their names here."""


class TrlTrainer(GRPOTrainer):
    """TRL's GRPOTrainer over a round's groups, for its losses, optimizers and schedules; `use: trl`."""

    Config: ClassVar[type[BaseModel]] = TrlConfig
    plays_episodes = False
    """Every id of a completion is trained on, so an environment may write none."""

    def __init__(self, config: TrlConfig, context: ComponentContext) -> None:
        _check_processes(context.ranks.size)
        self._options = config.options
        self._arguments: Any = None
        if not config.only_exports:
            self._arguments = _arguments(config, context.device)
        super().__init__(settings_of(config, self._arguments), context)

    def _make_optimization(self) -> Optimization:
        if self._arguments is None:
            return super()._make_optimization()
        from swarmgame.trainer.trl.learner import make_learner
        from swarmgame.trainer.trl.optimization import TrlOptimization

        self._learner = make_learner(self.policy, self._arguments, self._options)
        return TrlOptimization(
            self.policy.parameters, self._learner, max_grad_norm=float(self._arguments.max_grad_norm)
        )

    # ── training
    def train(self, state: GameState, rewards: Rewards) -> Mapping[str, float]:
        rate = getattr(self._optimization, "learning_rate", 0.0)
        return {**super().train(state, rewards), "learning_rate": rate}

    def _backward(self, batch: Sequence[TrainingSample], normalizer: Normalizer) -> StepStats:
        from swarmgame.trainer.trl.learner import Comparison, Rows

        prompts, completions = [sample.prompt for sample in batch], [sample.completion for sample in batch]
        left_out = self.config.mask_truncated_completions
        rows = Rows(prompts, completions, [not (left_out and sample.truncated) for sample in batch])
        seen: list[Denominators] = []
        own: list[Tensor] = []

        def compare(logprobs_BT: Tensor, mask_BT: Tensor) -> Comparison:
            found = denominators(batch, logprobs_BT, mask_BT, self.config, self._bounds.floors, self._bounds.surprise)
            seen.append(found)
            advantages = moved([sample.advantage for sample in batch], torch.float32, logprobs_BT.device)
            own.append(moved([not sample.remote for sample in batch], torch.bool, logprobs_BT.device))
            return Comparison(
                old_BT=found.old_BT,
                advantages_B=advantages if found.scale_B is None else advantages * found.scale_B,
                weights_BT=found.importance_BT,
                reference_BT=self.policy.score_reference(prompts, completions) if self.config.beta > 0 else None,
                own_B=own[0],
            )

        result = self._learner.loss_of(rows, normalizer, compare)
        result.loss.backward()  # type: ignore[no-untyped-call]
        self._optimization.accumulate()
        metrics = measured(result, seen[0], own[0], self.config)
        if not self._generation.sampler.exact:
            metrics["mismatch_kl"] = engine_mismatch(batch, result.logprobs_BT)
        return StepStats(result.loss.detach(), metrics)

    # ── checks
    @classmethod
    def doubts(cls, config: TrlConfig, processes: int | None) -> Sequence[str]:  # type: ignore[override]
        """Return nothing.

        Raises:
            InvalidManifest: a peer has several processes.
        """
        _check_processes(1 if processes is None else processes)
        return ()

    @classmethod
    def check_with(  # type: ignore[override]
        cls, config: TrlConfig, context: ComponentContext, prompt: Prompt | None, *, load_model: bool = False
    ) -> Sequence[str]:
        settings = settings_of(config, _arguments(config, "cpu"))
        return super().check_with(settings, context, prompt, load_model=load_model)


def measured(result: Result, found: Denominators, own_B: Tensor, options: LossOptions) -> dict[str, Mean]:
    """Return the metrics of a micro-batch under the names of `grpo`: TRL's own, and those of the rollouts. Those of
    ratios are means over rollouts where there is one ratio a rollout.

    Args:
        own_B: bool, our own rollouts. TRL's `kl` is a mean over all tokens, and 0 for those of other peers.
    """
    mask = result.mask_BT.float()
    lengths = mask.sum(dim=1)
    tokens = lengths.sum()
    drift_BT = (result.logprobs_BT - found.old_BT).float() * mask
    ratio, count = (drift_BT.exp() * mask).sum(), tokens
    if options.ratio_level == "sequence":
        ratio, count = (drift_BT.sum(dim=1) / lengths.clamp(min=1)).exp().sum(), torch.ones_like(lengths).sum()
    means = {
        ours: Mean(result.measured[name] * count, count)
        for name, ours in MEASURED.items()
        if name in result.measured and ours != "kl"
    }
    if "kl" in result.measured:
        means["kl"] = Mean(result.measured["kl"] * tokens, lengths[own_B].sum())
    means["entropy"] = Mean((result.entropies_BT.float() * mask).sum(), tokens)
    means["ratio"] = Mean(ratio, count)
    means["mismatch_kl"] = Mean(((drift_BT.exp() - drift_BT - 1) * mask).sum(), tokens)
    weights, rows = found.importance_BT, found.weighted_B
    if weights is not None and rows is not None and found.improbable_B is not None:
        weighted = rows.unsqueeze(1) * (mask if weights.shape[1] > 1 else torch.ones_like(weights))
        means["importance"] = Mean((weights * weighted).sum(), weighted.sum())
        means["improbable_share"] = Mean(found.improbable_B.sum(), rows.sum())
    return means


def _arguments(config: TrlConfig, device: str) -> Any:
    """Return TRL's GRPOConfig.

    Raises:
        InvalidManifest: TRL is not installed, or an option cannot be used.
    """
    if find_spec("trl") is None:
        expected = "a trainer that is installed: pip install 'swarmgame[trl]', or use grpo, which has the same losses"
        raise InvalidManifest("spec.game.trainer.use", "trl", expected)
    from swarmgame.trainer.trl.learner import make_arguments

    return make_arguments(config, device)


def _check_processes(count: int) -> None:
    if count > 1:
        expected = "1: a peer whose trainer is trl has one process; grpo trains in several"
        raise InvalidManifest("spec.peers.processesPerPeer", count, expected)
