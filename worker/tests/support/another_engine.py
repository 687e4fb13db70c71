"""A sampler whose log-probabilities are not those of the training forward, as those of another engine are not."""

from __future__ import annotations

from typing import Any

from swarmgame.inference.eager import EagerSampler
from swarmgame.inference.sampler import Sampled
from swarmgame.trainer.grpo.trainer import GRPOTrainer


class AnotherEngine(EagerSampler):
    """Samples as ours does, and reports slightly different log-probabilities, as another engine would."""

    exact = False
    off = 0.0

    def sample(self, *args: Any, **kwargs: Any) -> list[list[Sampled]]:
        return [[self._blurred(each) for each in group] for group in super().sample(*args, **kwargs)]

    def _blurred(self, sampled: Sampled) -> Sampled:
        return Sampled(
            sampled.token_ids,
            tuple(value - self.off * (place % 2) for place, value in enumerate(sampled.logprobs)),
            sampled.stopped,
        )


def with_engine(learner: GRPOTrainer, off: float) -> GRPOTrainer:
    engine = AnotherEngine(learner.policy.model, learner.policy.eos_token_ids, learner.policy.pad_token_id)
    engine.off = off
    learner._generation.sampler = engine
    return learner
