"""Action values: a network that learns which reward to expect for an observation, the baseline of an actor-critic.

It is made by the policy's own factory, with one output, and has an optimizer of its own. One action is one rollout, so
a reward minus its value is the complete advantage: there is no later state to bootstrap from. Invariants: every rank
has the same values; the network learns from our own actions alone.

Source: Sutton and Barto, Reinforcement Learning, 2nd edition, section 13.4 (REINFORCE with baseline).
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from swarmgame.errors import BadData, InvalidManifest
from swarmgame.game.components import ComponentContext
from swarmgame.seeds import derive_seed
from swarmgame.trainer.action_bounds import Action
from swarmgame.trainer.grpo.gae import explained_variance
from swarmgame.trainer.not_finite import first_module
from swarmgame.trainer.optimization import Optimization
from swarmgame.trainer.policies import BUILTIN, build_policy, check_policy, logits_of, quiet, stacked
from swarmgame.trainer.policy_gradient_config import PolicyGradientConfig

logger = logging.getLogger(__name__)

PATH = "spec.game.trainer.with.baseline"


class ActionValues:
    """The value network of one trainer.

    Raises:
        InvalidManifest: the factory makes no network with one output.
    """

    def __init__(self, config: PolicyGradientConfig, context: ComponentContext) -> None:
        self._config, self._ranks, self._device = config, context.ranks, context.device
        self.network = _network(config, derive_seed(context.seed, "values")).to(context.device)
        quiet(self.network)
        self._rate = config.learning_rate if config.value_learning_rate is None else config.value_learning_rate
        trained = {name: each for name, each in self.network.named_parameters() if each.requires_grad}
        self._optimization = Optimization(trained, weight_decay=config.weight_decay, max_grad_norm=config.max_grad_norm)
        self._seen: list[tuple[float, float]] = []

    @torch.no_grad()
    def of(self, observations: Sequence[Tensor]) -> list[float]:
        """Return the expected reward of each observation.

        Raises:
            BadData: one is not finite.
        """
        if not observations:
            return []
        batch = stacked(observations).to(self._device)
        values: list[float] = self._values(batch).double().tolist()
        if not all(map(math.isfinite, values)):
            raise BadData(
                f"the value network's output for an observation is not finite, {first_module(self.network, batch)}. "
                "Likely cause: a learning rate that is too high, or rewards or observations that are huge. Lower "
                "valueLearningRate, and look at the rewards and at the data's payloads"
            )
        return values

    def _values(self, observations: Tensor) -> Tensor:
        config = self._config
        return logits_of(self.network, observations, config.module, 1, config.options).float().squeeze(1)

    def step(self, actions: Sequence[Action]) -> None:
        """Take a step on half the mean squared error over our own actions of an update. A collective call.

        Args:
            actions: of the update, those of other peers too, which are left out.
        """
        own = [action for action in actions if action.behavior_logprob is None]
        share = own[self._ranks.rank :: self._ranks.size]
        self._optimization.clear()
        found: list[tuple[float, float]] = []
        if share:
            values_B = self._values(stacked([action.observation for action in share]).to(self._device))
            rewards_B = torch.tensor([action.reward for action in share], device=self._device)
            loss = 0.5 * ((values_B - rewards_B) ** 2).sum() / len(own)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimization.accumulate()
            found = list(zip(values_B.detach().tolist(), rewards_B.tolist(), strict=True))
        for payload in self._ranks.gather(json.dumps(found).encode()):
            self._seen += [(value, reward) for value, reward in json.loads(payload)]
        if self._optimization.step(self._rate, self._ranks, only_with_gradient=True) is None:
            logger.warning("the gradient of the value network was not finite: its step was left out")

    def taken_metrics(self) -> dict[str, float]:
        """Return the metrics of the steps since the last call, each before its step."""
        seen, self._seen = self._seen, []
        if not seen:
            return dict.fromkeys(("value", "value_loss", "explained_variance"), math.nan)
        values, rewards = zip(*seen, strict=True)
        return {
            "value": math.fsum(values) / len(seen),
            "value_loss": math.fsum(0.5 * (value - reward) ** 2 for value, reward in seen) / len(seen),
            "explained_variance": explained_variance(values, rewards),
        }

    # ── state
    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Weights and buffers by name, apart from those of the policy; not copies."""
        return {f"values.{name}": each for name, each in self._named().items()}

    def _named(self) -> dict[str, Tensor]:
        return {**self._optimization.weights, **dict(self.network.named_buffers())}

    def state_dict(self) -> Mapping[str, Any]:
        buffers = {name: buffer.detach().cpu().clone() for name, buffer in self.network.named_buffers()}
        return {"optimization": self._optimization.state_dict(), "buffers": buffers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._optimization.load_state_dict(state["optimization"])
        for name, buffer in self.network.named_buffers():
            buffer.copy_(state["buffers"][name])


def load_values(values: ActionValues | None, state: Mapping[str, Any] | None) -> None:
    """Take back the state of a value network, if there are both."""
    if values is not None and state is not None:
        values.load_state_dict(state)
    elif values is not None:
        logger.warning("the checkpoint has no value network, since baseline was not value: it begins anew")
    elif state is not None:
        logger.warning("the checkpoint has a value network, which is left out: baseline is no longer value")


def check_values(config: PolicyGradientConfig, observation: Tensor | None, *, load: bool) -> None:
    """Build a value network and call it with one observation of the game, as `check_policy` does.

    Raises:
        InvalidManifest: the factory makes no network with one output.
    """
    if load or config.module in BUILTIN:
        try:
            check_policy(config.module, 1, config.options, observation, load=load)
        except InvalidManifest as error:
            raise _refused(config, error) from error


def _network(config: PolicyGradientConfig, seed: int) -> nn.Module:
    try:
        return build_policy(config.module, 1, config.options, seed)
    except InvalidManifest as error:
        raise _refused(config, error) from error


def _refused(config: PolicyGradientConfig, error: InvalidManifest) -> InvalidManifest:
    expected = f"group, update or none: it needs a second network of {config.module} with actions: 1, and ({error})"
    return InvalidManifest(PATH, "value", expected)
