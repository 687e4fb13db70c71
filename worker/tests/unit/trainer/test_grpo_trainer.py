"""The GRPO trainer: sampling, training, state, and configuration."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from language_rounds import (
    contribution_of,
    furthest,
    play,
    questions,
    round_of,
    scored,
    small_letters,
    state_of,
    trainer,
    weights,
)
from pydantic import ValidationError
from torch import Tensor

from swarmgame.game.state import FinishReason, Message, Prompt, Sampling
from swarmgame.trainer.grpo import batch as batch_module
from swarmgame.trainer.grpo.batch import training_batches
from swarmgame.trainer.grpo.config import GRPOConfig
from swarmgame.trainer.grpo.policy import Policy
from swarmgame.trainer.grpo.trainer import GRPOTrainer

MODEL_2 = "builtin://tiny?accuracy=0&layers=1&hidden=32&seed=5"


def gradients(learner: GRPOTrainer) -> dict[str, Tensor]:
    """What AdamW remembers of the gradients. Weights would compare worse: a first step is the gradient's sign, also
    where that is rounding.
    """
    return {name: moments["exp_avg"] for name, moments in learner.state_dict()["optimization"]["moments"].items()}


# ── sampling


def test_groups_come_in_the_order_of_prompts_with_ids_and_text(cache: Path) -> None:
    learner = trainer(cache)
    contribution = contribution_of(learner, round_of())
    assert [group.question_id for group in contribution.groups] == [question.id for question in questions()]
    for group in contribution.groups:
        assert group.prompt.token_ids == learner.policy.encode(group.prompt)
        assert len(group.rollouts) == 4
        for sample in group.rollouts:
            assert sample.text == learner.decode(sample.token_ids)
            assert (sample.token_ids[-1] in learner.policy.eos_token_ids) == (sample.finish_reason is FinishReason.STOP)


def test_what_is_sampled_depends_on_the_round_and_the_stage_and_not_on_what_happened_before(cache: Path) -> None:
    learner, fresh = trainer(cache), trainer(cache)
    first = contribution_of(learner, round_of(3)).groups
    torch.rand(100)
    contribution_of(learner, round_of(4)), contribution_of(learner, replace(round_of(3), evaluation=True))
    assert contribution_of(learner, round_of(3)).groups == first == contribution_of(fresh, round_of(3)).groups
    assert contribution_of(learner, round_of(3), stage=1).groups[0].rollouts != first[0].rollouts
    assert contribution_of(learner, round_of(5)).groups != first


def test_evaluation_takes_the_likeliest_tokens(cache: Path) -> None:
    learner = trainer(cache, evaluation_generations=2)
    groups = contribution_of(learner, replace(round_of(), evaluation=True)).groups
    for group in groups:
        assert group.rollouts[0] == group.rollouts[1]
    assert contribution_of(learner, replace(round_of(9), evaluation=True)).groups == groups


def test_a_sampled_evaluation_has_as_many_rollouts_as_the_game_asks_for_at_its_temperature(cache: Path) -> None:
    learner = trainer(cache, temperature=2.0)
    asked = replace(round_of(), evaluation=True, sampling=Sampling(6))
    groups = contribution_of(learner, asked).groups
    assert {len(group.rollouts) for group in groups} == {6}
    assert any(len(set(group.rollouts)) > 1 for group in groups)
    assert contribution_of(learner, asked).groups == groups
    hot, cold = (
        contribution_of(learner, replace(asked, sampling=Sampling(6, temperature))).groups
        for temperature in (2.0, 0.001)
    )
    assert hot == groups  # without a temperature of its own it is that of training
    assert all(len({rollout.token_ids for rollout in group.rollouts}) == 1 for group in cold)


def test_a_chat_template_is_used_where_there_is_one_and_plain_text_otherwise(cache: Path) -> None:
    policy = trainer(cache).policy
    prompt = Prompt("x", (Message("system", "be brief"), Message("user", "hello")))
    assert policy.decode(policy.encode(prompt)) == "be brief\n\nhello"
    policy.tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}[me]{% endif %}"
    )
    assert policy.decode(policy.encode(prompt)) == "[system]be brief[user]hello[me]"


def test_a_prompt_that_is_too_long_loses_its_beginning(cache: Path) -> None:
    policy = trainer(cache, max_prompt_tokens=5).policy
    assert policy.decode(policy.encode(Prompt("x", (Message("user", "abcdefgh"),)))) == "defgh"


def test_ids_outside_the_vocabulary_have_no_text(cache: Path) -> None:
    policy = trainer(cache).policy
    assert policy.decode([-1]) is None
    assert policy.decode([10**9]) is None
    assert policy.decode([]) == ""


# ── learning


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_training_logprob_of_a_fresh_rollout_is_the_samplers(cache: Path, temperature: float) -> None:
    learner = trainer(cache, temperature=temperature)
    for group in contribution_of(learner, round_of()).groups:
        ids = [sample.token_ids for sample in group.rollouts]
        logprobs, _, mask = learner.policy.score([group.prompt.token_ids] * len(ids), ids)
        for row, sample in zip(logprobs, group.rollouts, strict=True):
            assert row[: len(sample.token_ids)].tolist() == pytest.approx(sample.logprobs, abs=1e-4)
        assert int(mask.sum()) == sum(map(len, ids))


def test_eos_is_in_the_targets_so_a_policy_that_is_paid_for_stopping_learns_to_stop(cache: Path) -> None:
    learner = trainer(cache, generations=16, max_new_tokens=64, learning_rate=1e-2)
    eos = learner.policy.eos_token_ids[0]
    state = state_of(round_of(), [contribution_of(learner, round_of())])

    def stopped(sample: Any) -> float:
        return float(sample.finish_reason is FinishReason.STOP)

    assert sum(map(stopped, (r for _, group in state.groups() for r in group.rollouts))) > 0
    [update] = training_batches(state, scored(state, stopped), learner.policy, learner.config)
    assert all((sample.completion[-1] == eos) == (not sample.truncated) for sample in update.samples)
    before = [sample for sample in update.samples if not sample.truncated]
    with torch.no_grad():
        was = learner.policy.score([sample.prompt for sample in before], [sample.completion for sample in before])[0]
    learner.train(state, scored(state, stopped))
    with torch.no_grad():
        now = learner.policy.score([sample.prompt for sample in before], [sample.completion for sample in before])[0]
    ends = torch.tensor([len(sample.completion) - 1 for sample in before])
    rise = (now - was)[torch.arange(len(before)), ends]
    assert float(rise.mean()) > 0.1
    assert float((rise > 0).float().mean()) > 0.7


def test_skipping_groups_of_equal_rewards_leaves_the_gradient_as_it_was(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score_some(sample: Any) -> float:
        return small_letters(sample) if sample in usable else 1.0

    plain = batch_module.ragged_advantages
    outcomes = []
    for keep in (False, True):
        learner = trainer(cache, generations=6, loss_type="grpo")
        state = state_of(round_of(), [contribution_of(learner, round_of())])
        usable = set(state.own_groups()[0][1].rollouts) | set(state.own_groups()[2][1].rollouts)
        rewards = scored(state, score_some)
        if keep:  # so small that it moves nothing, but not zero, so that nothing is skipped
            monkeypatch.setattr(
                batch_module,
                "ragged_advantages",
                lambda *args, **kwargs: [[value or 1e-30 for value in group] for group in plain(*args, **kwargs)],
            )
        [update] = training_batches(state, rewards, learner.policy, learner.config)
        metrics = learner.train(state, rewards)
        outcomes.append((len(update.samples), update.normalizer, metrics["grad_norm"], gradients(learner)))
    (skipped, *_), (complete, *_) = outcomes
    assert skipped < complete
    assert outcomes[0][1] == outcomes[1][1]
    assert outcomes[0][2] == pytest.approx(outcomes[1][2], rel=1e-5)
    assert furthest(outcomes[0][3], outcomes[1][3]) < 1e-6


@pytest.mark.parametrize(
    "options", [{}, {"beta": 0.1}, {"loss_type": "grpo", "top_entropy_quantile": 0.5}, {"gradient_checkpointing": True}]
)
def test_how_a_batch_is_cut_does_not_change_the_update(cache: Path, options: dict[str, Any]) -> None:
    results = []
    for tokens in (16_384, 60):
        learner = trainer(cache, tokens_per_micro_batch=tokens, weight_decay=0.1, **options)
        metrics = play(learner, 0)
        results.append((gradients(learner), metrics))
    assert furthest(results[0][0], results[1][0]) < 1e-6
    assert results[1][1] == pytest.approx(results[0][1], rel=1e-3, abs=1e-5, nan_ok=True)


def test_running_out_of_memory_halves_the_micro_batches_and_changes_nothing_else(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, pressed = trainer(cache), trainer(cache)
    score: Callable[..., Any] = pressed.policy.score

    def small_device(prompts: Any, completions: Any) -> Any:
        outcome = score(prompts, completions)
        if len(prompts) > 4:
            outcome[0].sum().backward()  # some gradients are there already when memory runs out
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return outcome

    monkeypatch.setattr(pressed.policy, "score", small_device)
    play(plain, 0), play(pressed, 0)
    assert furthest(gradients(plain), gradients(pressed)) < 1e-6
    assert pressed.state_dict()["tokens_per_micro_batch"] < plain.state_dict()["tokens_per_micro_batch"]


def test_a_round_without_anything_to_learn_moves_neither_weights_nor_moments(cache: Path) -> None:
    learner = trainer(cache)
    play(learner, 0)
    before = copy.deepcopy(learner.state_dict())
    metrics = play(learner, 1, score=lambda _: 0.5)
    after = learner.state_dict()
    assert metrics["zero_advantage_share"] == 1.0
    assert metrics["steps"] == 0
    assert math.isnan(metrics["grad_norm"])
    assert after["policy_version"] == before["policy_version"] == 1
    for name, moments in after["optimization"]["moments"].items():
        assert all(torch.equal(value, before["optimization"]["moments"][name][key]) for key, value in moments.items())
    assert all(
        torch.equal(value, before["optimization"]["weights"][name])
        for name, value in after["optimization"]["weights"].items()
    )


def test_a_gradient_that_is_not_finite_is_left_out(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = trainer(cache)
    before = weights(learner)
    score: Callable[..., Any] = learner.policy.score
    monkeypatch.setattr(learner.policy, "score", lambda *args: (score(*args)[0] * math.nan, *score(*args)[1:]))
    metrics = play(learner, 0)
    assert metrics["steps_skipped"] == 1
    assert learner.policy_version == 0
    assert furthest(before, weights(learner)) == 0


def test_rewards_may_be_missing_and_groups_ragged(cache: Path) -> None:
    learner = trainer(cache)
    contribution = contribution_of(learner, round_of())
    groups = list(contribution.groups)
    groups[0] = replace(groups[0], rollouts=groups[0].rollouts[:2])
    state = state_of(round_of(), [replace(contribution, groups=tuple(groups))])
    rewards = {key: list(values) for key, values in scored(state).items()}
    keys = list(rewards)
    rewards[keys[0]] = [0.0, 1.0]
    rewards[keys[1]] = [math.nan, math.nan, math.nan, 1.0]
    rewards[keys[2]] = [math.nan, 0.0, 1.0, 0.0]
    del rewards[keys[3]]
    metrics = learner.train(state, rewards)
    assert metrics["groups_unscored"] == 2
    assert metrics["groups_trained"] == 2
    assert metrics["tokens_trained"] == sum(
        len(sample.token_ids) for sample in (*groups[0].rollouts, *groups[2].rollouts[1:])
    )


@pytest.mark.parametrize(("update", "steps"), [("per-round", 1), ("per-stage", 2), ("none", 0)])
def test_the_update_rule_decides_how_many_steps_a_round_makes(cache: Path, update: str, steps: int) -> None:
    learner = trainer(cache, update=update)
    round = round_of(stages=2)
    state = state_of(round, [contribution_of(learner, round), contribution_of(learner, round, stage=1)])
    before = weights(learner)
    metrics = learner.train(state, scored(state))
    assert metrics["steps"] == learner.policy_version == steps
    assert (furthest(before, weights(learner)) > 0) == (steps > 0)


def test_more_iterations_move_the_policy_away_from_its_sampler(cache: Path) -> None:
    learner = trainer(cache, iterations=3)
    metrics = play(learner, 0)
    assert learner.policy_version == 3
    assert metrics["mismatch_kl"] > 1e-6


def test_the_learning_rate_warms_up_and_falls(cache: Path) -> None:
    learner = trainer(cache, learning_rate=1e-3, warmup_rounds=2, schedule="linear", total_rounds=4)
    assert [play(learner, number)["learning_rate"] for number in range(5)] == pytest.approx(
        [5e-4, 1e-3, 1e-3, 5e-4, 0.0]
    )


# ── precision, adapters, reference


def test_adapters_alone_are_trained_and_saved(cache: Path) -> None:
    learner = trainer(cache, lora={"rank": 4, "dropout": 0.1})
    before = weights(learner)
    for number in range(2):
        play(learner, number)
    changed = {name for name, value in weights(learner).items() if not torch.equal(value, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    assert all("lora_" in name for name in learner.state_dict()["optimization"]["weights"])


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_the_reference_is_the_model_as_it_was_loaded(cache: Path, lora: dict[str, int] | None) -> None:
    learner = trainer(cache, beta=0.1, lora=lora, learning_rate=1e-2)
    first, second = play(learner, 0), play(learner, 1)
    assert first["kl"] == pytest.approx(0.0, abs=1e-6)
    assert second["kl"] > 1e-6


def test_weights_of_low_precision_learn_through_a_float32_copy(cache: Path) -> None:
    learner = trainer(cache, dtype="bfloat16", learning_rate=1e-4)
    before = {name: value.clone() for name, value in learner.state_dict()["optimization"]["weights"].items()}
    play(learner, 0)
    state = learner.state_dict()["optimization"]["weights"]
    assert all(value.dtype == torch.float32 for value in state.values())
    assert all(parameter.dtype == torch.bfloat16 for parameter in learner.policy.model.parameters())
    # A step of 1e-4 is below the resolution of most bfloat16 weights, and must not be lost for that.
    moved = torch.cat([(state[name] - before[name]).abs().flatten() for name in state])
    assert float((moved > 0).float().mean()) > 0.9


# ── keeping


@pytest.mark.parametrize("options", [{}, {"lora": {"rank": 4, "dropout": 0.2}}, {"dtype": "bfloat16"}])
def test_rounds_after_a_reload_are_those_of_an_uninterrupted_run_bit_for_bit(
    cache: Path, options: dict[str, Any]
) -> None:
    straight = trainer(cache, warmup_rounds=3, **options)
    metrics = [play(straight, number) for number in range(4)]
    first = trainer(cache, warmup_rounds=3, **options)
    for number in range(2):
        play(first, number)
    saved = copy.deepcopy(first.state_dict())
    torch.manual_seed(99)
    resumed = trainer(cache, warmup_rounds=3, **options)
    play(resumed, 7)  # whatever this process has done before
    resumed.load_state_dict(saved)
    again = [play(resumed, number) for number in (2, 3)]
    assert furthest(weights(straight), weights(resumed)) == 0
    assert again == [pytest.approx(one, rel=0, abs=0, nan_ok=True) for one in metrics[2:]]
    assert resumed.policy_version == straight.policy_version == 4


def test_the_state_of_another_model_is_refused(cache: Path) -> None:
    saved = trainer(cache, model="builtin://tiny?accuracy=0&layers=2&hidden=32").state_dict()
    with pytest.raises(ValueError, match=r"another base model: it was .*layers=2.* and is .*layers=1"):
        trainer(cache).load_state_dict(saved)


def test_what_is_exported_is_loaded_by_the_same_path_as_any_model(cache: Path, tmp_path: Path) -> None:
    learner = trainer(cache)
    play(learner, 0)
    learner.export(tmp_path)
    again = trainer(cache, model=f"file://{tmp_path}")
    assert again.tokenizer == learner.tokenizer
    assert furthest(weights(learner), weights(again)) == 0
    assert contribution_of(again, round_of(1)).groups == contribution_of(learner, round_of(1)).groups


def test_a_reward_for_a_letter_rises(cache: Path) -> None:
    learner = trainer(cache, generations=16, max_new_tokens=8, learning_rate=5e-3)
    shares = []
    for number in range(30):
        state = state_of(round_of(number), [contribution_of(learner, round_of(number))])
        rewards = scored(state, lambda sample: sample.text.count("e") / 8)
        shares.append(sum(map(sum, rewards.values())) / sum(map(len, rewards.values())))
        learner.train(state, rewards)
    assert sum(shares[:3]) / 3 < 0.1
    assert sum(shares[-5:]) / 5 > 0.5


# ── configuration


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        ({"generations": 1}, "greater than or equal to 2"),
        ({"schedule": "cosine"}, "totalRounds"),
        ({"warmupRounds": 5, "totalRounds": 5}, "above warmupRounds"),
        ({"minNewTokens": 65}, "above maxNewTokens"),
        ({"lora": {"rang": 4}}, "rang"),
        ({"temperatur": 1.0}, "temperatur"),
    ],
)
def test_an_impossible_configuration_is_refused_with_its_reason(block: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        GRPOConfig.model_validate(block)


def test_a_policy_needs_a_model_address(cache: Path) -> None:
    from swarmgame.errors import InvalidManifest
    from swarmgame.game.components import ComponentContext

    with pytest.raises(InvalidManifest, match=r"spec\.model\.uri"):
        Policy(GRPOConfig(), ComponentContext(cache=cache))
