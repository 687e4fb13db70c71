"""Generation ahead (`overlap`): rollouts of the weights before the update, corrected, kept in the checkpoint, and
never used for another round.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from language_rounds import contribution_of, questions, round_of, scored, state_of, trainer

from swarmgame.errors import Temporary
from swarmgame.game.state import Contribution, Prompt
from swarmgame.inference.sampler import Sampled
from swarmgame.trainer.grpo.batch import training_batches
from swarmgame.trainer.grpo.trainer import GRPOTrainer


def prompts(suffix: str = " stage 0") -> list[Prompt]:
    """The prompts of `contribution_of`."""
    return [Prompt.from_question(question, question.text + suffix) for question in questions()]


def play(learner: GRPOTrainer, number: int) -> tuple[Contribution, Mapping[str, float]]:
    """A round as the loop plays it: generate, begin the next, score, train."""
    contribution = contribution_of(learner, round_of(number))
    if learner.generates_ahead:
        learner.generate_ahead(prompts(), round_of(number + 1))
    state = state_of(round_of(number), [contribution])
    return contribution, learner.train(state, scored(state))


def weights(learner: GRPOTrainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in learner.policy.parameters.values()]


def equal(left: GRPOTrainer, right: GRPOTrainer) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(left), weights(right), strict=True))


class Gate:
    """A sampler that waits for leave before it samples, or fails."""

    exact = True
    uses_model = True

    def __init__(self, inner: Any, error: Exception | None = None) -> None:
        self.inner, self.error = inner, error
        self.open = threading.Event()
        self.entered = threading.Event()

    def sample(self, *arguments: Any, **options: Any) -> list[list[Sampled]]:
        if threading.current_thread() is not threading.main_thread():
            self.entered.set()
            assert self.open.wait(30), "the gate was not opened"
            if self.error is not None:
                raise self.error
        answer: list[list[Sampled]] = self.inner.sample(*arguments, **options)
        return answer

    def update_weights(self, version: int) -> None:
        self.inner.update_weights(version)

    def limit(self, rows: int) -> int:
        return rows

    def release(self) -> bool:
        return False

    def metrics(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        self.inner.close()


def gated(learner: GRPOTrainer, error: Exception | None = None) -> Gate:
    gate = Gate(learner._generation.sampler, error)
    learner._generation.sampler = gate
    return gate


def test_the_next_rounds_rollouts_come_from_the_weights_before_the_update(cache: Path) -> None:
    learner, before = trainer(cache, overlap=True), trainer(cache)
    first, metrics = play(learner, 0)
    assert (first.policy_version, learner.policy_version, metrics["policy_lag"]) == (0, 1, 0.0)
    second, metrics = play(learner, 1)
    assert (second.policy_version, learner.policy_version, metrics["policy_lag"]) == (0, 2, 1.0)
    assert second.groups == contribution_of(before, round_of(1)).groups
    third, _ = play(learner, 2)
    assert third.policy_version == 1
    learner.close()


def test_the_distance_to_the_older_version_is_a_metric_and_weighs_the_rollouts(cache: Path) -> None:
    learner = trainer(cache, overlap=True, learning_rate=2e-2)
    _, first = play(learner, 0)
    assert first["lag_kl"] != first["lag_kl"]  # nothing lagged yet
    _, second = play(learner, 1)
    assert second["lag_kl"] > 1e-4
    assert second["importance"] == pytest.approx(1.0, abs=0.5)
    assert second["importance"] != 1.0
    # The step that is made is the first one on these rows: the bound on it does not bind, whatever the step before
    # did.
    assert (second["clip_low"], second["clip_high"], second["ratio"]) == (0.0, 0.0, pytest.approx(1.0))
    learner.close()


def test_lagged_rows_are_those_of_another_policy_and_rows_of_this_version_are_not(cache: Path) -> None:
    learner = trainer(cache)
    state = state_of(round_of(), [contribution_of(learner, round_of())])
    for version, lagged in ((0, False), (1, True), (None, False)):
        [update] = training_batches(state, scored(state), learner.policy, learner.config, version)
        assert update.samples
        assert all(
            (sample.lagged, sample.sampler_logprobs is None, sample.behavior_logprobs is not None) == (lagged,) * 3
            for sample in update.samples
        )


def test_the_gradient_of_lagged_rows_is_weighted_by_how_likely_each_token_has_become(cache: Path) -> None:
    learner = trainer(cache, overlap=True, importance_cap=None, max_grad_norm=None, learning_rate=2e-2)
    play(learner, 0)
    state = state_of(round_of(1), [contribution_of(learner, round_of(1))])
    [update] = training_batches(state, scored(state), learner.policy, learner.config, learner.policy_version)
    total = torch.zeros(())
    for sample in update.samples:
        logprobs, _, _ = learner.policy.score([sample.prompt], [sample.completion])
        weight = (logprobs[0].detach() - torch.tensor(sample.behavior_logprobs)).exp()
        total = total - (weight * sample.advantage * logprobs[0]).sum() / update.normalizer.tokens
    total.backward()  # type: ignore[no-untyped-call]
    expected = {
        name: parameter.grad.norm()
        for name, parameter in learner.policy.parameters.items()
        if parameter.grad is not None
    }
    learner._optimization.clear()
    metrics = learner.train(state, scored(state))
    assert metrics["grad_norm"] == pytest.approx(float(torch.stack(list(expected.values())).norm()), rel=1e-4)
    learner.close()


@pytest.mark.parametrize("overlap", [False, True])
def test_a_policy_learns_with_and_without_overlap(cache: Path, overlap: bool) -> None:
    learner = trainer(cache, overlap=overlap, learning_rate=5e-3)
    rewards = []
    for number in range(25):
        contribution, _ = play(learner, number)
        values = scored(state_of(round_of(number), [contribution])).values()
        rewards.append(sum(map(sum, values)) / sum(map(len, values)))
    assert sum(rewards[-5:]) > sum(rewards[:5]) * 1.5
    learner.close()


def test_the_same_run_twice_is_identical(cache: Path) -> None:
    runs = []
    for _ in range(2):
        learner = trainer(cache, overlap=True)
        runs.append(([play(learner, number)[0].groups for number in range(4)], learner))
        learner.close()
    assert runs[0][0] == runs[1][0]
    assert equal(runs[0][1], runs[1][1])


def resumed(cache: Path, saved: Mapping[str, Any]) -> GRPOTrainer:
    learner = trainer(cache, overlap=True)
    learner.load_state_dict(saved)
    return learner


def test_rollouts_that_were_sampled_by_weights_of_the_past_are_in_the_checkpoint(cache: Path) -> None:
    straight = trainer(cache, overlap=True)
    play(straight, 0), play(straight, 1)
    again = resumed(cache, straight.state_dict())
    for number in (2, 3):
        assert play(again, number)[0] == play(straight, number)[0]
    assert equal(again, straight)


def test_a_round_that_was_begun_and_abandoned_is_played_again_with_the_same_rollouts(cache: Path) -> None:
    straight, stopped = trainer(cache, overlap=True), trainer(cache, overlap=True)
    for learner in (straight, stopped):
        play(learner, 0)
    # SIGTERM in the middle of round 1: its rollouts were handed out, those of round 2 are under way.
    contribution_of(stopped, round_of(1))
    stopped.generate_ahead(prompts(), round_of(2))
    again = resumed(cache, stopped.state_dict())
    stopped.close()
    for number in (1, 2, 3):
        assert play(again, number)[0] == play(straight, number)[0]
    assert equal(again, straight)


def test_a_checkpoint_of_a_version_without_overlap_is_read(cache: Path) -> None:
    state = dict(trainer(cache).state_dict())
    del state["ahead"]
    learner = resumed(cache, state)
    assert play(learner, 0)[0].policy_version == 0
    learner.close()


def test_rollouts_of_other_questions_are_thrown_away_counted_and_named(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    learner, fresh = trainer(cache, overlap=True), trainer(cache)
    contribution = contribution_of(learner, round_of())
    learner.generate_ahead(prompts(" of another level"), round_of(1))
    state = state_of(round_of(), [contribution])
    learner.train(state, scored(state))
    fresh.load_state_dict({**learner.state_dict(), "ahead": []})
    with caplog.at_level(logging.WARNING):
        second, metrics = play(learner, 1)
    assert "round 1 are thrown away: its questions are not those" in caplog.text
    assert second == contribution_of(fresh, round_of(1))
    assert (second.policy_version, metrics["policy_lag"], metrics["ahead_dropped"]) == (1, 0.0, 1.0)
    assert play(learner, 2)[1]["ahead_dropped"] == 0.0
    learner.close()


def test_rollouts_of_a_round_that_was_skipped_are_thrown_away(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    learner = trainer(cache, overlap=True)
    play(learner, 0)
    with caplog.at_level(logging.WARNING):
        contribution, metrics = play(learner, 5)
    assert "round 1 are thrown away: round 1 was skipped" in caplog.text
    assert (contribution.policy_version, metrics["ahead_dropped"]) == (1, 1.0)
    learner.close()


def test_evaluation_is_never_answered_ahead(cache: Path) -> None:
    learner, fresh = trainer(cache, overlap=True), trainer(cache)
    play(learner, 0)
    held_out = replace(round_of(1), evaluation=True)
    fresh.load_state_dict(learner.state_dict())
    assert contribution_of(learner, held_out).groups == contribution_of(fresh, held_out).groups
    assert contribution_of(learner, round_of(1)).policy_version == 0
    learner.close()


def test_training_waits_for_the_thread_that_reads_the_weights(cache: Path) -> None:
    learner = trainer(cache, overlap=True)
    gate = gated(learner)
    state = state_of(round_of(), [contribution_of(learner, round_of())])
    learner.generate_ahead(prompts(), round_of(1))
    assert gate.entered.wait(30)
    before = weights(learner)
    training = threading.Thread(target=learner.train, args=(state, scored(state)))
    training.start()
    training.join(0.3)
    assert training.is_alive()
    assert all(torch.equal(a, b) for a, b in zip(before, weights(learner), strict=True))
    gate.open.set()
    training.join(30)
    assert (training.is_alive(), learner.policy_version) == (False, 1)
    learner.close()


def test_an_engine_with_weights_of_its_own_samples_while_the_policy_trains(cache: Path) -> None:
    learner = trainer(cache, overlap=True)
    gate = gated(learner)
    gate.uses_model = False
    order: list[str] = []
    step = learner._optimization.step

    def stepped(*arguments: Any, **options: Any) -> float | None:
        order.append("step")
        gate.open.set()  # only now, so that waiting before the step would never end
        return step(*arguments, **options)

    learner._optimization.step = stepped  # type: ignore[method-assign]
    gate.update_weights = lambda version: order.append(f"weights {version}")  # type: ignore[method-assign]
    state = state_of(round_of(), [contribution_of(learner, round_of())])
    learner.generate_ahead(prompts(), round_of(1))
    learner.train(state, scored(state))
    assert order == ["step", "weights 1"]
    assert [saved["round"] for saved in learner.state_dict()["ahead"]] == [1]
    learner.close()


@pytest.mark.parametrize("place", ["train", "generate"])
def test_an_error_of_the_thread_is_raised_where_its_rollouts_are_needed(cache: Path, place: str) -> None:
    learner = trainer(cache, overlap=True)
    state = state_of(round_of(), [contribution_of(learner, round_of())])
    gate = gated(learner, Temporary("the device has no memory"))
    gate.open.set()
    learner.generate_ahead(prompts(), round_of(1))
    use = {
        "train": lambda: learner.train(state, scored(state)),
        "generate": lambda: contribution_of(learner, round_of(1)),
    }[place]
    with pytest.raises(Temporary, match="no memory"):
        use()
    learner.close()


def test_an_error_that_comes_after_the_last_use_is_named_in_the_log(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    learner = trainer(cache, overlap=True)
    gate = gated(learner, Temporary("the device has no memory"))
    gate.open.set()
    learner.generate_ahead(prompts(), round_of(1))
    learner.close()
    assert "round 1 failed" in caplog.text
    assert "no memory" in caplog.text


def test_closing_waits_for_the_generation_under_way_and_leaves_no_thread(cache: Path) -> None:
    learner = trainer(cache, overlap=True)
    gate = gated(learner)
    learner.generate_ahead(prompts(), round_of(1))
    assert gate.entered.wait(30)
    threading.Timer(0.1, gate.open.set).start()
    learner.close()
    learner.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("generate-ahead")]


def test_the_thread_computes_with_as_many_threads_as_the_peer(cache: Path) -> None:
    learner = trainer(cache, overlap=True)
    seen: list[int] = []
    sample = learner._generation.sampler.sample

    def counted(requested: Sequence[Any], *arguments: Any, **options: Any) -> list[list[Sampled]]:
        seen.append(torch.get_num_threads())
        return sample(requested, *arguments, **options)

    learner._generation.sampler.sample = counted  # type: ignore[method-assign]
    learner.generate_ahead(prompts(), round_of(1))
    learner.close()
    assert seen == [torch.get_num_threads()]
