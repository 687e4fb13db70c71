"""Action bounds: what limits the actions of other peers in a policy-gradient update, and the state that this needs.

The same gates as for the rollouts of a language model (`grpo.remote_bounds`, `grpo.denominators`): a claim only lowers
a weight, an action gets none if its claim or our own policy makes it improbable, each author has a bounded share, rare
actions count no more of the updates than they do of ours (`rarity`), and the claims of each author are compared with
our own policy. Copies are a matter of the loop; but a group of few actions is hard to tell from chance. Shapes: B
actions.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swarmgame.game.author_records import LARGEST_RATIO, RemoteUse
from swarmgame.game.components import RolloutUse
from swarmgame.game.state import GameState, GroupKey, PeerId, Rewards
from swarmgame.trainer.claims import IMPROBABLE_NATS
from swarmgame.trainer.influence import OwnSignal, OwnSurprise, scales
from swarmgame.trainer.own_likelihood import OwnLikelihood, implausible
from swarmgame.trainer.own_rewards import OwnRewards
from swarmgame.trainer.rarity import UNLIKELY, Rarity, RatedRollout

SLACK = 1e-3
"""Nats by which our own actions count as rarer. Equal observations give equal log-probabilities, and those of another
peer's actions that are below ours by rounding must not be rare.
"""


@dataclass(frozen=True, slots=True)
class Action:
    """One action to train on, the rollout `position` of its group. `behavior_logprob` is what another peer claims, and
    None for our own, which have `sampled_logprob`. Advantages of other peers' actions are scaled by `influence`, down
    to their author's share. `reward` is what a value network learns.
    """

    group: GroupKey
    position: int
    observation: Tensor
    action: int
    advantage: float
    behavior_logprob: float | None
    influence: float = 1.0
    sampled_logprob: float | None = None
    reward: float = 0.0


@dataclass(slots=True)
class _Author:
    """What a round's updates found about the actions of another peer: see `RemoteUse`."""

    tokens: int = 0
    ratios: float = 0.0
    signal: float = 0.0
    refused: Counter[str] = field(default_factory=Counter)


class ActionBounds:
    """The bounds of one trainer.

    Args:
        most: largest share of all other peers in an update, in [0, 1]; 1: no bound.
        part: of that, what one peer may have at least.
        cap: largest weight of an action of another peer.
    """

    def __init__(self, most: float, part: float, cap: float) -> None:
        self._most, self._part, self._cap = most, part, cap
        self._signal = OwnSignal()
        self._likelihood = OwnLikelihood()
        self._surprise = OwnSurprise()
        self._rarity = Rarity()
        self._offered: list[RatedRollout] = []
        self._rewards = OwnRewards()
        self._authors: defaultdict[PeerId, _Author] = defaultdict(_Author)
        self._own = 0.0

    def begin(self, state: GameState, rewards: Rewards) -> None:
        """Begin a round: add our own actions to the statistics, and forget what was found in the round before."""
        self._rewards.begin(state, rewards)
        self._authors.clear()
        self._own = 0.0
        self._likelihood.add(rollout.logprobs for _, group in state.own_groups() for rollout in group.rollouts)

    def limit(self, actions: Sequence[Action]) -> list[Action]:
        """Return the actions of an update, those of other peers scaled down to their authors' shares."""
        signals: dict[PeerId, float] = {}
        own = possible = 0.0
        for action in actions:
            if action.behavior_logprob is None:
                own, possible = own + abs(action.advantage), possible + 1.0
            else:
                signal = abs(action.advantage) * self._rank(action)
                signals[action.group.peer] = signals.get(action.group.peer, 0.0) + signal
        ours = [action for action in actions if action.sampled_logprob is not None]
        self._surprise.add((abs(each.advantage), (each.sampled_logprob or 0.0,)) for each in ours)
        self._rarity.add_own(
            RatedRollout.of((each.action,), ((each.sampled_logprob or 0.0) - SLACK,), abs(each.advantage))
            for each in ours
        )
        found = scales(signals, self._signal.reference(own, possible), self._most, self._part)
        return [
            action
            if action.behavior_logprob is None
            else replace(action, influence=found[action.group.peer] * self._rank(action))
            for action in actions
        ]

    def _rank(self, action: Action) -> float:
        return self._rewards.factor(action.group, action.position) if self._most < 1 else 1.0

    def compare(self, actions: Sequence[Action], ours_B: Tensor) -> Tensor:
        """Compare what other peers claim with our own policy.

        Args:
            ours_B: log-probabilities of the actions, without gradient.

        Returns:
            [B, 6]: weight, p(ours) / p(claimed) cut at its largest value, whether the claim is improbable, whether our
            own policy would hardly ever take the action, the weight that it would have if rare actions were not
            bounded, and our log-probability. 1, 1, 0, 0, 1 for our own.
        """
        claims = [math.nan if action.behavior_logprob is None else action.behavior_logprob for action in actions]
        claims_B = torch.tensor(claims, device=ours_B.device)
        remote_B = ~claims_B.isnan()
        ratio_B = torch.where(remote_B, ours_B - claims_B, 0.0)
        improbable_B = ratio_B > IMPROBABLE_NATS
        floors = self._likelihood.floors()
        unlikely_B = torch.zeros_like(remote_B)
        if floors is not None:
            unlikely_B = remote_B & implausible(ours_B.unsqueeze(1), torch.ones_like(ours_B).unsqueeze(1), floors)
        weights_B = torch.where(remote_B, ratio_B.exp().clamp(max=self._cap), 1.0)
        weights_B = weights_B.masked_fill(improbable_B | unlikely_B, 0.0)
        mean = self._surprise.mean
        offered_B = weights_B
        if mean is not None and self._most < 1:
            surprises_B = (weights_B * -torch.expm1(ours_B)).clamp(min=1e-9)
            offered_B = torch.where(remote_B, weights_B * (mean / surprises_B).clamp(max=1.0), weights_B)
            weights_B = torch.where(remote_B, offered_B * self._rarity_factors(actions, ours_B), weights_B)
        cut_B = ratio_B.clamp(max=math.log(LARGEST_RATIO)).exp()
        return torch.stack([weights_B, cut_B, improbable_B.float(), unlikely_B.float(), offered_B, ours_B], dim=1)

    def _rarity_factors(self, actions: Sequence[Action], ours_B: Tensor) -> Tensor:
        """Return the factor of each action: that of its log-probability, and its own where it is unlikely."""
        factors = self._rarity.factors
        if factors is None:
            return torch.ones_like(ours_B)
        places = np.searchsorted(factors.levels, ours_B.double().cpu().numpy())
        found = [
            min(float(factors.factors[place]), factors.tokens.get(action.action, 1.0) if ours < UNLIKELY else 1.0)
            for place, action, ours in zip(places, actions, ours_B.tolist(), strict=True)
        ]
        return torch.tensor(found, dtype=ours_B.dtype, device=ours_B.device)

    def use_of(self, action: Action, row: Sequence[float]) -> RolloutUse:
        """Return how an update used an action, and remember it for its author.

        Args:
            row: of the action, from `compare`.
        """
        weight, ratio, improbable, unlikely, offered, ours = row
        use = RolloutUse(action.advantage, weight * action.influence)
        if action.behavior_logprob is None:
            self._own += abs(use.advantage) * use.weight
            return use
        self._offered.append(RatedRollout.of((action.action,), (ours,), abs(action.advantage), offered))
        author = self._authors[action.group.peer]
        author.tokens += 1
        author.ratios += ratio
        author.signal += abs(use.advantage) * use.weight
        author.refused.update({"improbable": int(improbable), "implausible": int(unlikely)})
        return use

    def end_update(self) -> None:
        """Add what the update has measured of other peers' actions to the statistics, for the next one."""
        self._rarity.add_others(self._offered)
        self._offered = []

    def remote_uses(self) -> dict[PeerId, RemoteUse]:
        """Return how the round's updates used the actions of each other peer."""
        total = self._own + sum(author.signal for author in self._authors.values())
        return {
            peer: RemoteUse(
                influence=author.signal / total if total else 0.0,
                tokens=author.tokens,
                ratios=author.ratios,
                refused={reason: count for reason, count in author.refused.items() if count},
            )
            for peer, author in sorted(self._authors.items())
        }

    def state_dict(self) -> Mapping[str, Any]:
        return {
            "likelihood": self._likelihood.state_dict(),
            "signal": list(self._signal.recent),
            "rewards": self._rewards.state_dict(),
            "surprise": [list(each) for each in self._surprise.recent],
            "rarity": self._rarity.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back a state; an empty one, of a checkpoint of an earlier release, leaves everything empty."""
        if state:
            self._likelihood.load_state_dict(state["likelihood"])
            self._signal = OwnSignal(state["signal"])
            self._rewards.load_state_dict(state["rewards"])
            self._surprise = OwnSurprise(state.get("surprise", ()))
            self._rarity = Rarity(state.get("rarity", ((), ())))
