"""Training on what another engine generated: its log-probabilities are corrected for, measured, and its weights kept
at the policy's version.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from another_engine import with_engine
from language_rounds import contribution_of, play, round_of, scored, small_letters, state_of, trainer
from pydantic import ValidationError
from torch import Tensor
from transformers import AutoModelForCausalLM
from vllm_stand_in import Engine, StandIn

from swarmgame.errors import InvalidManifest
from swarmgame.trainer.grpo.batch import training_batches
from swarmgame.trainer.grpo.trainer import GRPOTrainer


def moments(learner: GRPOTrainer) -> dict[str, Tensor]:
    return {name: found["exp_avg"] for name, found in learner.state_dict()["optimization"]["moments"].items()}


def furthest(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def test_own_rollouts_of_another_engine_are_weighted_like_those_of_a_remote_policy(cache: Path) -> None:
    learner = with_engine(trainer(cache), 0.5)
    state = state_of(round_of(), [contribution_of(learner, round_of())])
    [update] = training_batches(state, scored(state), learner.policy, learner.config, exact=False)
    assert update.samples
    assert all(
        sample.sampler_logprobs is None and sample.behavior_logprobs is not None and not sample.remote
        for sample in update.samples
    )
    metrics = learner.train(state, scored(state))
    # Every second token was reported as less likely than it is: it counts for e^0.5, the others for 1.
    assert 1.15 < metrics["importance"] < 1.65
    assert metrics["groups_external"] == 0


def test_the_mismatch_with_the_engine_is_what_is_reported(cache: Path) -> None:
    learner = with_engine(trainer(cache, generations=6), 0.5)
    metrics = play(learner, 0)
    per_token = float(torch.tensor(0.5).exp() - 0.5 - 1)
    assert 0.3 * per_token < metrics["mismatch_kl"] < 0.6 * per_token
    assert play(with_engine(trainer(cache, generations=6), 0.0), 0)["mismatch_kl"] < 1e-6


def test_an_engine_with_our_own_numbers_makes_our_own_update(cache: Path) -> None:
    ours, theirs = trainer(cache), with_engine(trainer(cache), 0.0)
    first, second = play(ours, 0), play(theirs, 0)
    assert second["importance"] == pytest.approx(1.0, abs=1e-4)
    assert second["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-3)
    assert furthest(moments(ours), moments(theirs)) < 1e-5


def test_the_bound_on_the_weights_holds_for_an_engine_too(cache: Path) -> None:
    metrics = play(with_engine(trainer(cache, importance_cap=1.2), 5.0), 0)
    assert metrics["importance"] <= 1.2


@pytest.mark.parametrize(
    "options",
    [{}, {"lora": {"rank": 4}}, {"min_new_tokens": 4}],
    ids=["all weights", "adapters", "a minimum length"],
)
def test_a_trainer_with_a_server_trains_and_samples_with_the_new_weights(
    cache: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    source = trainer(cache).policy.source.name
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    engine = Engine(model, lora="lora" in options)
    with StandIn(engine) as server:
        sampler = {"engine": "vllm", "url": server.url, "weightsFolder": str(tmp_path / "weights"), "startupSeconds": 5}
        learner = trainer(cache, sampler=sampler, max_prompt_tokens=64, learning_rate=2e-2, **options)
        history: list[dict[str, float]] = [dict(play(learner, number, small_letters)) for number in range(4)]
        for number, metrics in enumerate(history):
            assert metrics["mismatch_kl"] < 1e-5
            assert metrics["importance"] == pytest.approx(1.0, abs=1e-3)
            assert metrics["engine_requests"] == 4
            assert metrics["engine_pushes"] == (2 if number == 0 else 1)
            assert metrics["engine_retries"] == metrics["engine_stale"] == 0
        fresh = contribution_of(learner, round_of(9))
        for group in fresh.groups:
            ids = [sample.token_ids for sample in group.rollouts]
            with torch.no_grad():
                logprobs, _, _ = learner.policy.score([group.prompt.token_ids] * len(ids), ids)
            for row, sample in zip(logprobs, group.rollouts, strict=True):
                assert row[: len(sample.token_ids)].tolist() == pytest.approx(sample.logprobs, abs=1e-4)
        learner.close()
        assert not list((tmp_path / "weights").iterdir())


def test_a_resumed_trainer_pushes_the_weights_that_it_resumed_with(cache: Path, tmp_path: Path) -> None:
    source = trainer(cache).policy.source.name
    engine = Engine(AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval())
    with StandIn(engine) as server:
        sampler = {"engine": "vllm", "url": server.url, "weightsFolder": str(tmp_path), "startupSeconds": 5}
        first = trainer(cache, sampler=sampler, max_prompt_tokens=64)
        play(first, 0)
        label = engine.weight_version
        second = trainer(cache, sampler=sampler, max_prompt_tokens=64)
        second.load_state_dict(first.state_dict())
        # The same version in another life of the peer is another label: its weights may differ.
        assert engine.weight_version != label
        assert engine.weight_version.endswith("-1")
        assert contribution_of(second, round_of(3)).groups
        assert second.train(state_of(round_of(3), []), {})["engine_stale"] == 0


INVALID: Sequence[tuple[dict[str, Any], str]] = [
    ({"engine": "vlm"}, "engine"),
    ({"engine": "vllm", "urls": "http://x"}, "urls"),
    ({"engine": "vllm", "gpuMemoryUtilization": 1.5}, "gpuMemoryUtilization"),
    ({"engine": "vllm", "tensorParallelSize": "2"}, "tensorParallelSize"),
    ({"engine": "vllm", "arguments": ["--port=1"]}, "no --port"),
    ({"engine": "vllm", "weightsFolder": "/x"}, "nothing without url"),
]


@pytest.mark.parametrize(("sampler", "named"), INVALID)
def test_a_mistake_in_the_options_is_named(cache: Path, sampler: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        trainer(cache, sampler=sampler)


def test_adapters_of_a_rank_that_vllm_does_not_take_are_refused(cache: Path) -> None:
    with pytest.raises(ValidationError, match="rank 512 at most"):
        trainer(cache, sampler={"engine": "vllm", "url": "http://x"}, lora={"rank": 1024})


def test_a_key_that_is_not_set_is_named(cache: Path) -> None:
    with pytest.raises(
        InvalidManifest, match=r'apiKeyEnv is "NO_SUCH_KEY"; expected the name of an environment variable that is set'
    ):
        trainer(cache, sampler={"engine": "vllm", "url": "http://x", "apiKeyEnv": "NO_SUCH_KEY"})


def test_without_vllm_the_error_explains_the_installation(cache: Path) -> None:
    with pytest.raises(InvalidManifest, match=r"sampler\.command .*uv tool install vllm"):
        trainer(cache, sampler={"engine": "vllm", "command": ["no-such-vllm"]})
