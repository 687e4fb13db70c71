"""The critic of PPO: a value head on the policy's trunk, its optimizer, and the advantages that it gives (`gae`).

The head reads the hidden states that the language model's own head reads, at the positions that predict a sampled
token, and is in float32. It has an optimizer of its own, so the policy's parameters, exports and checkpoints stay as
they are, and every rank holds it complete, also where the policy is sharded. Its first value is 0. Invariants: all
ranks have the same values of all samples; other peers' rollouts get advantages, and never a value loss.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from swarmgame.errors import InvalidManifest
from swarmgame.game.components import ComponentContext
from swarmgame.seeds import derive_seed
from swarmgame.trainer.grpo.batch import share_of_rank
from swarmgame.trainer.grpo.config import GRPOConfig
from swarmgame.trainer.grpo.gae import (
    ValueInputs,
    explained_variance,
    token_advantages,
    token_rewards,
    value_loss,
    whitened,
)
from swarmgame.trainer.grpo.loss import Mean
from swarmgame.trainer.grpo.policy import Policy
from swarmgame.trainer.grpo.samples import TrainingSample, rectangle, trained_mask
from swarmgame.trainer.optimization import Optimization

logger = logging.getLogger(__name__)

MicroBatches = Callable[[Sequence[TrainingSample]], Sequence[Sequence[TrainingSample]]]
Passes = Callable[[Sequence[TrainingSample]], int]
WithinMemory = Callable[[Sequence[TrainingSample], Callable[[], dict[int, Tensor]]], dict[int, Tensor]]


class Critic:
    """A value function of the policy's states.

    Args:
        context: has the ranks, and the seed of the head's first weights.
        micro_batches: cuts the samples of this rank.
        empty_passes: how many passes of other ranks this one must take part in without samples. A collective call.
        within_memory: makes passes of some samples, again with smaller micro-batches where memory runs out.
    """

    def __init__(
        self,
        policy: Policy,
        config: GRPOConfig,
        context: ComponentContext,
        micro_batches: MicroBatches,
        empty_passes: Passes,
        within_memory: WithinMemory,
    ) -> None:
        self.options, self._config = config.critic_options, config
        self._policy, self._ranks = policy, context.ranks
        self._micro_batches, self._empty_passes = micro_batches, empty_passes
        self._within_memory = within_memory
        head = policy.model.get_output_embeddings()
        if head is None:
            expected = "mean, leave-one-out, update or none: the value head reads what the language model's head reads"
            name = type(policy.model).__name__
            raise InvalidManifest("spec.game.trainer.with.baseline", "value", f"{expected}, and {name} names no head")
        seed = derive_seed(context.seed, "critic")
        self.head = value_head(int(head.weight.shape[1]), self.options.hidden, seed).to(context.device)
        self._optimization = Optimization(dict(self.head.named_parameters()), max_grad_norm=config.max_grad_norm)
        self._explained = math.nan
        self._mean = math.nan

    # ── before an update
    def advantages(self, groups: Sequence[tuple[Sequence[TrainingSample], Sequence[float]]]) -> list[list[float]]:
        """Give every sample its values, returns and advantages, one an id of its completion. A collective call.

        A sample's own `advantage` becomes the mean absolute one of its tokens, which is what it can move.

        Args:
            groups: samples and their rewards.

        Returns:
            The mean advantage of each sample, for the archive.
        """
        samples = [sample for candidates, _ in groups for sample in candidates]
        rewards = [reward for _, scores in groups for reward in scores]
        values = self._estimate(samples)
        options = self.options
        found = [
            token_advantages(each, token_rewards(len(each), reward, sample.turns), gamma=options.gamma, lam=options.lam)
            for each, reward, sample in zip(values, rewards, samples, strict=True)
        ]
        returns = [[a + v for a, v in zip(*pair, strict=True)] for pair in zip(found, values, strict=True)]
        counted = [not sample.remote and not self._is_left_out(sample) for sample in samples]
        own = [at for at, counts in enumerate(counted) if counts]
        flat = [value for at in own for value in values[at]]
        self._explained = explained_variance(flat, [value for at in own for value in returns[at]])
        self._mean = math.fsum(flat) / len(flat) if flat else math.nan
        if self._config.scale_rewards == "batch":
            found = whitened(found, counted)
        means = []
        for sample, value, reached, advantage in zip(samples, values, returns, found, strict=True):
            sample.values, sample.returns, sample.token_advantages = map(sample.spread, (value, reached, advantage))
            count = max(1, len(advantage))
            sample.advantage = math.fsum(map(abs, advantage)) / count
            means.append(math.fsum(advantage) / count)
        rest = iter(means)
        return [[next(rest) for _ in scores] for _, scores in groups]

    def _is_left_out(self, sample: TrainingSample) -> bool:
        return self._config.mask_truncated_completions and sample.truncated

    @torch.no_grad()
    def _estimate(self, samples: Sequence[TrainingSample]) -> list[list[float]]:
        """Return the values of the policy's tokens of all samples, the same on every rank. A collective call."""
        shares = [share_of_rank(samples, rank, self._ranks.size) for rank in range(self._ranks.size)]
        own = shares[self._ranks.rank]
        rows = self._within_memory(own, lambda: self._rows(own))
        joined = torch.cat([rows[id(sample)] for sample in own]) if own else torch.zeros(0)
        # Where a state is not finite its log-probability is not either, and the step leaves its rollout out.
        numbers = joined.double().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).cpu().numpy().astype("<f8")
        found: dict[int, list[float]] = {}
        for share, payload in zip(shares, self._ranks.gather(numbers.tobytes()), strict=True):
            every = np.frombuffer(payload, dtype="<f8").tolist()
            start = 0
            for sample in share:
                found[id(sample)] = every[start : start + sample.tokens_trained]
                start += sample.tokens_trained
        return [found[id(sample)] for sample in samples]

    def _rows(self, own: Sequence[TrainingSample]) -> dict[int, Tensor]:
        """Return the values of the policy's tokens of this rank's samples, by their identity. A collective call."""
        rows: dict[int, Tensor] = {}
        # The number of empty passes is a collective call too: every rank makes it before its first pass.
        batches, empty = self._micro_batches(own), self._empty_passes(own)
        for batch in batches:
            states: list[Tensor] = []
            _, _, mask = self._policy.score([s.prompt for s in batch], [s.completion for s in batch], states)
            values_BT = self.values(states, mask)
            kept = trained_mask(batch, mask)
            for sample, row, counts in zip(batch, values_BT, kept, strict=True):
                rows[id(sample)] = row[counts]
        for _ in range(empty):
            self._policy.empty_pass(backward=False)
        return rows

    # ── in an update
    def values(self, states: Sequence[Tensor], mask_BT: Tensor) -> Tensor:
        """Return the values [B, T] of a scored micro-batch, 0 on padding.

        Args:
            states: the hidden states [N, H] of the scored positions, row by row; one tensor.
        """
        (states_NH,) = states
        values_N: Tensor = self.head(states_NH.float()).squeeze(1)
        return values_N.new_zeros(mask_BT.shape).index_put(mask_BT.nonzero(as_tuple=True), values_N)

    def loss(
        self, batch: Sequence[TrainingSample], states: Sequence[Tensor], mask_BT: Tensor, tokens: int
    ) -> tuple[Tensor, Mapping[str, Mean]]:
        """Return the value loss of a micro-batch and its metrics.

        Its gradient in the policy's weights is multiplied by `vfCoef`; the head's own is not.

        Args:
            mask_BT: bool, the scored positions.
            tokens: of our own rollouts in the complete update.
        """
        share = self.options.vf_coef
        scaled = [each.detach() + share * (each - each.detach()) if share else each.detach() for each in states]
        kept = [[not sample.remote and not self._is_left_out(sample)] for sample in batch]
        inputs = ValueInputs(
            values_BT=self.values(scaled, mask_BT),
            old_values_BT=rectangle([sample.values for sample in batch], mask_BT),
            returns_BT=rectangle([sample.returns for sample in batch], mask_BT),
            mask_BT=trained_mask(batch, mask_BT) & torch.tensor(kept, device=mask_BT.device),
        )
        return value_loss(inputs, tokens, self.options.cliprange_value)

    def clear(self) -> None:
        """Clear all gradients."""
        self._optimization.clear()

    def step(self, share_of_rate: float, *, taken: bool) -> None:
        """Step the head, if the policy has taken its step. A collective call.

        Args:
            share_of_rate: the present learning rate of the policy, as a share of the one configured.
        """
        if not taken:
            self.clear()
            return
        rate = self.options.learning_rate * share_of_rate
        if self._optimization.step(rate, self._ranks, only_with_gradient=True) is None:
            logger.warning("the gradient of the value head was not finite: its step was left out")

    def metrics(self) -> dict[str, float]:
        """Return what the last update began with."""
        return {"explained_variance": self._explained, "value": self._mean}

    # ── state
    @property
    def weights(self) -> Mapping[str, Tensor]:
        """The head's weights by name, apart from those of the policy; not copies."""
        return {f"critic.{name}": parameter for name, parameter in self.head.named_parameters()}

    def state_dict(self) -> Mapping[str, Any]:
        return self._optimization.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back a state.

        Raises:
            ValueError: the head is another one.
        """
        try:
            self._optimization.load_state_dict(state)
        except ValueError as error:
            raise ValueError(
                f"the saved value head is another one than spec.game.trainer.with.critic.hidden gives: {error}"
            ) from error


def load_critic(critic: Critic | None, state: Mapping[str, Any] | None) -> None:
    """Take back the state of a critic, if there are both.

    Args:
        state: None where the policy was saved without a critic, so values begin at 0.

    Raises:
        ValueError: the head is another one.
    """
    if critic is not None and state is not None:
        critic.load_state_dict(state)
    elif critic is not None:
        logger.warning(
            "the checkpoint has no value head, since baseline was not value: values begin at 0, and advantages are "
            "near the rewards until the head has learned"
        )
    elif state is not None:
        logger.warning("the checkpoint has a value head, which is left out: baseline is no longer value")


def value_head(inputs: int, hidden: int, seed: int) -> nn.Module:
    """Return a head from states [N, H] to values [N, 1], which are 0 at first. Torch's random state does not change.

    Args:
        inputs: H.
        hidden: width of a layer between, with tanh; 0: there is none.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        last = nn.Linear(hidden or inputs, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), last) if hidden else last
