"""PPO in the GRPO trainer: what learns from which rollouts, resume, adapters, environments, and what is refused."""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from language_rounds import contribution_of, furthest, play, round_of, scored, state_of, trainer, weights
from pydantic import ValidationError
from torch import Tensor

from swarmgame.errors import InvalidManifest
from swarmgame.game.ranks import OneRank
from swarmgame.game.state import FinishReason, Rollout, Segment
from swarmgame.trainer.grpo.config import CriticOptions, GRPOConfig, Lora
from swarmgame.trainer.grpo.critic import value_head
from swarmgame.trainer.grpo.samples import TrainingSample
from swarmgame.trainer.grpo.trainer import GRPOTrainer
from swarmgame.trainer.trl.config import TrlConfig

PPO: dict[str, Any] = {"baseline": "value", "scale_rewards": "batch"}
OTHER = "builtin://tiny?accuracy=0&layers=1&hidden=32&seed=5"


def head(learner: GRPOTrainer) -> dict[str, Tensor]:
    assert learner._critic is not None
    return {name: parameter.detach().clone() for name, parameter in learner._critic.head.named_parameters()}


def test_the_head_learns_what_rewards_are_to_be_expected(cache: Path) -> None:
    learner = trainer(cache, **PPO, learning_rate=0.0, critic=CriticOptions(learning_rate=0.05))
    found = [play(learner, number, lambda rollout: 0.75) for number in range(40)]
    assert found[0]["value"] == 0, "the first value is 0"
    assert found[-1]["value"] == pytest.approx(0.75, abs=0.1)
    assert found[-1]["value_loss"] < 0.1 * found[0]["value_loss"]
    metrics = play(trainer(cache), 0)
    assert not {"value", "value_loss", "value_clip", "explained_variance"} & metrics.keys()


def test_rewards_that_are_all_equal_train_too(cache: Path) -> None:
    learner = trainer(cache, **PPO)
    before = weights(learner)
    assert play(learner, 0, lambda rollout: 1.0)["steps"] == 1
    assert furthest(before, weights(learner)) > 0
    assert any(float(value.abs().max()) > 0 for value in head(learner).values())


def test_a_policy_learns_by_ppo(cache: Path) -> None:
    learner = trainer(cache, **PPO, iterations=2, generations=8, critic=CriticOptions(learning_rate=0.01))

    def letters(rollout: Rollout) -> float:
        return sum(character.islower() for character in rollout.text) / 8

    means = []
    for number in range(40):
        state = state_of(round_of(number), [contribution_of(learner, round_of(number))])
        rewards = scored(state, letters)
        means.append(sum(map(sum, rewards.values())) / 32)
        learner.train(state, rewards)
    assert sum(means[-5:]) / 5 > sum(means[:5]) / 5 + 0.15, means


def test_a_resume_is_exact_with_the_head_and_its_moments(cache: Path) -> None:
    options = {**PPO, "critic": CriticOptions(hidden=4), "iterations": 2}
    first = trainer(cache, **options)
    for number in range(2):
        play(first, number)
    state = copy.deepcopy(first.state_dict())
    again = trainer(cache, **options)
    again.load_state_dict(state)
    for number in (2, 3):
        left, right = play(first, number), play(again, number)
        assert repr(left) == repr(right)
    assert furthest(weights(first), weights(again)) == 0
    assert furthest(head(first), head(again)) == 0
    assert {name for name in first.weights() if name.startswith("critic.")} == {
        f"critic.{name}" for name in head(first)
    }


def test_a_change_of_the_baseline_on_a_resume_is_said(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain, learner = trainer(cache), trainer(cache, **PPO)
    play(plain, 0), play(learner, 0)
    with caplog.at_level(logging.WARNING):
        trainer(cache, **PPO).load_state_dict(plain.state_dict())
        assert "the checkpoint has no value head" in caplog.text
        trainer(cache).load_state_dict(learner.state_dict())
        assert "the checkpoint has a value head, which is left out" in caplog.text
    with pytest.raises(ValueError, match=r"another one than spec\.game\.trainer\.with\.critic\.hidden gives"):
        trainer(cache, **PPO, critic=CriticOptions(hidden=3)).load_state_dict(learner.state_dict())


def test_an_export_needs_no_head_and_warns_of_nothing(
    cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    learner = trainer(cache, **PPO)
    play(learner, 0)
    config, state = GRPOTrainer.prepare_export(learner.config, learner.state_dict())
    exported = GRPOTrainer(config, learner.context)
    with caplog.at_level(logging.WARNING):
        exported.load_state_dict(state)
    assert "value head" not in caplog.text
    assert furthest(weights(exported), weights(learner)) == 0
    exported.export(tmp_path / "exported")
    assert (tmp_path / "exported" / "model.safetensors").exists()


def test_the_head_learns_from_our_own_rollouts_alone(cache: Path) -> None:
    options = {**PPO, "learning_rate": 0.0}  # the same trunk for both
    alone, joined, other = trainer(cache, **options), trainer(cache, **options), trainer(cache, model=OTHER)
    own = contribution_of(alone, round_of())
    sent = contribution_of(other, round_of(peer="other"))
    for learner, contributions in ((alone, [own]), (joined, [own, sent])):
        state = state_of(round_of(), contributions)
        rewards = {
            key: [float(len(each.token_ids)) + (5.0 if key.peer == "other" else 0.0) for each in group.rollouts]
            for key, group in state.groups()
        }
        metrics = learner.train(state, rewards)
        assert metrics["steps"] == 1
    assert metrics["groups_external"] == 4
    assert furthest(head(alone), head(joined)) == pytest.approx(0, abs=1e-6)


def test_rollouts_of_others_have_a_bounded_share_of_the_advantages(cache: Path) -> None:
    options = {**PPO, "max_influence": 0.25}
    learner, other = trainer(cache, **options), trainer(cache, model=OTHER)
    own = contribution_of(learner, round_of())
    sent = contribution_of(other, round_of(peer="other"))
    state = state_of(round_of(), [own, sent])
    rewards = {
        key: [(100.0 if key.peer == "other" else 1.0) * (-1) ** place for place in range(len(group.rollouts))]
        for key, group in state.groups()
    }
    metrics = learner.train(state, rewards)
    assert 0 < metrics["remote_influence"] <= 0.25 + 1e-6
    uses = [use for key, uses in learner.last_update().items() if key.peer == "other" for use in uses]
    assert max(use.weight for use in uses) < 0.1


def test_adapters_learn_by_ppo_and_resume_exactly(cache: Path) -> None:
    options = {**PPO, "lora": Lora(rank=2), "critic": CriticOptions(vf_coef=1.0)}
    first = trainer(cache, **options)
    base = weights(first)
    play(first, 0), play(first, 1)
    moved = weights(first)
    assert all(torch.equal(base[name], moved[name]) for name in base if "lora" not in name)
    assert any(not torch.equal(base[name], moved[name]) for name in base if "lora" in name)
    again = trainer(cache, **options)
    again.load_state_dict(copy.deepcopy(first.state_dict()))
    assert repr(play(first, 2)) == repr(play(again, 2))


def test_values_without_memory_for_a_micro_batch_come_from_smaller_ones(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, pressed = trainer(cache, **PPO), trainer(cache, **PPO)
    play(plain, 0), play(pressed, 0)
    score, failed = pressed.policy.score, []

    def small_device(prompts: Any, completions: Any, states: Any) -> Any:
        outcome = score(prompts, completions, states)
        if len(prompts) > 4:
            failed.append(torch.is_grad_enabled())
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return outcome

    monkeypatch.setattr(pressed.policy, "score", small_device)
    found = [play(learner, 1) for learner in (plain, pressed)]
    assert set(failed) == {False}, "it runs out before the update, in the pass without gradient"
    assert found[1]["value"] == pytest.approx(found[0]["value"], rel=1e-4)
    assert found[1]["explained_variance"] == pytest.approx(found[0]["explained_variance"], rel=1e-3)
    assert furthest(weights(plain), weights(pressed)) < 1e-5
    monkeypatch.setattr(pressed.policy, "is_sharded", True)
    pressed._tokens_per_micro_batch = 10_000
    assert pressed._critic is not None
    samples = [TrainingSample((5, 6), (7, 8), 0.0, truncated=False) for _ in range(8)]
    with pytest.raises(InvalidManifest, match=r"tokensPerMicroBatch is 10000; expected fewer"):
        pressed._critic._estimate(samples)


@pytest.mark.parametrize("rank", [0, 1], ids=["one sample", "none"])
def test_ranks_of_a_sharded_policy_agree_on_their_passes_before_the_first_one(cache: Path, rank: int) -> None:
    learner = trainer(cache, **PPO)
    critic, policy = learner._critic, learner.policy
    assert critic is not None
    sample = TrainingSample((5, 6), (7, 8, 9), 0.0, truncated=False)
    order: list[str] = []

    class OneOfTwo(OneRank):
        size = 2

        def gather(self, payload: bytes) -> list[bytes]:
            order.append("values")
            return [payload or bytes(8 * sample.tokens_trained), b""]

    critic._ranks = OneOfTwo()
    critic._ranks.rank = rank
    critic._empty_passes = lambda own: (order.append("agree"), 1 - len(own))[1]
    score = policy.score
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy, "score", lambda *given: (order.append("pass"), score(*given))[1])
        patch.setattr(policy, "empty_pass", lambda **options: order.append("empty pass"))
        (values,) = critic._estimate([sample])
    assert order == ["agree", "pass" if rank == 0 else "empty pass", "values"]
    assert values == [0.0] * sample.tokens_trained


@pytest.mark.parametrize("are_turns", [True, False], ids=["rewards of turns", "a reward of the whole"])
def test_a_game_of_two_turns_gives_the_advantages_computed_by_hand(cache: Path, are_turns: bool) -> None:
    """Turns of one token each: the second follows the first in GAE, and what the environment wrote between has none."""
    learner = trainer(cache, **PPO | {"scale_rewards": "none"}, generations=2, critic=CriticOptions(lam=0.5))
    own = contribution_of(learner, round_of())
    given = ((1.0, -0.5), (0.25, 0.75)) if are_turns else ((), ())

    def transcript(rollout: Rollout, rewards: tuple[float, ...]) -> Rollout:
        ids = (rollout.token_ids[0], 5, 6, 7, rollout.token_ids[0])
        segments = (Segment(1, "a"), Segment(3, "said"), Segment(1, "b"))
        sampled = (rollout.logprobs[0],) * 2
        return Rollout("b", ids, sampled, FinishReason.STOP, segments=segments, turn_rewards=rewards)

    groups = tuple(replace(group, rollouts=tuple(map(transcript, group.rollouts, given))) for group in own.groups)
    state = state_of(round_of(), [replace(own, groups=groups)])
    assert learner._critic is not None
    seen: list[Any] = []
    advantages = learner._critic.advantages
    learner._critic.advantages = lambda groups: (seen.extend(groups), advantages(groups))[1]  # type: ignore[method-assign]
    metrics = learner.train(state, {key: [0.5, 1.0] for key, _ in state.groups()})
    assert metrics["steps"] == 1
    assert len(seen) == 4
    # Values are 0 at first, so a token has its own reward and half of the next one's.
    expected = ([0.75, -0.5], [0.625, 0.75]) if are_turns else ([0.25, 0.5], [0.5, 1.0])
    for samples, _ in seen:
        for sample, (first, last) in zip(samples, expected, strict=True):
            assert sample.token_advantages == sample.returns == pytest.approx((first, 0, 0, 0, last))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale_rewards": "group"}, "scaleRewards must be batch or none"),
        ({"loss_type": "gspo"}, "loss gspo weighs a rollout by one a rollout: use dapo, grpo"),
        ({"loss_type": "vespo"}, "loss vespo"),
        ({"loss_type": "luspo"}, "loss luspo"),
        ({"loss_type": "my.module:loss"}, "loss my.module:loss takes one a rollout"),
        ({"importance_sampling_level": "sequence"}, "importanceSamplingLevel sequence is one ratio a rollout"),
        ({"off_policy_mask_threshold": 1.0}, "offPolicyMaskThreshold drops rollouts by the sign of theirs"),
        ({"baseline": "mean", "critic": {}}, "critic has no effect with baseline mean"),
    ],
)
def test_what_cannot_be_joined_with_values_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message.replace(".", r"\.")):
        GRPOConfig(**{**PPO, **options})


@pytest.mark.parametrize("name", ["baseline", "critic"])
def test_trl_refuses_a_value_function_and_names_the_trainer_that_has_one(name: str) -> None:
    with pytest.raises(ValidationError, match=f"{name} is an option of grpo.*PPO is use: grpo with baseline: value"):
        TrlConfig.model_validate({name: "value", "options": {}})


def test_a_model_without_a_head_of_its_own_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = trainer(cache)
    monkeypatch.setattr(type(learner.policy.model), "get_output_embeddings", lambda self: None)
    with pytest.raises(InvalidManifest, match=r'with\.baseline is "value"; expected mean.* names no head'):
        trainer(cache, **PPO)


def test_a_head_is_the_same_for_the_same_seed_and_leaves_the_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    one, two, other = (value_head(4, 3, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one[0].weight, two[0].weight)
    assert not torch.equal(one[0].weight, other[0].weight)
    assert float(one(torch.ones(2, 4)).abs().max().detach()) == 0
    assert not math.isnan(float(value_head(4, 0, 0)(torch.ones(1, 4)).detach()))
