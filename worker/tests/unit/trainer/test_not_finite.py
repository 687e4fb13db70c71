"""Numbers that are not finite: the rollout and the layer are named, the row is dropped, and a run that gets no further
ends.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from language_rounds import contribution_of, furthest, play, round_of, scored, state_of, trainer, weights
from torch import Tensor, nn

from swarmgame.errors import BadData, ExitCode, exit_code_of
from swarmgame.game.state import Contribution, Rollout
from swarmgame.trainer.grpo import trainer as trainer_module
from swarmgame.trainer.grpo.batch import TrainingBatch, training_batches
from swarmgame.trainer.grpo.trainer import GRPOTrainer
from swarmgame.trainer.not_finite import MOST_ROUNDS, SkippedSteps, first_module

LAYER = "model.layers.0.mlp.down_proj"


def broken_for(learner: GRPOTrainer, token: int) -> None:
    """Make the embedding of an id NaN, and so all numbers of a row behind it."""
    learner.policy.model.get_input_embeddings().register_forward_hook(
        lambda _, arguments, output: output.masked_fill((arguments[0] == token).unsqueeze(-1), math.nan)
    )


def without_token(contribution: Contribution, token: int) -> list[list[Rollout]]:
    return [[each for each in group.rollouts if token not in each.token_ids[:-1]] for group in contribution.groups]


def token_of_some(contribution: Contribution) -> int:
    """Return an id that some rollouts went on behind, and others have not."""
    return next(
        token
        for token in range(4, 90)
        if 0 < sum(map(len, without_token(contribution, token))) < 16
        and not any(token in group.prompt.token_ids for group in contribution.groups)
    )


def test_the_first_module_that_is_not_finite_is_named_with_its_weights() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.ReLU()), nn.Linear(3, 1))
    assert first_module(model, torch.ones(2, 3)) == "all layers are finite in a pass of its own"
    with torch.no_grad():
        model[1][0].bias[1] = math.inf
    assert first_module(model, torch.ones(2, 3)) == "first in the output of 1.0, of which bias is not finite"
    assert first_module(model, torch.full((2, 3), math.nan)) == "first in the output of 0"
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_end_the_run_with_the_layer_before_anything_is_published(
    cache: Path, bad: float
) -> None:
    learner = trainer(cache)
    with torch.no_grad():
        learner.policy.model.get_submodule(LAYER).weight[0, 0] = bad
    with pytest.raises(BadData, match="16 of 16 rollouts have a log-probability that is not finite") as error:
        contribution_of(learner, round_of())
    assert f"first in the output of {LAYER}, of which weight is not finite" in str(error.value)
    assert exit_code_of(error.value) is ExitCode.BAD_DATA


def test_a_sampled_rollout_that_is_not_finite_is_left_out_named_and_counted(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One id makes every row NaN in which it was fed; the other rows stay as they were."""
    fresh = contribution_of(trainer(cache), round_of())
    token = token_of_some(fresh)
    learner = trainer(cache)
    broken_for(learner, token)
    with caplog.at_level(logging.WARNING):
        contribution = contribution_of(learner, round_of())
    kept = [[each.token_ids for each in group.rollouts] for group in contribution.groups]
    assert kept == [[each.token_ids for each in rollouts] for rollouts in without_token(fresh, token)]
    [message] = [record.getMessage() for record in caplog.records if record.name.endswith("faulty_rollouts")]
    assert message.endswith("first in the output of model.embed_tokens. They are left out (rollouts_not_finite)")
    state = state_of(round_of(), [contribution])
    metrics = learner.train(state, scored(state))
    assert metrics["rollouts_not_finite"] == 16 - sum(map(len, kept))
    assert learner.train(state, scored(state))["rollouts_not_finite"] == 0
    [notice] = [each for each in learner.notices() if each.code == "rollouts-not-finite"]
    assert notice.count == 16 - sum(map(len, kept))
    assert "first in the output of model.embed_tokens" in notice.text


@pytest.mark.parametrize("options", [{}, {"beta": 0.1}, {"layout": "packed"}, {"tokens_per_micro_batch": 1}])
def test_a_row_that_cannot_be_trained_on_is_dropped_named_and_the_rest_makes_its_own_step(
    cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """A remote row with an id whose embedding is not finite: the step is the one without it."""
    learner, alone = trainer(cache, **options), trainer(cache, **options)
    own = contribution_of(learner, round_of())
    rows = [row for group in own.groups for row in (group.prompt.token_ids, *(r.token_ids for r in group.rollouts))]
    token = next(token for token in range(4, 90) if not any(token in row for row in rows))
    broken_for(learner, token)
    first = own.groups[0]
    bad = Rollout("x", (token, 5, learner.policy.eos_token_ids[0]), (-1.0, -1.0, -1.0))
    sent = replace(own, peer="other", groups=(replace(first, rollouts=(bad, *first.rollouts[1:])),))
    state = state_of(round_of(), [own, sent])
    rewards = scored(state)
    with caplog.at_level(logging.WARNING):
        metrics = learner.train(state, rewards)
    assert metrics["rollouts_not_finite"] == 1
    assert (metrics["steps"], metrics["steps_skipped"]) == (1, 0)
    [message] = [record.getMessage() for record in caplog.records if record.name.endswith("faulty_rollouts")]
    assert f"rollout 0 of other, question {first.question_id}" in message
    assert message.endswith("first in the output of model.embed_tokens")
    # The same reward, without influence: the advantages and the denominators are the same.
    monkeypatch.setattr(trainer_module, "training_batches", without_first_of("other"))
    expected = alone.train(state, rewards)
    for name in ("loss", "grad_norm", "ratio", "entropy", "tokens_trained"):
        assert metrics[name] == pytest.approx(expected[name], rel=1e-4), name
    assert furthest(moments(learner), moments(alone)) < 1e-5
    [use, *_] = next(group for key, group in learner.last_update().items() if key.peer == "other")
    assert use.weight == 0.0


def moments(learner: GRPOTrainer) -> dict[str, Tensor]:
    return {name: found["exp_avg"] for name, found in learner.state_dict()["optimization"]["moments"].items()}


def without_first_of(peer: str) -> Any:
    """Make the batches of a round, then take out the first rollout of a peer."""

    def made(*arguments: Any, **options: Any) -> list[TrainingBatch]:
        return [
            replace(
                each,
                samples=tuple(s for s in each.samples if s.group is None or s.group.peer != peer or s.position),
            )
            for each in training_batches(*arguments, **options)
        ]

    return made


def test_a_ratio_that_overflows_is_dropped_and_named(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A rollout that its sampler held for impossible, and whose policy now does not: e^91 has no number in fp32."""
    learner = trainer(cache)
    own = contribution_of(learner, round_of())
    first = own.groups[0]
    rollouts = (replace(first.rollouts[0], logprobs=(-120.0,) * len(first.rollouts[0].logprobs)), *first.rollouts[1:])
    state = state_of(round_of(), [replace(own, groups=(replace(first, rollouts=rollouts), *own.groups[1:]))])
    rewards = scored(state, lambda each: -float(each in rollouts[:1]) - len(each.token_ids) / 100)
    with caplog.at_level(logging.WARNING):
        metrics = learner.train(state, rewards)
    assert (metrics["rollouts_not_finite"], metrics["steps"], metrics["steps_skipped"]) == (1, 1, 0)
    assert f"rollout 0 of me, question {first.question_id}" in caplog.text


def test_rounds_without_a_step_end_the_run_with_a_reason(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = trainer(cache, iterations=3)
    before = weights(learner)
    step = learner._optimization.step
    monkeypatch.setattr(learner._optimization, "step", lambda *_, **__: None)  # an overflow of the backward pass
    for number in range(MOST_ROUNDS - 1):
        metrics = play(learner, number)
        assert (metrics["steps"], metrics["steps_skipped"], metrics["rollouts_not_finite"]) == (0, 1, 0)
    with monkeypatch.context() as working:
        working.setattr(learner._optimization, "step", step)
        play(learner, 8)  # a step that is taken begins the count anew
    for number in range(MOST_ROUNDS - 1):
        play(learner, number)
    assert furthest(before, weights(learner)) > 0
    with pytest.raises(BadData, match=f"not finite in {MOST_ROUNDS} rounds in a row.*Lower learningRate") as error:
        play(learner, 9)
    assert exit_code_of(error.value) is ExitCode.BAD_DATA


def test_rounds_of_which_only_rollouts_are_left_that_teach_nothing_end_the_run_too(cache: Path) -> None:
    """What is left has equal rewards."""
    learner = trainer(cache)
    broken_for(learner, token_of_some(contribution_of(learner, round_of())))

    def round_without_spread() -> Mapping[str, float]:
        state = state_of(round_of(), [contribution_of(learner, round_of())])
        return learner.train(state, {key: [1.0] * len(group.rollouts) for key, group in state.groups()})

    for _ in range(MOST_ROUNDS - 1):
        metrics = round_without_spread()
        assert metrics["rollouts_not_finite"] > 0
        assert metrics["steps"] == 0
    with pytest.raises(BadData, match=f"not finite in {MOST_ROUNDS} rounds in a row"):
        round_without_spread()


def test_rounds_that_had_nothing_to_train_on_are_not_counted() -> None:
    skipped = SkippedSteps()
    for number in range(3 * MOST_ROUNDS):
        skipped.add(steps=0, skipped=number % MOST_ROUNDS == 0 and number < MOST_ROUNDS, round=number)
