"""The GRPO trainer on a CUDA device: it learns, samples what it scores, and adapts to the device's memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from language_rounds import contribution_of, play, round_of, scored, small_letters, state_of, trainer

from swarmgame.game.state import Contribution
from swarmgame.inference.continuous_batching import EngineSampler
from swarmgame.trainer.grpo.trainer import GRPOTrainer


def graphs(learner: GRPOTrainer) -> int:
    sampler = learner._generation.sampler
    assert isinstance(sampler, EngineSampler)
    return sum(graph.is_captured for arena in sampler._arenas.values() for graph in arena._steps.values())


def gradients(learner: GRPOTrainer) -> dict[str, torch.Tensor]:
    return {name: moments["exp_avg"].cpu() for name, moments in learner.state_dict()["optimization"]["moments"].items()}


def furthest(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def mean_reward(contribution: Contribution) -> float:
    rewards = [small_letters(rollout) for group in contribution.groups for rollout in group.rollouts]
    return sum(rewards) / len(rewards)


def only(mebibytes: int) -> None:
    """From here on torch may have that much more memory than it holds."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (mebibytes << 20)) / total)


@pytest.mark.parametrize(
    "options", [{}, {"lora": {"rank": 4}, "learning_rate": 2e-2}, {"sampler": "eager"}], ids=["full", "lora", "eager"]
)
def test_a_policy_learns_in_bfloat16(cache: Path, device: str, options: dict[str, Any]) -> None:
    learner = trainer(cache, device=device, **{"generations": 16, "learning_rate": 1e-2} | options)
    assert learner.policy.model.dtype == torch.bfloat16
    before = mean_reward(contribution_of(learner, round_of(1000)))
    rounds = [play(learner, number) for number in range(30)]
    after = mean_reward(contribution_of(learner, round_of(1000)))
    assert after > before + 0.1
    updated = [metrics for metrics in rounds if metrics["steps"] == 1]
    assert len(updated) > 5
    assert all(abs(metrics["mismatch_kl"]) < 0.1 for metrics in updated)


def test_steps_are_graphs_which_are_made_once(cache: Path, device: str) -> None:
    learner = trainer(cache, device=device, max_new_tokens=40)
    play(learner, 0)
    made = graphs(learner)
    assert made >= 1
    for number in range(1, 5):
        play(learner, number)
    assert graphs(learner) <= made + 2  # fewer slots, where rows had finished early


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sampler", ["eager", "cudagraph"])
def test_the_training_logprob_of_a_fresh_rollout_is_the_samplers(
    cache: Path, device: str, sampler: str, dtype: str
) -> None:
    learner = trainer(cache, device=device, dtype=dtype, sampler=sampler, max_new_tokens=32)
    for group in contribution_of(learner, round_of()).groups:
        ids = [sample.token_ids for sample in group.rollouts]
        logprobs, _, _ = learner.policy.score([group.prompt.token_ids] * len(ids), ids)
        for row, sample in zip(logprobs, group.rollouts, strict=True):
            assert row[: len(sample.token_ids)].tolist() == pytest.approx(
                sample.logprobs, abs=1e-4 if dtype == "float32" else 0.15
            )


def test_the_update_is_that_of_a_cpu(cache: Path, device: str) -> None:
    there, here = trainer(cache, device=device, dtype="float32"), trainer(cache, dtype="float32")
    state = state_of(round_of(), [contribution_of(here, round_of())])
    for learner in (there, here):
        learner.train(state, scored(state))
    assert furthest(gradients(there), gradients(here)) < 1e-5


def test_a_new_trainer_samples_the_same_with_the_saved_weights(cache: Path, device: str) -> None:
    learner, fresh = trainer(cache, device=device), trainer(cache, device=device)
    play(learner, 0)
    fresh.load_state_dict(learner.state_dict())
    assert contribution_of(fresh, round_of(1)).groups == contribution_of(learner, round_of(1)).groups


def test_running_out_of_memory_while_training_halves_the_micro_batches(
    cache: Path, device: str, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {
        "dtype": "float32",
        "generations": 512,
        "max_new_tokens": 32,
        "tokens_per_micro_batch": 1 << 24,
    }
    plain, pressed = trainer(cache, device=device, **options), trainer(cache, device=device, **options)
    state = state_of(round_of(), [contribution_of(plain, round_of())])
    plain.train(state, scored(state))
    assert not caplog.records
    contribution_of(pressed, round_of())  # so that there are graphs, whose memory is given back first
    only(64)
    pressed.train(state, scored(state))
    assert "out of memory while training" in caplog.text
    assert graphs(pressed) == 0
    assert furthest(gradients(plain), gradients(pressed)) < 1e-5
    assert pressed.state_dict()["tokens_per_micro_batch"] < 1 << 22


def test_running_out_of_memory_while_sampling_gives_the_same_in_smaller_batches(
    cache: Path, device: str, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {
        "dtype": "float32",
        "generations": 2048,
        "max_new_tokens": 64,
        "rollouts_per_batch": 1 << 20,
    }
    expected = [
        r.token_ids
        for group in contribution_of(trainer(cache, device=device, **options), round_of()).groups
        for r in group.rollouts
    ]
    pressed = trainer(cache, device=device, **options)
    only(150)
    sampled = [r.token_ids for group in contribution_of(pressed, round_of()).groups for r in group.rollouts]
    assert "out of memory while sampling" in caplog.text
    # Batches of another size are other kernels: a few tokens of very many may differ by rounding.
    assert sum(one == other for one, other in zip(sampled, expected, strict=True)) > 0.99 * len(expected)
