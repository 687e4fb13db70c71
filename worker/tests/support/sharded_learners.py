"""What the ranks of a sharded policy must do, as functions that each of them runs (`test_sharded_ranks.py`)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import language_rounds as rounds
import pytest
import torch
from torch import Tensor

from swarmgame.errors import Temporary
from swarmgame.game.ranks import OneRank, Ranks
from swarmgame.game.state import GameState
from swarmgame.runtime.checkpoint import CheckpointStore
from swarmgame.runtime.weights import weights_hash
from swarmgame.trainer.grpo import trainer as trainer_module
from swarmgame.trainer.grpo.config import CriticOptions, Lora
from swarmgame.trainer.grpo.request import request_of
from swarmgame.trainer.grpo.trainer import GRPOTrainer
from swarmgame.trainer.shards import complete, is_sharded, own_part

MODEL = "builtin://tiny?accuracy=0&layers=2&hidden=32"
CRITIC: dict[str, Any] = {
    "baseline": "value",
    "scale_rewards": "batch",
    "critic": CriticOptions(learning_rate=1e-4, vf_coef=1.0),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "padded": {"layout": "padded"},
    "packed": {"layout": "packed"},
    "packed, checkpointed, a reference": {
        "layout": "packed",
        "gradient_checkpointing": True,
        "iterations": 2,
        "beta": 0.1,
    },
    "padded, checkpointed, a reference": {"layout": "padded", "gradient_checkpointing": True, "beta": 0.1},
    "packed adapters": {"layout": "packed", "lora": Lora(rank=3), "beta": 0.1},
    "padded adapters, checkpointed": {"layout": "padded", "lora": Lora(rank=1), "gradient_checkpointing": True},
    "bfloat16": {"layout": "packed", "dtype": "bfloat16"},
    "bfloat16 under float32 adapters": {"layout": "packed", "dtype": "bfloat16", "lora": Lora(rank=2)},
    "packed, a critic": {"layout": "packed", **CRITIC, "iterations": 2},
    "padded adapters, a critic": {"layout": "padded", "lora": Lora(rank=2), **CRITIC},
    "padded, checkpointed, a critic that learns alone": {
        "layout": "padded",
        "gradient_checkpointing": True,
        **CRITIC,
        "critic": CriticOptions(learning_rate=1e-4, vf_coef=0.0, hidden=3),
        "tokens_per_micro_batch": 60,
    },
    "small micro-batches, entropies": {
        "layout": "packed",
        "top_entropy_quantile": 0.5,
        "tokens_per_micro_batch": 40,
        "max_grad_norm": 0.01,
    },
}
BOUND = 1e-6
"""Of differences in float32. AdamW makes a full step of any gradient, even of a rounding error: the learning rate is
small.
"""


def learner(cache: Path, ranks: Ranks, sharding: str, **options: Any) -> GRPOTrainer:
    return rounds.trainer(cache, model=MODEL, ranks=ranks, **({"learning_rate": 1e-4, "sharding": sharding} | options))


def trained(ranks: Ranks, learners: Sequence[GRPOTrainer], numbers: Sequence[int]) -> None:
    """Train all on the same rollouts, and compare their metrics."""
    for number in numbers:
        state, rewards = _scored(learners[0], number)
        expected, *others = (each.train(state, rewards) for each in learners)
        assert expected["steps"] >= 1, expected
        for found in others:
            differences = {name: abs(expected[name] - found[name]) for name in expected}
            assert not any(difference > BOUND for difference in differences.values()), (expected, found)


def saved(cache: Path, ranks: Ranks, learner: GRPOTrainer, number: int) -> dict[str, Any]:
    """Return the state as a checkpoint gives it to every rank."""
    state = learner.state_dict()
    store = CheckpointStore(cache / f"checkpoints-{number}")
    if ranks.rank == 0:
        store.save(number, state)
    else:
        assert state["optimization"] == {"weights": {}, "moments": {}}
    ranks.broadcast(b"saved" if ranks.rank == 0 else None)
    return dict(store.load(number).state)


def shards_hold_half_and_train_alike(cache: Path, ranks: Ranks) -> None:
    for name, options in VARIANTS.items():
        whole, parts = (learner(cache, ranks, sharding, **options) for sharding in ("none", "full"))
        every = dict(parts.policy.trained.named_parameters())
        assert all(map(is_sharded, every.values())), "frozen ones too"
        assert not any(is_sharded(parameter) for parameter in whole.policy.trained.parameters())
        held, total = (
            sum(own_part(parameter).numel() for parameter in every.values()),
            sum(parameter.numel() for parameter in every.values()),
        )
        assert 0.48 < held / total < 0.52, (name, held, total)
        moments = parts._optimization._adam.state
        trained(ranks, [parts, whole], range(3))
        kept = sum(values["exp_avg"].numel() for values in moments.values())
        assert kept == sum(own_part(parameter).numel() for parameter in parts.policy.parameters.values()), name
        _assert_near(rounds.weights(whole), rounds.weights(parts), name)  # what samples
        if whole._critic is not None:
            _assert_near(_head(whole), _head(parts), name)
        left, right = (_optimization(each) for each in (whole, parts))
        if ranks.rank == 0:
            _assert_near(left, right, name)


def a_rank_without_rows_takes_part(cache: Path, ranks: Ranks) -> None:
    for options in (VARIANTS["packed, checkpointed, a reference"], VARIANTS["small micro-batches, entropies"]):
        whole, parts = (learner(cache, ranks, sharding, **options) for sharding in ("none", "full"))
        with _shares(lambda samples, rank, size: list(samples) if rank == 0 else []):
            trained(ranks, [parts, whole], range(2))
        _assert_near(rounds.weights(whole), rounds.weights(parts), "one rank has all rows")


def a_step_that_is_not_finite_is_left_out_by_all(cache: Path, ranks: Ranks) -> None:
    one = learner(cache, ranks, "full", layout="packed")
    before = rounds.weights(one)
    score = one.policy.score

    def broken(*given: Any) -> Any:
        logprobs, *others = score(*given)  # once: a pass is a call of all ranks
        return (logprobs * math.nan, *others)

    if ranks.rank == 1:
        one.policy.score = broken  # type: ignore[method-assign]
    metrics = one.train(*_scored(one, 0))
    assert (metrics["steps"], metrics["steps_skipped"]) == (0, 1), metrics
    assert one.policy_version == 0
    assert rounds.furthest(before, rounds.weights(one)) == 0
    assert _optimization(one).keys() == (one.policy.parameters.keys() if ranks.rank == 0 else set())


def a_row_that_is_not_finite_is_left_out_of_the_step_of_all(cache: Path, ranks: Ranks) -> None:
    """One rollout's ratio overflows on the rank that has it: both repeat the step without it."""
    whole, parts = (learner(cache, ranks, sharding, layout="packed", iterations=2) for sharding in ("none", "full"))
    state, _ = _scored(whole, 0)
    own = state.own(0)
    assert own is not None
    first, *others = own.groups[0].rollouts
    spoilt = replace(first, logprobs=(-120.0,) * len(first.logprobs))
    groups = (replace(own.groups[0], rollouts=(spoilt, *others)), *own.groups[1:])
    state = rounds.state_of(rounds.round_of(0), [replace(own, groups=groups)])
    rewards = {key: [float(place) for place in range(len(group.rollouts))] for key, group in state.groups()}
    for each in (whole, parts):
        metrics = each.train(state, rewards)
        counts = [metrics[name] for name in ("rollouts_not_finite", "steps", "steps_skipped")]
        assert counts == [1, 2, 0], counts
    _assert_near(rounds.weights(whole), rounds.weights(parts), "a row left out")


def runs_go_on_with_another_number_of_ranks(cache: Path, ranks: Ranks) -> None:
    several: tuple[dict[str, Any], ...] = (
        {"layout": "packed"},
        {"layout": "packed", "lora": Lora(rank=3)},
        {"layout": "packed", **CRITIC},
    )
    for number, options in enumerate(several):
        first = learner(cache, ranks, "full", **options)
        trained(ranks, [first], range(2))
        state = saved(cache, ranks, first, 10 + number)
        again = learner(cache, ranks, "full", **options)
        alone = learner(cache, OneRank(), "full", **options)  # of one process: not sharded
        both = learner(cache, ranks, "none", **options)
        for other in (again, alone, both):
            other.load_state_dict(state)
            assert rounds.furthest(rounds.weights(first), rounds.weights(other)) == 0
            assert weights_hash(other) == weights_hash(first)
            if "critic" in options:
                assert rounds.furthest(_head(first), _head(other)) == 0
        assert not alone.policy.is_sharded
        # A resume is exact: rollouts, metrics and weights of the next rounds.
        played = [_played(each, number) for each in (first, again) for number in (2, 3)]
        assert played[:2] == played[2:], played
        assert weights_hash(again) == weights_hash(first)
        # From one process to two that shard.
        alone.train(*_scored(alone, 4))
        resumed = learner(cache, ranks, "full", **options)
        resumed.load_state_dict(alone.state_dict())
        assert weights_hash(resumed) == weights_hash(alone)
        trained(ranks, [resumed, alone], [5])


def exports_and_generation_need_no_other_rank(cache: Path, ranks: Ranks) -> None:
    one = learner(cache, ranks, "full", overlap=True)
    trained(ranks, [one], [0])
    if ranks.rank == 0:
        one.export(cache / "exported")
        assert (cache / "exported" / "model.safetensors").stat().st_size > 4 * 10_000
        assert one._generation.own_share([(5, 6)] * 3, 2, _request(one).params, seed=3)


def a_rank_that_dies_in_a_pass_ends_the_other(cache: Path, ranks: Ranks) -> None:
    """The last of all: one rank leaves."""
    one = learner(cache, ranks, "full", layout="packed", tokens_per_micro_batch=60)
    state, rewards = _scored(one, 0)
    score = one.policy.score

    def dying(*given: Any) -> Any:
        found = score(*given)
        if ranks.rank == 0:
            os._exit(9)
        return found

    one.policy.score = dying  # type: ignore[method-assign]
    with pytest.raises(Temporary, match="lost the other processes of its peer while training on shards"):
        one.train(state, rewards)
    os._exit(75)


def play(cache: Path, ranks: Ranks) -> None:
    shards_hold_half_and_train_alike(cache, ranks)
    a_rank_without_rows_takes_part(cache, ranks)
    a_step_that_is_not_finite_is_left_out_by_all(cache, ranks)
    a_row_that_is_not_finite_is_left_out_of_the_step_of_all(cache, ranks)
    runs_go_on_with_another_number_of_ranks(cache, ranks)
    exports_and_generation_need_no_other_rank(cache, ranks)
    a_rank_that_dies_in_a_pass_ends_the_other(cache, ranks)


def play_on_devices(cache: Path, ranks: Ranks) -> None:
    """Compare an update on two CUDA devices with that of two which hold everything, in bfloat16."""
    device = f"cuda:{torch.cuda.current_device()}"
    for options in ({}, {"beta": 0.1, "gradient_checkpointing": True}, {"lora": Lora(rank=3)}):
        whole, parts = (
            learner(cache, ranks, sharding, device=device, generations=8, **options) for sharding in ("none", "full")
        )
        assert parts.policy.packed
        assert {parameter.device.type for parameter in parts.policy.trained.parameters()} == {"cuda"}
        for number in range(2):
            state, rewards = _scored(parts, number)  # by CUDA graphs, from the complete copy
            for each in (whole, parts):
                assert each.train(state, rewards)["steps"] == 1
        left, right = (each.state_dict()["optimization"]["moments"] for each in (whole, parts))
        if ranks.rank == 0:
            one, other = (torch.cat([v["exp_avg"].flatten() for v in side.values()]) for side in (left, right))
            assert float(torch.nn.functional.cosine_similarity(one, other, dim=0)) > 0.99
            assert 0.97 < float(one.norm() / other.norm()) < 1.03
        for name, parameter in parts.policy.parameters.items():
            copy = parts.policy.model.get_parameter(name)
            assert torch.equal(complete(parameter).to(copy.dtype), copy), name


def _scored(learner: GRPOTrainer, number: int) -> tuple[GameState, Any]:
    round = rounds.round_of(number)
    state = rounds.state_of(round, [rounds.contribution_of(learner, round)])
    return state, rounds.scored(state)


def _played(learner: GRPOTrainer, number: int) -> Any:
    state, rewards = _scored(learner, number)
    return repr(([group for _, group in state.groups()], learner.train(state, rewards)))


def _request(learner: GRPOTrainer) -> Any:
    prompts = [rounds.Prompt.from_question(question, question.text) for question in rounds.questions()]
    return request_of(learner.policy, prompts, rounds.round_of(7), learner.context.ranks)


def _optimization(learner: GRPOTrainer) -> dict[str, Tensor]:
    state = learner.state_dict()["optimization"]
    moments = {f"{name} {key}": value for name, each in state["moments"].items() for key, value in each.items()}
    return {**state["weights"], **moments}


def _head(learner: GRPOTrainer) -> dict[str, Tensor]:
    assert learner._critic is not None
    return {name: parameter.detach().clone() for name, parameter in learner._critic.head.named_parameters()}


def _assert_near(left: dict[str, Tensor], right: dict[str, Tensor], name: str) -> None:
    assert left.keys() == right.keys()
    for key, tensor in left.items():
        distance = float((tensor - right[key]).abs().max())
        assert distance <= BOUND, (name, key, distance)


@contextmanager
def _shares(share: Callable[..., Any]) -> Iterator[None]:
    before = trainer_module.share_of_rank
    trainer_module.share_of_rank = share
    try:
        yield
    finally:
        trainer_module.share_of_rank = before
