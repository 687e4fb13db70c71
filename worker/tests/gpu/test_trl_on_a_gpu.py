"""The TRL trainer on a CUDA device: it makes the update of `grpo`, and learns in bfloat16."""

from __future__ import annotations

from pathlib import Path

import torch
from language_rounds import contribution_of, play, round_of, scored, state_of, trainer, trl_trainer


def test_it_makes_the_update_of_grpo_in_float32(cache: Path, device: str) -> None:
    ours = trainer(cache, device=device, dtype="float32", learning_rate=1e-3, iterations=2)
    options = {"learning_rate": 1e-3, "num_iterations": 2}
    theirs = trl_trainer(cache, options, device=device, dtype="float32")
    before = {name: value.clone() for name, value in ours.weights().items()}
    state = state_of(round_of(), [contribution_of(ours, round_of())])
    ours.train(state, scored(state)), theirs.train(state, scored(state))
    moved = torch.cat([(value - before[name]).flatten() for name, value in ours.weights().items()])
    apart = torch.cat([(value - theirs.weights()[name]).flatten() for name, value in ours.weights().items()])
    assert float(moved.norm()) > 1e-3
    assert float(apart.norm() / moved.norm()) < 1e-2
    assert next(iter(theirs.weights().values())).device == torch.device(device)


def test_it_learns_in_bfloat16_and_keeps_its_copy_in_float32(cache: Path, device: str) -> None:
    learner = trl_trainer(cache, {"learning_rate": 1e-2}, device=device, generations=16)
    rounds = [play(learner, number) for number in range(20)]
    assert learner.policy.model.dtype == torch.bfloat16
    assert {value.dtype for value in learner.weights().values()} == {torch.float32}
    assert sum(metrics["steps"] for metrics in rounds) > 3
    assert all(abs(metrics["mismatch_kl"]) < 0.1 for metrics in rounds if metrics["steps"])
