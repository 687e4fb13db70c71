"""Whole updates of the GRPO trainer against a plain loop: a rollout at a time, no padding, no micro-batches.

Own rollouts and those of another policy, several steps, minimum lengths, temperature, decay and a reference. Where a
ratio lies on the edge of the clip range rounding decides, so the cases keep away from it.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from language_rounds import contribution_of, round_of, scored, state_of, trainer
from torch import Tensor
from transformers import AutoModelForCausalLM

from swarmgame.game.state import FinishReason, GameState, Rewards
from swarmgame.trainer.grpo.trainer import GRPOTrainer

OTHER = "builtin://tiny?accuracy=0&layers=1&hidden=32&seed=5"
CASES: dict[str, dict[str, Any]] = {
    "one step": {},
    "three steps in micro-batches of one row": {"iterations": 3, "tokens_per_micro_batch": 1},
    "a mean over rollouts": {"iterations": 2, "loss_type": "grpo", "scale_rewards": "batch", "epsilon": 0.5},
    "cispo": {"iterations": 3, "loss_type": "cispo", "epsilon_high": 1.2},
    "a reference": {"iterations": 2, "loss_type": "grpo", "beta": 0.2},
    "masked and bounded": {"iterations": 2, "delta": 1.9, "epsilon": 0.4, "mask_truncated_completions": True},
    "temperature and decay": {"iterations": 2, "temperature": 0.7, "weight_decay": 0.1},
    "a minimum length": {"iterations": 2, "min_new_tokens": 3, "max_new_tokens": 6},
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_a_whole_update_moves_the_weights_as_a_plain_loop_does(cache: Path, options: dict[str, Any]) -> None:
    settings = {"learning_rate": 1e-3, "max_new_tokens": 8, **options}
    learner, other = trainer(cache, **settings), trainer(cache, model=OTHER, **settings)
    own, sent = contribution_of(learner, round_of()), contribution_of(other, round_of(peer="other"))
    state = state_of(round_of(), [own, sent])
    rewards = scored(state, lambda rollout: sum(map(ord, rollout.text)) % 7 / 7 + len(rollout.token_ids) / 100)
    before = {name: value.detach().clone() for name, value in learner.policy.model.named_parameters()}
    expected = plain_update(learner, state, rewards)
    metrics = learner.train(state, rewards)
    assert metrics["groups_external"] == 4
    assert metrics["steps"] == settings.get("iterations", 1)
    after = dict(learner.policy.model.named_parameters())
    moved = torch.cat([(expected[name] - before[name]).flatten() for name in before])
    apart = torch.cat([(expected[name] - after[name].detach()).flatten() for name in before])
    assert float(moved.norm()) > 1e-3
    assert float(apart.norm() / moved.norm()) < 1e-3


def plain_update(learner: GRPOTrainer, state: GameState, rewards: Rewards) -> dict[str, Tensor]:
    config = learner.config
    model = AutoModelForCausalLM.from_pretrained(learner.policy.source.name, dtype=torch.float32).eval()
    reference = copy.deepcopy(model)
    matrices = [value for value in model.parameters() if value.dim() > 1]
    others = [value for value in model.parameters() if value.dim() == 1]
    groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay)
    rows = rows_of(learner, state, rewards)
    with torch.no_grad():
        for row in rows:
            row["reference"], started = (logprobs_of(each, row, learner) for each in (reference, model))
            row["old"] = row["sampled"] if row["own"] else started
            ratio = (started - row["sampled"]).exp().clamp(max=1.0)  # a claim only lowers a weight
            row["weight"] = torch.ones_like(started) if row["own"] else ratio
    kept = [row for row in rows if not (config.mask_truncated_completions and row["cut"])]
    tokens = sum(len(row["completion"]) for row in kept)
    for _ in range(config.iterations):
        optimizer.zero_grad()
        for row in kept:
            loss = loss_of(row, logprobs_of(model, row, learner), config)
            (loss.mean() / len(rows) if config.loss_type == "grpo" else loss.sum() / tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
    return {name: value.detach() for name, value in model.named_parameters()}


def rows_of(learner: GRPOTrainer, state: GameState, rewards: Rewards) -> list[dict[str, Any]]:
    keys = [*(key for key, _ in state.own_groups()), *state.external]
    every = torch.tensor([reward for key in keys for reward in rewards[key]], dtype=torch.float64)
    rows = []
    for key in keys:
        group = state.group_of(key)
        values = torch.tensor(list(rewards[key]), dtype=torch.float64)
        scale = every.std() if learner.config.scale_rewards == "batch" else values.std()
        for rollout, advantage in zip(group.rollouts, (values - values.mean()) / (scale + 1e-4), strict=True):
            rows.append(
                {
                    "prompt": list(learner.policy.encode(group.prompt)),
                    "completion": list(rollout.token_ids),
                    "sampled": torch.tensor(list(rollout.logprobs)),
                    "advantage": float(advantage),
                    "own": key.peer == "me",
                    "cut": rollout.finish_reason is FinishReason.LENGTH,
                }
            )
    return rows


def logprobs_of(model: Any, row: dict[str, Any], learner: GRPOTrainer) -> Tensor:
    ids = torch.tensor([row["prompt"] + row["completion"]])
    logits = model(input_ids=ids).logits[0, len(row["prompt"]) - 1 : -1] / learner.config.temperature
    early = torch.zeros_like(logits, dtype=torch.bool)
    early[: learner.config.min_new_tokens, list(learner.policy.eos_token_ids)] = True
    allowed = logits.masked_fill(early, -torch.inf).log_softmax(-1)
    return allowed.gather(1, torch.tensor(row["completion"]).unsqueeze(1)).squeeze(1)


def loss_of(row: dict[str, Any], new: Tensor, config: Any) -> Tensor:
    ratio, advantage = (new - row["old"]).exp(), row["advantage"]
    if config.loss_type == "cispo":
        return -ratio.clamp(max=config.epsilon_high).detach() * advantage * new * row["weight"]
    bounded = ratio if config.delta is None else ratio.clamp(max=config.delta)
    clipped = ratio.clamp(1 - config.epsilon, 1 + (config.epsilon_high or config.epsilon))
    loss = -torch.min(bounded * advantage, clipped * advantage) * row["weight"]
    if config.beta:
        behind = row["reference"] - new
        # Not where another policy chose the text: it would choose where ours is pulled.
        loss = loss + config.beta * (behind.exp() - behind - 1) * ratio * row["own"]
    return loss
