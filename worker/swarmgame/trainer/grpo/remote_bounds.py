"""Remote bounds: what limits the rollouts of other peers in a GRPO update, and the state that this needs.

Two bounds: the plausibility of each rollout under our own policy (`own_likelihood`), checked when training first sees
it, and the share of each author in an update (`influence`), enforced where the batch is made. Advantages are scaled and
not importance weights, because every loss is linear in them. Invariant: our own samples stay as they are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from swarmgame.game.state import GameState, PeerId, Rewards
from swarmgame.trainer.grpo.loss import PER_ROLLOUT
from swarmgame.trainer.grpo.loss_options import LossOptions
from swarmgame.trainer.grpo.samples import TrainingSample
from swarmgame.trainer.influence import OwnSignal, OwnSurprise, scales
from swarmgame.trainer.own_likelihood import Floors, OwnLikelihood
from swarmgame.trainer.own_rewards import OwnRewards
from swarmgame.trainer.rarity import Rarity, RatedRollout, Surprise


class RemoteBounds:
    """The bounds of one trainer.

    Args:
        most: largest share of all other peers in an update, in [0, 1]; 1: no bound.
        part: of that, what one peer may have at least.
    """

    def __init__(self, most: float, part: float) -> None:
        self._most, self._part = most, part
        self._likelihood = OwnLikelihood()
        self._signal = OwnSignal()
        self._rollout_signal = OwnSignal()
        """The same in a mean over rollouts, where the loss is an author's own."""
        self._surprise = OwnSurprise()
        self._rarity = Rarity()
        self._rewards = OwnRewards()

    def begin(self, state: GameState, rewards: Rewards) -> None:
        """Add our own rollouts of a round to the statistics, before its updates."""
        self._rewards.begin(state, rewards)
        self._likelihood.add(rollout.logprobs for _, group in state.own_groups() for rollout in group.rollouts)

    @property
    def floors(self) -> Floors | None:
        """What a rollout of another peer has to reach; None while there are too few own ones."""
        return self._likelihood.floors()

    @property
    def surprise(self) -> Surprise | None:
        """How much rollouts of other peers count whose tokens surprise us; None: without a bound."""
        mean = self._surprise.mean
        return None if mean is None or self._most >= 1 else Surprise(mean, self._rarity.factors)

    def note(self, updates: Sequence[Sequence[RatedRollout]]) -> None:
        """Add what finished updates have measured of remote samples to the statistics."""
        for update in updates:
            self._rarity.add_others(update)

    def limit(self, samples: Sequence[TrainingSample], options: LossOptions) -> None:
        """Scale the advantages of remote samples down to their authors' shares.

        Args:
            samples: all scored samples of an update, with advantages.
        """
        for sample in samples:
            if sample.remote and sample.group is not None:
                self._scale(sample, self._rewards.factor(sample.group, sample.position))
        ours = [(abs(sample.advantage), sample.sampled_logprobs) for sample in samples if not sample.remote]
        self._surprise.add(ours)
        self._rarity.add_own(
            RatedRollout.of(sample.sampled_ids, logprobs, signal(sample, options))
            for sample in samples
            if not sample.remote and (logprobs := sample.sampled_logprobs)
        )
        found = [self._factors(samples, options, self._signal)]
        if options.is_own_loss:  # which may be a mean over tokens or over rollouts
            found.append(self._factors(samples, options, self._rollout_signal, per_rollout=True))
        for sample in samples:
            if sample.remote and sample.group is not None:
                self._scale(sample, min(factors[sample.group.peer] for factors in found))

    def _factors(
        self, samples: Sequence[TrainingSample], options: LossOptions, ours: OwnSignal, *, per_rollout: bool = False
    ) -> dict[PeerId, float]:
        """Return the factor of each author, and add our own signal to those of the last updates."""
        by_author: defaultdict[PeerId, float] = defaultdict(float)
        own = possible = 0.0
        for sample in samples:
            part = size(sample, options, per_rollout=per_rollout)
            if sample.remote and sample.group is not None:
                by_author[sample.group.peer] += abs(sample.advantage) * part
            else:
                own += abs(sample.advantage) * part
                possible += part
        return scales(by_author, ours.reference(own, possible), self._most, self._part)

    def _scale(self, sample: TrainingSample, factor: float) -> None:
        if self._most < 1 and factor < 1:
            sample.influence *= factor
            sample.advantage *= factor

    def state_dict(self) -> Mapping[str, Any]:
        return {
            "likelihood": self._likelihood.state_dict(),
            "signal": list(self._signal.recent),
            "rollout_signal": list(self._rollout_signal.recent),
            "rewards": self._rewards.state_dict(),
            "surprise": [list(each) for each in self._surprise.recent],
            "rarity": self._rarity.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back a state; an empty one, of a checkpoint of an earlier release, leaves everything empty."""
        if state:
            self._likelihood.load_state_dict(state["likelihood"])
            self._signal = OwnSignal(state["signal"])
            self._rollout_signal = OwnSignal(state.get("rollout_signal", ()))
            self._surprise = OwnSurprise(state["surprise"])
            self._rewards.load_state_dict(state["rewards"])
            self._rarity = Rarity(state.get("rarity", ((), ())))


def size(sample: TrainingSample, options: LossOptions, *, per_rollout: bool = False) -> float:
    """Return what a rollout counts in the loss at an advantage of 1: its tokens, or 1 in a mean over rollouts.

    Args:
        per_rollout: the loss is such a mean, whatever its name says.
    """
    if options.mask_truncated_completions and sample.truncated:
        return 0.0
    return 1.0 if per_rollout or options.loss_type in PER_ROLLOUT else float(sample.tokens_trained)


def signal(sample: TrainingSample, options: LossOptions) -> float:
    """Return the largest part of the update that a rollout can have, since no weight exceeds 1."""
    return abs(sample.advantage) * size(sample, options)
