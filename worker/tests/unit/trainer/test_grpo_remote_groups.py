"""The GRPO trainer and groups of other peers: which it trains on, with what weights, and which it drops."""

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
    rollout,
    round_of,
    scored,
    state_of,
    trainer,
    weights,
    with_groups,
)

from swarmgame.game.state import FinishReason, Group
from swarmgame.trainer.claims import IMPROBABLE_NATS, is_possible
from swarmgame.trainer.grpo.batch import training_batches

MODEL_2 = "builtin://tiny?accuracy=0&layers=1&hidden=32&seed=5"


def test_groups_of_others_are_trained_on_with_their_ids_and_bounded_weights(cache: Path) -> None:
    learner = trainer(cache, importance_cap=3.0)
    other = contribution_of(trainer(cache, model=MODEL_2), round_of(peer="other"))
    modest = with_groups(
        other,
        lambda group: replace(
            group, rollouts=tuple(replace(r, logprobs=(-5.5,) * len(r.logprobs)) for r in group.rollouts)
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
    # Claiming that everything was unlikely makes nothing count more than a rollout of our own.
    assert 0.8 < metrics["importance"] <= 1.0
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
    "log-probabilities that no sampled tokens have": lambda g: _with_first(g, token_ids=(5, 5), logprobs=(-20.0,) * 2),
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


def test_a_sender_that_claims_less_than_can_be_true_loses_all_influence(cache: Path) -> None:
    """Each claim is possible by itself (log 99 is 4.6); that all of them are so much likelier for our policy is not."""
    learner, alone = trainer(cache, max_new_tokens=16), trainer(cache, max_new_tokens=16)
    own = contribution_of(learner, round_of())

    def lower_every_second(group: Group) -> Group:
        claimed = [(-6.0,) * len(r.logprobs) if at % 2 else r.logprobs for at, r in enumerate(group.rollouts)]
        return replace(
            group, rollouts=tuple(replace(r, logprobs=each) for r, each in zip(group.rollouts, claimed, strict=True))
        )

    state = state_of(round_of(), [own, with_groups(own, lower_every_second)])
    metrics = learner.train(state, scored(state, lambda r: float(len(set(r.token_ids)))))
    uses = [group for key, group in learner.last_update().items() if key.peer == "other"]
    for group in uses:
        for at, use in enumerate(group):
            assert not use.advantage or use.weight == pytest.approx(1.0 - at % 2, abs=1e-3)
    assert 0.3 < metrics["improbable_share"] < 0.7
    honest = state_of(round_of(), [own, replace(own, peer="other")])
    metrics = alone.train(honest, scored(honest, lambda r: float(len(set(r.token_ids)))))
    assert metrics["improbable_share"] == 0
    assert metrics["importance"] == pytest.approx(1.0, abs=1e-4)


def test_a_round_of_refused_groups_alone_moves_neither_weights_nor_moments(cache: Path) -> None:
    learner = trainer(cache, max_new_tokens=16)
    first = state_of(round_of(), [contribution_of(learner, round_of())])
    learner.train(first, scored(first, lambda r: float(len(set(r.token_ids)))))
    own = contribution_of(learner, round_of(1))

    def too_low(group: Group) -> Group:
        return replace(group, rollouts=tuple(replace(r, logprobs=(-6.0,) * len(r.logprobs)) for r in group.rollouts))

    state = state_of(round_of(1), [own, with_groups(own, too_low)])
    rewards = dict(scored(state, lambda r: float(len(set(r.token_ids)))))
    rewards |= {key: [0.5] * len(values) for key, values in rewards.items() if key.peer == "me"}
    before = copy.deepcopy(learner.state_dict())
    metrics = learner.train(state, rewards)
    after = learner.state_dict()
    assert metrics["improbable_share"] == 1
    assert metrics["steps"] == metrics["steps_skipped"] == 0
    assert after["policy_version"] == before["policy_version"] == 1
    assert furthest(before["optimization"]["weights"], after["optimization"]["weights"]) == 0
    for name, moments in after["optimization"]["moments"].items():
        assert furthest(before["optimization"]["moments"][name], moments) == 0


@pytest.mark.parametrize(("own", "theirs"), [(0.3, 0.3), (0.3, 0.9), (0.9, 0.3)])
def test_honest_claims_are_never_improbable_however_different_the_policies(own: float, theirs: float) -> None:
    generator = torch.Generator().manual_seed(0)
    ours, sender = (torch.log_softmax(torch.randn(50, generator=generator) / each, -1) for each in (own, theirs))
    drawn = torch.multinomial(sender.exp().expand(4000, -1), 200, replacement=True, generator=generator)
    assert float((ours[drawn] - sender[drawn]).sum(1).max()) < IMPROBABLE_NATS
    assert all(is_possible(total, 200, 50) for total in sender[drawn].sum(1).tolist())


def test_a_text_of_another_tokenizer_that_is_too_long_is_dropped(cache: Path) -> None:
    learner = trainer(cache)
    flood = with_groups(
        contribution_of(learner, round_of()), lambda g: _with_first(g, text="e" * 100_000), tokenizer="another"
    )
    state = state_of(round_of(), [flood])
    assert learner.train(state, scored(state))["remote_dropped"] == 4
    assert learner.policy_version == 0
