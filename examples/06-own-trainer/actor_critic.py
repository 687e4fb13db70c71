"""A trainer of our own: an actor-critic for the king's walk.

A policy that takes one action a prompt has no group to compare it with, as GRPO does. The critic estimates the reward
of a board instead, and an action's advantage is its reward minus that estimate. The loss is that of PPO (arXiv
1707.06347): its ratio also corrects for the actions of other peers, which another policy chose.

It leaves out several ranks for a peer: they would have to sum their gradients (`context.ranks.sum_gradients`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from kings_walk import STEPS, TURNS
from pydantic import Field
from torch import Tensor, nn

from swarmgame import (
    ComponentContext,
    Config,
    GameState,
    Group,
    Prompt,
    Rewards,
    Rollout,
    Round,
    Trainer,
    derive_seed,
)


class ActorCriticConfig(Config):
    """The `with:` block."""

    hidden: Annotated[int, Field(ge=1, le=4096)] = 64
    """Width of the two layers that actor and critic share."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 3e-3
    """Of Adam."""
    entropy_bonus: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the policy's entropy: it keeps the policy from being certain too early."""
    value_weight: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the critic's squared error."""
    epochs: Annotated[int, Field(ge=1, le=64)] = 4
    """Optimizer steps over the moves of a round."""
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """How far an update may change the probability of a move, as a share."""


def observation(board: str) -> list[float]:
    """Return a board as the network sees it: how far the square is to the right and up, and the moves left."""
    return [float(number) / TURNS for number in board.split()]


class ActorCritic(Trainer):
    """See the module."""

    Config = ActorCriticConfig
    config: ActorCriticConfig

    def __init__(self, config: ActorCriticConfig, context: ComponentContext) -> None:
        super().__init__(config, context)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(context.seed, "policy"))
            self.network = nn.Sequential(
                nn.Linear(3, config.hidden),
                nn.Tanh(),
                nn.Linear(config.hidden, config.hidden),
                nn.Tanh(),
                nn.Linear(config.hidden, len(STEPS) + 1),
            )
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=config.learning_rate)
        self.version = 0

    @property
    def policy_version(self) -> int:
        return self.version

    @property
    def tokenizer(self) -> str:
        """The action space: rollouts of a peer with another one cannot be trained on."""
        return hashlib.blake2b(b"walk", digest_size=8).hexdigest()

    def decode(self, token_ids: Sequence[int]) -> str | None:
        return " ".join(map(str, token_ids))

    # ── sampling
    def generate(self, prompts: Sequence[Prompt], round: Round) -> Sequence[Group]:
        """Return one move a prompt: sampled in a round, the likeliest one in an evaluation."""
        if not prompts:
            return []
        with torch.no_grad():
            logprobs_BA, _ = self._forward([prompt.text for prompt in prompts])
        count = round.sampling.samples if round.sampling is not None else 1
        if round.evaluation and round.sampling is None:
            moves_BN = logprobs_BA.argmax(dim=1, keepdim=True)
        else:
            seed = derive_seed(round.peer_seed, "moves", round.number, round.stage, int(round.evaluation))
            generator = torch.Generator().manual_seed(seed)
            moves_BN = torch.multinomial(logprobs_BA.exp(), count, replacement=True, generator=generator)
        chosen_BN = logprobs_BA.gather(1, moves_BN)
        return [
            Group(prompt, tuple(Rollout(str(m), (m,), (p,)) for m, p in zip(moves, chosen, strict=True)))
            for prompt, moves, chosen in zip(prompts, moves_BN.tolist(), chosen_BN.tolist(), strict=True)
        ]

    def _forward(self, boards: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return log-probabilities [B, A], and the critic's estimates [B]."""
        output = self.network(torch.tensor([observation(board) for board in boards]))
        return torch.log_softmax(output[:, :-1], dim=1), output[:, -1]

    # ── training
    def train(self, state: GameState, rewards: Rewards) -> Mapping[str, float]:
        """Make some steps on our own moves and on the selected ones of other peers."""
        rows = []  # board, move, reward, log-probability under the policy that sampled it
        for key in (*(key for key, _ in state.own_groups()), *state.external):
            group = state.group_of(key)
            for rollout, reward in zip(group.rollouts, rewards.get(key, ()), strict=False):
                board, ids = group.prompt.text, rollout.token_ids
                if math.isfinite(reward) and len(ids) == 1 and ids[0] < len(STEPS):
                    rows.append((board, ids[0], reward, rollout.logprobs[0]))
        if not rows:
            return {"moves": 0.0}
        boards, moves, scores, before = zip(*rows, strict=True)
        moves_B, scores_B, before_B = torch.tensor(moves), torch.tensor(scores), torch.tensor(before)
        with torch.no_grad():
            advantages_B = scores_B - self._forward(boards)[1]
        for _ in range(self.config.epochs):
            logprobs_BA, values_B = self._forward(boards)
            ratio_B = (logprobs_BA.gather(1, moves_B[:, None]).squeeze(1) - before_B).exp()
            clipped_B = ratio_B.clamp(1 - self.config.clip, 1 + self.config.clip)
            actor = -torch.minimum(ratio_B * advantages_B, clipped_B * advantages_B).mean()
            critic = (scores_B - values_B).square().mean()
            entropy = -(logprobs_BA.exp() * logprobs_BA).sum(dim=1).mean()
            loss = actor + self.config.value_weight * critic - self.config.entropy_bonus * entropy
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self.optimizer.step()
        self.version += 1
        return {
            "loss": loss.item(),
            "entropy": entropy.item(),
            "critic_error": critic.sqrt().item(),
            "moves": float(len(rows)),
        }

    # ── state: everything that a resumed peer needs to go on exactly
    def state_dict(self) -> Mapping[str, Any]:
        optimizer = self.optimizer.state_dict()
        return {"version": self.version, "network": self.network.state_dict(), "optimizer": optimizer}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.version = int(state["version"])
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])

    def weights(self) -> Mapping[str, Any]:
        return self.network.state_dict()
