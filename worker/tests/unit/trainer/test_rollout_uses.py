"""Trainers report how an update used each rollout: advantage, importance weight, or not at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import msgpack
import numpy as np
import pytest
from language_rounds import contribution_of, round_of, scored, state_of, trainer, with_groups

from swarmgame.game.components import ComponentContext
from swarmgame.game.ranks import OneRank
from swarmgame.game.state import Contribution, GameState, Group, Prompt, Question, QuestionRef, Round
from swarmgame.seeds import derive_seed
from swarmgame.trainer.policy_gradient import PolicyGradientConfig, PolicyGradientTrainer


def shifted(contribution: Contribution, by: float) -> Contribution:
    """Another peer's contribution, whose policy gave each token exp(by) times our probability."""

    def change(group: Group) -> Group:
        rollouts = tuple(replace(r, logprobs=tuple(min(0.0, p + by) for p in r.logprobs)) for r in group.rollouts)
        return replace(group, prompt=replace(group.prompt, token_ids=()), rollouts=rollouts)

    return with_groups(contribution, change)


def test_grpo_reports_advantages_and_weights_of_own_and_remote_rollouts(cache: Path) -> None:
    learner = trainer(cache, importance_cap=None, importance_floor=None)
    own = contribution_of(learner, round_of())
    remote = shifted(contribution_of(learner, round_of(1)), 0.5)
    remote = replace(remote, round=0)
    state = state_of(round_of(), [own, remote])
    rewards = scored(state)
    learner.train(state, rewards)
    uses = learner.last_update()
    assert uses.keys() == rewards.keys()
    trained = 0
    for key, values in rewards.items():
        if len(set(values)) == 1:
            assert all(use == (0.0, 0.0) for use in uses[key])
            continue
        for use, reward in zip(uses[key], values, strict=True):
            assert use.advantage == pytest.approx((reward - fmean(values)) / (stdev(values) + 1e-4), abs=1e-5)
            expected = 1.0 if key.peer == "me" else math.exp(-0.5)
            assert use.weight == (0.0 if use.advantage == 0 else pytest.approx(expected, rel=1e-3))
            trained += use.weight != 0
    assert trained > 8


def test_what_was_measured_of_remote_rollouts_is_kept_with_the_weights_before_rare_ones_are_bounded(
    cache: Path,
) -> None:
    learner = trainer(cache, max_influence=0.5, generations=8)
    for number in range(2):
        own = contribution_of(learner, round_of(number))
        remote = replace(shifted(contribution_of(learner, round_of(number + 7)), 0.5), round=number)
        state = state_of(round_of(number), [own, remote])
        learner.train(state, scored(state))
    ours, others = learner.state_dict()["bounds"]["rarity"]
    assert [len(each) > 8 for each in (*ours, *others)] == [True] * 4
    assert all(weight == 1.0 for each in ours for *_, weight, _ in each)
    assert all(0 < weight <= math.exp(-0.5) + 1e-4 for each in others for *_, weight, _ in each)
    uses = [use for key, each in learner.last_update().items() if key.peer == "other" for use in each]
    assert sum(use.weight for use in uses) < sum(weight for *_, weight, _ in others[-1])
    again = trainer(cache, max_influence=0.5, generations=8)
    again.load_state_dict(learner.state_dict())
    assert again.state_dict()["bounds"] == learner.state_dict()["bounds"]
    older = {name: value for name, value in learner.state_dict()["bounds"].items() if name != "rarity"}
    again.load_state_dict({**learner.state_dict(), "bounds": older})
    assert again.state_dict()["bounds"]["rarity"] == [[], []]


def test_grpo_reports_nothing_of_a_round_that_it_does_not_train_on(cache: Path) -> None:
    learner = trainer(cache)
    state = state_of(round_of(), [contribution_of(learner, round_of())])
    learner.train(state, scored(state))
    assert learner.last_update()
    learner = trainer(cache, update="none")
    learner.train(state, scored(state))
    assert learner.last_update() == {}


def test_grpo_marks_rollouts_that_were_not_scored(cache: Path) -> None:
    learner = trainer(cache)
    state = state_of(round_of(), [contribution_of(learner, round_of())])
    rewards = {key: [math.nan, *values[1:]] for key, values in scored(state).items()}
    learner.train(state, rewards)
    for uses in learner.last_update().values():
        assert math.isnan(uses[0].advantage)
        assert uses[0].weight == 0.0
        assert not any(math.isnan(use.advantage) for use in uses[1:])


class TwoRanks(OneRank):
    """Rank 0 of two. The other one's weights are put where it would gather them."""

    size = 2

    def __init__(self, other: bytes) -> None:
        self.other = other

    def gather(self, payload: bytes) -> list[bytes]:
        return [payload, self.other]


def test_weights_of_the_other_ranks_are_gathered(cache: Path) -> None:
    from swarmgame.trainer.grpo.uses import uses_of

    learner = trainer(cache)
    remote = replace(shifted(contribution_of(learner, round_of(1)), -0.5), round=0)
    state = state_of(round_of(), [contribution_of(learner, round_of()), remote])
    from swarmgame.trainer.grpo.batch import training_batches

    updates = training_batches(state, scored(state), learner.policy, learner.config)
    samples = updates[0].samples
    other = msgpack.packb([(len(samples) - 1, 0.25, 2.0, 0.0, 1.0)])
    found = uses_of(updates, learner.config, TwoRanks(other))
    uses = found.rollouts
    assert found.peers["other"].refused == {"implausible": 1}
    assert found.peers["other"].ratios == 2.0
    last = samples[-1]
    assert last.group is not None
    assert uses[last.group][last.position].weight == 0.25
    assert uses[samples[0].group][samples[0].position].weight == 1.0  # type: ignore[index]


def test_policy_gradient_reports_advantages_and_truncated_weights() -> None:
    config = PolicyGradientConfig(actions=3, options={"inputs": 4}, importance_cap=0.7, generations=6)
    learner = PolicyGradientTrainer(config, ComponentContext(peer="me", max_influence=1.0))
    questions = [
        Question(QuestionRef("vectors", "v1", 0, index), answer=str(index % 3), payload=np.eye(4)[index])
        for index in range(4)
    ]

    def contribution(peer: str, number: int, by: float) -> Contribution:
        round = Round(number, number, derive_seed(peer, number), 1, peer, (peer,))
        made: Sequence[Group] = learner.generate([Prompt(q.id, payload=q.payload) for q in questions], round)
        groups = tuple(
            replace(g, rollouts=tuple(replace(r, logprobs=(min(0.0, r.logprobs[0] + by),)) for r in g.rollouts))
            for g in made
        )
        return Contribution(peer, 0, 0, groups, {q.id: q.reference for q in questions}, learner.tokenizer)

    state = GameState.begin(Round(0, 0, 1, 1, "me", ("me",)), questions)
    state = state.with_contribution(contribution("me", 0, 0.0)).with_contribution(contribution("far", 1, -0.5))
    state = state.with_external(key for key, _ in state.remote_groups())
    rewards = {
        key: [float(r.text == state.questions[key.question_id].answer) for r in group.rollouts]
        for key, group in state.groups()
    }
    learner.train(state, rewards)
    for key, uses in learner.last_update().items():
        mean = fmean(rewards[key])
        for use, reward in zip(uses, rewards[key], strict=True):
            assert use.advantage == pytest.approx(reward - mean)
            assert use.weight == pytest.approx(1.0 if key.peer == "me" else 0.7)
    assert learner.last_update().keys() == rewards.keys()
