"""The TRL trainer against `grpo`: the same update with equal options, own and remote rollouts, several rounds."""

from __future__ import annotations

import inspect
import os
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from language_rounds import (
    contribution_of,
    furthest,
    round_of,
    scored,
    state_of,
    trainer,
    trl_trainer,
    weights,
    with_groups,
)
from torch import Tensor

from swarmgame.errors import InvalidManifest
from swarmgame.game.state import GameState, Group, Rollout
from swarmgame.trainer.grpo.trainer import GRPOTrainer
from swarmgame.trainer.trl.config import TrlConfig
from swarmgame.trainer.trl.trainer import TrlTrainer

OTHER = "builtin://tiny?accuracy=0&layers=1&hidden=32&seed=5"
NAMES = {
    "iterations": "num_iterations",
    "importance_mode": "vllm_importance_sampling_mode",
    "importance_cap": "vllm_importance_sampling_clip_max",
    "importance_floor": "vllm_importance_sampling_clip_min",
}
"""Options of `grpo` that TRL calls otherwise."""
BESIDE = {"temperature", "tokens_per_micro_batch", "lora", "dtype", "update"}
"""Options that are no options of TRL."""
CASES: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo", "iterations": 2, "tokens_per_micro_batch": 60},
    "dr_grpo": {"loss_type": "dr_grpo", "tokens_per_micro_batch": 60},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28, "iterations": 3, "tokens_per_micro_batch": 1},
    "bnpo": {"loss_type": "bnpo", "iterations": 2, "tokens_per_micro_batch": 60},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.2, "iterations": 3, "tokens_per_micro_batch": 60},
    "luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence", "iterations": 2},
    "sapo": {"loss_type": "sapo", "iterations": 2, "sapo_temperature_neg": 2.0},
    "vespo": {"loss_type": "vespo", "iterations": 2, "importance_mode": "token_mask"},
    "sequence ratios": {"loss_type": "grpo", "importance_sampling_level": "sequence", "iterations": 2},
    "a reference": {"loss_type": "grpo", "beta": 0.2, "iterations": 2, "tokens_per_micro_batch": 60},
    "a reference, by tokens": {"beta": 0.2, "iterations": 2, "use_bias_correction_kl": False},
    "high entropy only": {"top_entropy_quantile": 0.5, "iterations": 2, "tokens_per_micro_batch": 60},
    "masked and bounded": {
        "iterations": 2,
        "delta": 1.9,
        "epsilon": 0.4,
        "mask_truncated_completions": True,
        "off_policy_mask_threshold": 0.05,
        "tokens_per_micro_batch": 60,
    },
    "truncated masked, by rollouts": {"loss_type": "grpo", "mask_truncated_completions": True},
    "rewards scaled by the batch": {"scale_rewards": "batch"},
    "temperature and decay": {"iterations": 2, "temperature": 0.7, "weight_decay": 0.1},
    "weights of whole rollouts": {"importance_mode": "sequence_mask", "importance_cap": 2.0},
    "adapters": {"lora": {"rank": 4}, "beta": 0.1, "iterations": 2},
    "a step a stage": {"update": "per-stage"},
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tmp_path_factory.mktemp("models")


def pair(cache: Path, options: Mapping[str, Any], *, max_influence: float = 0.5) -> tuple[GRPOTrainer, TrlTrainer]:
    """Return both trainers with equal options."""
    options = {"learning_rate": 1e-3, "importance_mode": "token_truncate", **options}
    beside = {name: value for name, value in options.items() if name in BESIDE}
    theirs = {NAMES.get(name, name): value for name, value in options.items() if name not in BESIDE}
    return (
        trainer(cache, max_influence=max_influence, **options),
        trl_trainer(cache, theirs, max_influence=max_influence, **beside),
    )


def reward(rollout: Rollout) -> float:
    return sum(map(ord, rollout.text)) % 7 / 7 + len(rollout.token_ids) / 100


def round_with(ours: GRPOTrainer, other: GRPOTrainer, number: int) -> GameState:
    """Return a round with groups of both policies."""
    own, sent = contribution_of(ours, round_of(number)), contribution_of(other, round_of(number, peer="other"))
    return state_of(round_of(number), [own, sent])


def trained(learner: GRPOTrainer) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in learner.weights().items()}


def flat(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([(left[name] - right[name]).flatten() for name in left])


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_trl_makes_the_update_of_grpo(cache: Path, options: dict[str, Any]) -> None:
    ours, theirs = pair(cache, options)
    other = trainer(cache, model=OTHER)
    for number in range(2):
        state = round_with(ours, other, number)
        rewards = scored(state, reward)
        before = trained(ours)
        expected, found = ours.train(state, rewards), theirs.train(state, rewards)
        moved = flat(trained(ours), before)
        assert float(moved.norm()) > 1e-3
        assert float(flat(trained(ours), trained(theirs)).norm() / moved.norm()) < 1e-3
        assert float(flat(trained(ours), trained(theirs)).abs().max()) < 1e-4
        same = ("steps", "groups_external", "groups_trained", "tokens_trained", "remote_influence", "remote_dropped")
        assert [found[name] for name in same] == pytest.approx([expected[name] for name in same], abs=1e-4)
        shared = ("loss", "grad_norm", "learning_rate", "entropy", "kl", "mismatch_kl", "ratio", "importance")
        assert [found[name] for name in shared] == pytest.approx(
            [expected[name] for name in shared], rel=1e-3, abs=1e-4, nan_ok=True
        )
        assert expected["groups_external"] == 4
        assert theirs.policy_version == ours.policy_version > 0


def test_a_falling_learning_rate_is_that_of_grpo(cache: Path) -> None:
    ours = trainer(cache, learning_rate=1e-3, schedule="linear", total_rounds=3)
    theirs = trl_trainer(cache, {"learning_rate": 1e-3, "lr_scheduler_type": "linear", "max_steps": 3})
    for number, rate in enumerate((1e-3, 1e-3 * 2 / 3, 1e-3 / 3)):
        state = state_of(round_of(number), [contribution_of(ours, round_of(number))])
        expected, found = ours.train(state, scored(state, reward)), theirs.train(state, scored(state, reward))
        assert found["learning_rate"] == pytest.approx(expected["learning_rate"]) == pytest.approx(rate)
        assert furthest(weights(ours), weights(theirs)) < 1e-4


def test_remote_claims_that_cannot_be_true_get_no_weight(cache: Path) -> None:
    ours, theirs = pair(cache, {"loss_type": "grpo"})
    own = contribution_of(ours, round_of())

    def lowered(group: Group) -> Group:
        """Claim 20 nats less than it was sampled with."""
        low = [tuple(value - 20 / len(each.logprobs) for value in each.logprobs) for each in group.rollouts]
        rollouts = zip(group.rollouts, low, strict=True)
        return Group(group.prompt, tuple(replace(each, logprobs=claims) for each, claims in rollouts))

    state = state_of(round_of(), [own, with_groups(own, lowered)])
    rewards = scored(state, reward)
    expected, found = ours.train(state, rewards), theirs.train(state, rewards)
    assert found["improbable_share"] == expected["improbable_share"] > 0.9
    assert furthest(weights(ours), weights(theirs)) < 1e-4
    for key in state.external:
        for our_use, their_use in zip(ours.last_update()[key], theirs.last_update()[key], strict=True):
            assert their_use == pytest.approx(our_use, abs=1e-4)
    assert theirs.remote_uses()["other"].refused == ours.remote_uses()["other"].refused


def test_a_round_without_a_signal_changes_nothing_but_an_entropy_bonus_does(cache: Path) -> None:
    plain = trl_trainer(cache, {"learning_rate": 1e-3})
    bonus = trl_trainer(cache, {"learning_rate": 1e-3, "entropy_coef": 0.1})
    state = state_of(round_of(), [contribution_of(plain, round_of())])
    before = weights(plain)
    assert plain.train(state, scored(state, lambda _: 0.5))["steps"] == 0
    assert furthest(before, weights(plain)) == 0
    assert bonus.train(state, scored(state, lambda _: 0.5))["steps"] == 1
    assert furthest(before, weights(bonus)) > 1e-4


def test_a_negative_norm_never_clips_and_turns_no_gradient(cache: Path) -> None:
    learners = [trl_trainer(cache, {"learning_rate": 1.0, "optim": "sgd", "max_grad_norm": norm}) for norm in (0, -1.0)]
    before = trained(learners[0])
    state = state_of(round_of(), [contribution_of(learners[0], round_of())])
    for learner in learners:
        learner.train(state, scored(state, reward))
    assert float(flat(trained(learners[0]), before).norm()) > 1e-3
    assert float(flat(*map(trained, learners)).abs().max()) < 1e-6


def test_the_entropy_bonus_is_for_our_own_rollouts_alone(cache: Path) -> None:
    options = {"learning_rate": 1.0, "entropy_coef": 1.0, "optim": "sgd", "max_grad_norm": 0}
    alone, joined = trl_trainer(cache, options), trl_trainer(cache, options)
    other = trainer(cache, model=OTHER)
    own = contribution_of(alone, round_of())
    before = trained(alone)
    for learner, state in (
        (alone, state_of(round_of(), [own])),
        (joined, state_of(round_of(), [own, contribution_of(other, round_of(peer="other"))])),
    ):
        learner.train(state, scored(state, lambda _: 0.5))
    left, right = flat(trained(alone), before), flat(trained(joined), before)
    assert float(torch.cosine_similarity(left, right, dim=0)) > 0.9999
    assert float(left.norm()) > 1e-3


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"lr_scheduler_type": "cosine", "max_steps": 9, "num_iterations": 2}, {}),
        ({"optim": "adafactor"}, {}),
        ({"optim": "sgd", "optim_args": "momentum=0.9", "learning_rate": 0.05}, {}),
        ({}, {"lora": {"rank": 4, "dropout": 0.2}}),
        ({}, {"dtype": "bfloat16"}),
    ],
    ids=["a schedule", "adafactor", "sgd with momentum", "adapters with dropout", "bfloat16"],
)
def test_a_resumed_trainer_goes_on_bit_by_bit(cache: Path, options: dict[str, Any], fields: dict[str, Any]) -> None:
    options = {"learning_rate": 1e-3, **options}
    first = trl_trainer(cache, options, **fields)
    for number in range(2):
        state = state_of(round_of(number), [contribution_of(first, round_of(number))])
        first.train(state, scored(state, reward))
    again = trl_trainer(cache, options, **fields)
    again.load_state_dict(first.state_dict())
    state = state_of(round_of(2), [contribution_of(first, round_of(2))])
    assert contribution_of(again, round_of(2)).groups == contribution_of(first, round_of(2)).groups
    before = trained(first)
    assert first.train(state, scored(state, reward)) == pytest.approx(
        again.train(state, scored(state, reward)), nan_ok=True, rel=0, abs=0
    )
    assert all(torch.equal(value, trained(again)[name]) for name, value in trained(first).items())
    assert float(flat(trained(first), before).norm()) > 0


def test_weights_in_bfloat16_have_copies_in_float32_that_small_steps_move(cache: Path) -> None:
    learner = trl_trainer(cache, {"learning_rate": 1e-6}, dtype="bfloat16")
    before = trained(learner)
    assert {value.dtype for value in before.values()} == {torch.float32}
    state = state_of(round_of(), [contribution_of(learner, round_of())])
    learner.train(state, scored(state, reward))
    moved = flat(trained(learner), before)
    assert float((moved != 0).float().mean()) > 0.5


def test_an_export_is_that_of_grpo_and_needs_no_trl(cache: Path, tmp_path: Path) -> None:
    ours, theirs = pair(cache, {"loss_type": "grpo"})
    saved = theirs.state_dict()
    ours.export(tmp_path / "ours")
    config, state = TrlTrainer.prepare_export(TrlConfig(options={"loss_type": "grpo"}), saved)
    exported = TrlTrainer(config, theirs.context)
    assert not hasattr(exported, "_learner")
    exported.load_state_dict(state)
    exported.export(tmp_path / "theirs")
    theirs.export(tmp_path / "while training")
    for folder in ("theirs", "while training"):
        names = sorted(path.name for path in (tmp_path / "ours").iterdir())
        assert names == sorted(path.name for path in (tmp_path / folder).iterdir())
        for name in names:
            assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / folder / name).read_bytes(), name


def test_creating_a_trainer_leaves_the_process_as_it_was(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    environment = dict(os.environ)
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    learner = trl_trainer(cache, {})
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected
    assert dict(os.environ) == environment
    assert list(tmp_path.iterdir()) == []
    assert learner.policy.model.config.use_cache == trainer(cache).policy.model.config.use_cache


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"loss_type": "gspo"}, "options.loss_type is \"gspo\"; expected 'grpo', 'dr_grpo'"),
        ({"loss_type": "cispo"}, "loss cispo needs epsilon_high"),
        ({"loss_type": "vespo"}, "vllm_importance_sampling_mode must be token_truncate or token_mask"),
        ({"optim": "adamx"}, "adamx is not a valid OptimizerNames"),
        ({"lr_scheduler_type": "cosine"}, "options.max_steps is missing; expected how many optimizer steps"),
        ({"lr_scheduler_type": "linear"}, "rounds times num_iterations, times stages with update: per-stage"),
        ({"warmup_steps": 0.1}, "options.max_steps is missing"),
        ({"lr_scheduler_type": "greedy", "max_steps": 5}, "a schedule that is a function of the number of steps"),
    ],
)
def test_values_that_trl_does_not_take_are_refused_when_a_game_is_checked(
    options: dict[str, Any], expected: str
) -> None:
    from swarmgame.game.components import ComponentContext

    with pytest.raises(InvalidManifest) as caught:
        TrlTrainer.check_with(TrlConfig(options=options), ComponentContext(), None)
    assert expected in str(caught.value)


def test_an_optimizer_that_is_not_installed_is_refused_by_name(cache: Path) -> None:
    with pytest.raises(InvalidManifest, match=r"options\.optim is \"schedule_free_adamw\"; expected an optimizer of"):
        trl_trainer(cache, {"optim": "schedule_free_adamw"})


def test_the_installed_trl_has_every_name_that_is_used() -> None:
    from trl import GRPOTrainer as Trl

    from swarmgame.trainer.trl.learner import missing_hooks
    from swarmgame.trainer.trl.options import PASSED

    assert missing_hooks() == ()
    source = inspect.getsource(Trl._compute_loss)
    read = (
        'inputs["prompt_ids"], inputs["prompt_mask"]',
        'inputs["completion_ids"], inputs["completion_mask"]',
        'inputs["tool_mask"]',
        'inputs["advantages"]',
        'inputs.get("old_per_token_logps")',
        'inputs["importance_sampling_ratio"]',
        'inputs["ref_per_token_logps"]',
        'inputs["num_items_in_batch"]',
        "self.use_vllm and self.vllm_importance_sampling_correction",
        "self.current_gradient_accumulation_steps if mode",
        'mode = "train" if self.model.training else "eval"',
        "self._metrics[mode]",
    )
    assert [name for name in read if name not in source] == []
    from trl import GRPOConfig as TrlArguments

    assert [name for name in PASSED if name not in TrlArguments.__dataclass_fields__] == []


def test_a_trl_without_such_a_name_is_refused_by_that_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from swarmgame.trainer.trl import learner

    monkeypatch.setattr(learner, "HOOKS", {**learner.HOOKS, "score_rows": ("rows",), "compute_loss": ("samples",)})
    with pytest.raises(
        InvalidManifest, match=r"has no score_rows, compute_loss\(samples\)|compute_loss\(samples\), score"
    ):
        learner.make_arguments(TrlConfig(), "cpu")
