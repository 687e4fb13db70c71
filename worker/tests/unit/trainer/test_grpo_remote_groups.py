"""The GRPO trainer and groups of other peers: which it trains on, with what weights, and which it drops."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from language_rounds import (
    contribution_of,
    furthest,
    rollout,
    round_of,
    scored,
    state_of,
    trainer,
    weights,
    with_groups,
)

from swarmgame.game.state import FinishReason, Group
from swarmgame.trainer.grpo.batch import training_batches

MODEL_2 = "builtin://tiny?accuracy=0&layers=1&hidden=32&seed=5"


def test_groups_of_others_are_trained_on_with_their_ids_and_bounded_weights(cache: Path) -> None:
    learner = trainer(cache, importance_cap=2.0)
    other = contribution_of(trainer(cache, model=MODEL_2), round_of(peer="other"))
    modest = with_groups(
        other,
        lambda group: replace(
            group, rollouts=tuple(replace(r, logprobs=(-30.0,) * len(r.logprobs)) for r in group.rollouts)
        ),
    )
    state = state_of(round_of(), [contribution_of(learner, round_of()), modest])
    own = state_of(round_of(), [contribution_of(learner, round_of())])
    [update] = training_batches(state, scored(state), learner.policy, learner.config)
    sent = {sample.token_ids for group in modest.groups for sample in group.rollouts}
    remote = [sample for sample in update.samples if sample.sampler_logprobs is None]
    assert remote
    assert all(sample.completion in sent and sample.behavior_logprobs is not None for sample in remote)
    metrics = learner.train(state, scored(state))
    # Claiming that everything was most unlikely makes nothing count more than the bound.
    assert 1.0 < metrics["importance"] <= 2.0
    assert metrics["groups_external"] == 4
    assert metrics["groups_retokenised"] == metrics["remote_dropped"] == 0
    assert metrics["tokens_trained"] > trainer(cache).train(own, scored(own))["tokens_trained"]


def test_the_text_of_another_tokenizer_is_tokenised_with_eos_only_where_it_had_ended(cache: Path) -> None:
    learner = trainer(cache)

    def other_ids(group: Group) -> Group:
        ended, cut = rollout("ende", [900_000, 900_001]), rollout("cut", [900_002], reason=FinishReason.LENGTH)
        return replace(group, rollouts=(ended, cut))

    state = state_of(round_of(), [with_groups(contribution_of(learner, round_of()), other_ids, tokenizer="another")])
    [update] = training_batches(state, scored(state), learner.policy, learner.config)
    eos = learner.policy.eos_token_ids[0]
    by_text = {learner.decode(sample.completion): sample for sample in update.samples}
    assert by_text["ende"].completion[-1] == eos
    assert by_text["cut"].completion[-1] != eos
    assert all(sample.behavior_logprobs is None for sample in update.samples)
    metrics = learner.train(state, scored(state))
    assert metrics["groups_retokenised"] == 4
    assert metrics["importance"] == pytest.approx(1.0)
    assert learner.policy_version == 1


def _with_first(group: Group, **fields: Any) -> Group:
    return replace(group, rollouts=(replace(group.rollouts[0], **fields), *group.rollouts[1:]))


HOSTILE: dict[str, Callable[[Group], Group]] = {
    "an id outside the vocabulary": lambda g: _with_first(g, token_ids=(10**9,), logprobs=(-1.0,)),
    "a negative id": lambda g: _with_first(g, token_ids=(-5,), logprobs=(-1.0,)),
    "no ids at all": lambda g: _with_first(g, token_ids=(), logprobs=()),
    "far too many ids": lambda g: _with_first(g, token_ids=(5,) * 5000, logprobs=(-1.0,) * 5000),
    "a log-probability that is no number": lambda g: _with_first(g, token_ids=(5, 5), logprobs=(-1.0, math.nan)),
    "an infinite log-probability": lambda g: _with_first(g, token_ids=(5,), logprobs=(-math.inf,)),
    "a probability above one": lambda g: _with_first(g, token_ids=(5,), logprobs=(3.0,)),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_group_is_dropped_and_counted_and_the_rest_is_trained_on(
    cache: Path, change: Callable[[Group], Group]
) -> None:
    honest, attacked = trainer(cache), trainer(cache)
    own = contribution_of(honest, round_of())
    alone = state_of(round_of(), [own])
    honest.train(alone, scored(alone))
    state = state_of(round_of(), [own, with_groups(contribution_of(attacked, round_of()), change)])
    metrics = attacked.train(state, scored(state))
    assert metrics["remote_dropped"] == 4
    assert furthest(weights(honest), weights(attacked)) == 0


def test_a_text_of_another_tokenizer_that_is_too_long_is_dropped(cache: Path) -> None:
    learner = trainer(cache)
    flood = with_groups(
        contribution_of(learner, round_of()), lambda g: _with_first(g, text="e" * 100_000), tokenizer="another"
    )
    state = state_of(round_of(), [flood])
    assert learner.train(state, scored(state))["remote_dropped"] == 4
    assert learner.policy_version == 0
