"""PPO's updates against a plain loop: values, GAE, clipped value loss and clipped ratios a rollout at a time, written
from the papers.

No released TRL that this project takes has a PPO trainer any more, so the loop is written here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from language_rounds import contribution_of, round_of, scored, state_of, trainer, weights
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from swarmgame.game.state import FinishReason, GameState, Rewards
from swarmgame.trainer.grpo.critic import value_head
from swarmgame.trainer.grpo.trainer import GRPOTrainer

OTHER = "builtin://tiny?accuracy=0&layers=1&hidden=32&seed=5"
PPO: dict[str, Any] = {"baseline": "value", "scale_rewards": "batch", "learning_rate": 1e-3, "max_new_tokens": 8}
CASES: dict[str, dict[str, Any]] = {
    "one step": {},
    "four steps in micro-batches of one row": {"iterations": 4, "tokens_per_micro_batch": 1},
    "not whitened, a discount": {"scale_rewards": "none", "critic": {"gamma": 0.9, "lam": 0.5, "vf_coef": 0.5}},
    "values that may move little": {"iterations": 3, "critic": {"cliprange_value": 0.01, "learning_rate": 0.05}},
    "the trunk learns nothing of the values": {"iterations": 2, "critic": {"vf_coef": 0.0}},
    "a hidden layer, no clipping": {"iterations": 2, "critic": {"hidden": 8, "cliprange_value": None}},
    "a mean over rollouts, temperature": {"loss_type": "grpo", "temperature": 0.7, "iterations": 2},
    "truncated rollouts left out": {"mask_truncated_completions": True, "iterations": 2},
    "packed": {"layout": "packed", "iterations": 2},
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_three_updates_move_policy_and_head_as_a_plain_loop_does(cache: Path, options: dict[str, Any]) -> None:
    settings = PPO | options
    learner, other = trainer(cache, **settings), trainer(cache, model=OTHER, **settings)
    oracle = PlainPPO(learner)
    began = weights(learner)
    for number in range(3):
        own = contribution_of(learner, round_of(number))
        sent = contribution_of(other, round_of(number, peer="other"))
        state = state_of(round_of(number), [own, sent])
        rewards = scored(state, lambda rollout: sum(map(ord, rollout.text)) % 7 / 7 + len(rollout.token_ids) / 100)
        expected = oracle.update(state, rewards)
        metrics = learner.train(state, rewards)
        assert metrics["groups_external"] == 4
        assert metrics["value"] == pytest.approx(expected["value"], abs=2e-4)
        assert metrics["explained_variance"] == pytest.approx(expected["explained"], abs=2e-3)
    for found, wanted, before in (
        (weights(learner), dict(oracle.model.named_parameters()), began),
        (dict(learner._critic.head.named_parameters()), dict(oracle.head.named_parameters()), oracle.began),
    ):
        moved = torch.cat([(wanted[name] - before[name]).flatten() for name in before])
        apart = torch.cat([(wanted[name] - found[name].detach()).flatten() for name in before])
        assert float(moved.detach().norm()) > 1e-3
        assert float(apart.detach().norm() / moved.detach().norm()) < 5e-3


class PlainPPO:
    """PPO on the learner's model, a rollout at a time and without padding; its head begins with the same weights."""

    def __init__(self, learner: GRPOTrainer) -> None:
        self.learner, self.config, self.options = learner, learner.config, learner.config.critic_options
        self.model = AutoModelForCausalLM.from_pretrained(learner.policy.source.name, dtype=torch.float32).eval()
        self.head: nn.Module = value_head(32, self.options.hidden, 0)
        assert learner._critic is not None
        self.head.load_state_dict(learner._critic.head.state_dict())
        self.began = {name: value.detach().clone() for name, value in self.head.named_parameters()}
        self.adam = torch.optim.AdamW(self.model.parameters(), lr=self.config.learning_rate, weight_decay=0.0)
        self.head_adam = torch.optim.AdamW(self.head.parameters(), lr=self.options.learning_rate, weight_decay=0.0)

    def update(self, state: GameState, rewards: Rewards) -> dict[str, float]:
        rows = []
        for key in [*(key for key, _ in state.own_groups()), *state.external]:
            group = state.group_of(key)
            for rollout, reward in zip(group.rollouts, rewards[key], strict=True):
                row: dict[str, Any] = {
                    "prompt": list(self.learner.policy.encode(group.prompt)),
                    "completion": list(rollout.token_ids),
                    "sampled": torch.tensor(list(rollout.logprobs)),
                    "own": key.peer == "me",
                    "counts": not (
                        self.config.mask_truncated_completions and rollout.finish_reason is FinishReason.LENGTH
                    ),
                }
                with torch.no_grad():
                    started, hidden = self.read(row)
                    row["values"] = self.head(hidden).squeeze(1)
                row["old"] = row["sampled"] if row["own"] else started
                row["weight"] = torch.ones_like(started)
                if not row["own"]:
                    row["weight"] = (started - row["sampled"]).exp().clamp(max=1.0)
                row["advantages"] = self.gae(row["values"], reward)
                row["returns"] = row["values"] + row["advantages"]
                rows.append(row)
        own = [row for row in rows if row["own"] and row["counts"]]
        every = torch.cat([row["advantages"] for row in own])
        if self.config.scale_rewards == "batch":
            for row in rows:
                row["advantages"] = (row["advantages"] - every.mean()) / (every.std() + 1e-4)
        values, returns = (torch.cat([row[name] for row in own]) for name in ("values", "returns"))
        kept = [row for row in rows if row["counts"]]
        tokens = sum(len(row["completion"]) for row in kept)
        own_tokens = sum(len(row["completion"]) for row in own)
        for _ in range(self.config.iterations):
            self.adam.zero_grad()
            self.head_adam.zero_grad()
            for row in kept:
                self.backward(row, len(rows), tokens, own_tokens)
            for module, adam in ((self.model, self.adam), (self.head, self.head_adam)):
                torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
                adam.step()
        explained = 1 - (returns - values).var(correction=0) / returns.var(correction=0)
        return {"value": float(values.mean()), "explained": float(explained)}

    def read(self, row: dict[str, Any]) -> tuple[Tensor, Tensor]:
        ids = torch.tensor([row["prompt"] + row["completion"]])
        found = self.model(input_ids=ids, output_hidden_states=True)
        place = slice(len(row["prompt"]) - 1, -1)
        logprobs = (found.logits[0, place] / self.config.temperature).log_softmax(-1)
        chosen = logprobs.gather(1, torch.tensor(row["completion"]).unsqueeze(1)).squeeze(1)
        return chosen, found.hidden_states[-1][0, place]

    def gae(self, values: Tensor, reward: float) -> Tensor:
        """Return the sum over later differences, as equation 16 of the paper writes it."""
        gamma, lam, count = self.options.gamma, self.options.lam, len(values)
        after = torch.cat([values[1:], torch.zeros(1)])
        paid = torch.zeros(count)
        paid[-1] = reward
        difference = paid + gamma * after - values
        return torch.stack(
            [
                sum(((gamma * lam) ** (later - at) * difference[later] for later in range(at, count)), torch.zeros(()))
                for at in range(count)
            ]
        )

    def backward(self, row: dict[str, Any], rollouts: int, tokens: int, own_tokens: int) -> None:
        new, hidden = self.read(row)
        ratio, advantage = (new - row["old"]).exp(), row["advantages"]
        clipped = ratio.clamp(1 - self.config.epsilon, 1 + self.config.epsilon)
        loss = -torch.min(ratio * advantage, clipped * advantage) * row["weight"]
        policy = loss.mean() / rollouts if self.config.loss_type == "grpo" else loss.sum() / tokens
        if not row["own"]:
            policy.backward()
            return
        # The head descends the value loss itself, the trunk `vfCoef` of it.
        head = list(self.head.parameters())
        for_head = torch.autograd.grad(self.value_loss(row, hidden.detach(), own_tokens), head)
        for parameter, gradient in zip(head, for_head, strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        trunk = list(self.model.parameters())
        total = policy + self.options.vf_coef * self.value_loss(row, hidden, own_tokens)
        for parameter, gradient in zip(trunk, torch.autograd.grad(total, trunk), strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def value_loss(self, row: dict[str, Any], hidden: Tensor, tokens: int) -> Tensor:
        values, clip = self.head(hidden).squeeze(1), self.options.cliprange_value
        error = (values - row["returns"]) ** 2
        if clip is not None:
            bounded = torch.max(torch.min(values, row["values"] + clip), row["values"] - clip)
            error = torch.max(error, (bounded - row["returns"]) ** 2)
        return 0.5 * error.sum() / tokens
