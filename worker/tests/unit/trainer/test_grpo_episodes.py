"""The GRPO trainer with an environment: what it samples and trains on, its exact resume, and transcripts of others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from guessing_games import GUESSING, LocalEpisodes
from language_rounds import MODEL, furthest, round_of, weights

from swarmgame import (
    Config,
    Contribution,
    Environment,
    Episode,
    FinishReason,
    GameState,
    Prompt,
    Question,
    QuestionRef,
    Rewards,
    Step,
)
from swarmgame.errors import BadGame, InvalidManifest
from swarmgame.game.components import ComponentContext
from swarmgame.game.rollout import Segment
from swarmgame.trainer.grpo.batch import training_batches
from swarmgame.trainer.grpo.config import GRPOConfig
from swarmgame.trainer.grpo.samples import without_gaps
from swarmgame.trainer.grpo.trainer import GRPOTrainer
from swarmgame.trainer.own_likelihood import Floors, implausible

QUESTIONS = [Question(QuestionRef("numbers", "v1", 1, index), f"guess {index}", str(index + 3)) for index in range(3)]


class Broken(Environment):
    """Fails at every turn."""

    Config = Config

    def start(self, question: Question) -> Episode:
        return _Broken()


class _Broken(Episode):
    def step(self, action: str) -> Step:
        raise ZeroDivisionError("always")


def learner(cache: Path, environment: str = GUESSING, **options: Any) -> GRPOTrainer:
    """Return a trainer of a random tiny model; a turn ends with a small letter, so that there are several."""
    settings = {"generations": 6, "max_new_tokens": 24, "learning_rate": 2e-3, "stop": tuple("abcdefghijklm")}
    episodes = LocalEpisodes(environment, max_turns=3)
    context = ComponentContext(model_uri=MODEL, cache=cache, peer="me", max_influence=1.0, episodes=episodes)
    return GRPOTrainer(GRPOConfig(**settings | options), context)


def generated(trainer: GRPOTrainer, number: int, peer: str = "me") -> Contribution:
    trainer.context.episodes.begin(QUESTIONS)  # type: ignore[union-attr]
    groups = trainer.generate([Prompt.from_question(question) for question in QUESTIONS], round_of(number, peer=peer))
    references = {question.id: question.reference for question in QUESTIONS}
    return Contribution(peer, number, 0, tuple(groups), references, trainer.tokenizer, trainer.policy_version)


def state_of(own: Contribution, *others: Contribution) -> GameState:
    state = GameState.begin(round_of(own.round), QUESTIONS).with_contribution(own)
    for other in others:
        state = state.with_contribution(other)
    return state.with_external(key for key, _ in state.remote_groups())


def scored(state: GameState) -> Rewards:
    return {
        key: [float(sum(map(str.islower, "".join(rollout.turns)))) for rollout in group.rollouts]
        for key, group in state.groups()
    }


def test_a_round_of_transcripts_is_sampled_and_trained_on(cache: Path) -> None:
    trainer = learner(cache)
    own = generated(trainer, 0)
    rollouts = [rollout for group in own.groups for rollout in group.rollouts]
    assert max(len(rollout.turns) for rollout in rollouts) > 1
    for rollout in rollouts:
        assert len(rollout.logprobs) <= 24
        assert len(rollout.token_ids) <= trainer.tokens_per_rollout
        assert [trainer.decode(ids) for ids, _ in rollout.turn_ids] == list(rollout.turns)
        for index, segment in enumerate(rollout.segments):
            if index % 2 and segment.tokens:
                at = sum(each.tokens for each in rollout.segments[:index])
                ids = rollout.token_ids[at : at + segment.tokens]
                assert trainer.observation_ids(segment.text, rollout.token_ids[at - 1]) == ids
    state = state_of(own)
    metrics = trainer.train(state, scored(state))
    assert metrics["tokens_trained"] == sum(
        len(rollout.logprobs)
        for key, group in state.own_groups()
        for rollout, use in zip(group.rollouts, trainer.last_update()[key], strict=True)
        if use.advantage
    )
    # What the environment wrote is no part of it, so the ratio of the first step is one.
    assert metrics["ratio"] == pytest.approx(1.0, abs=1e-4)
    assert trainer.policy_version == 1


def test_a_game_with_an_environment_resumes_exactly(cache: Path) -> None:
    straight, first, resumed = learner(cache), learner(cache), learner(cache)

    def play(trainer: GRPOTrainer, number: int) -> Contribution:
        own = generated(trainer, number)
        trainer.train(state_of(own), scored(state_of(own)))
        return own

    expected = [play(straight, number) for number in range(3)]
    assert play(first, 0) == expected[0]
    generated(first, 1)  # a round that a crash has ended in its middle
    resumed.load_state_dict(first.state_dict())
    assert [play(resumed, number) for number in (1, 2)] == expected[1:]
    assert furthest(weights(straight), weights(resumed)) == 0


def test_transcripts_of_another_peer_are_trained_on_by_their_ids(cache: Path) -> None:
    trainer = learner(cache)
    own, other = generated(trainer, 0), replace(generated(trainer, 0, "other"), peer="other")
    state = state_of(own, other)
    metrics = trainer.train(state, scored(state))
    assert metrics["groups_external"] == 3
    assert metrics["remote_dropped"] == 0
    assert metrics["importance"] == pytest.approx(1.0, abs=1e-4)
    uses = trainer.remote_uses()["other"]
    assert uses.tokens == sum(
        len(rollout.logprobs)
        for group in other.groups
        for at, rollout in enumerate(group.rollouts)
        if trainer.last_update()[next(key for key, g in state.remote_groups() if g == group)][at].advantage
    )
    assert uses.ratios / uses.tokens == pytest.approx(1.0, abs=1e-3)


def test_a_transcript_that_is_longer_than_any_of_ours_is_dropped(cache: Path) -> None:
    trainer = learner(cache, max_prompt_tokens=64)
    own = generated(trainer, 0)

    def long(group: Any) -> Any:
        rollout = group.rollouts[0]
        filler = tuple(rollout.token_ids[:1]) * 100
        (ids, text) = next(iter(rollout.turn_ids))
        segments = (Segment(len(ids), text), Segment(100, "x"), Segment(1, text))
        made = replace(
            rollout,
            text=text,
            token_ids=(*ids, *filler, ids[0]),
            logprobs=(*rollout.logprobs[: len(ids)], -1.0),
            segments=segments,
            finish_reason=FinishReason.TURNS,
        )
        return replace(group, rollouts=(made, *group.rollouts[1:]))

    other = replace(own, peer="other", groups=(long(own.groups[0]), *own.groups[1:]))
    state = state_of(own, other)
    (batch,) = training_batches(state, scored(state), trainer.policy, trainer.config)
    assert batch.counts["remote_dropped"] == 1
    assert batch.counts["groups_external"] == 2


def test_an_environment_that_fails_in_every_episode_ends_the_game_with_its_line(cache: Path) -> None:
    with pytest.raises(BadGame, match=r"failed in all 18 episodes of a round: ZeroDivisionError: always at .*:\d+\n"):
        generated(learner(cache, f"{__name__}:Broken", max_new_tokens=200, min_new_tokens=0), 0)


def test_options_that_do_not_fit_turns_are_named(cache: Path) -> None:
    for options, path in (({"min_new_tokens": 2}, "minNewTokens"), ({"overlap": True}, "overlap")):
        with pytest.raises(InvalidManifest, match=f"spec.game.trainer.with.{path}") as raised:
            learner(cache, **options)
        assert "in a game with an environment" in str(raised.value)


def test_an_implausible_turn_is_found_behind_a_long_observation(cache: Path) -> None:
    """Six rare ids of a turn lie in one window with those of the turn before, whatever stands between them."""
    trainer = learner(cache)
    state = state_of(generated(trainer, 0))
    sample = training_batches(state, scored(state), trainer.policy, trainer.config)[0].samples[0]
    trained = (True,) * 4 + (False,) * 20 + (True,) * 4
    sample.trained = trained
    mask = torch.tensor([trained])
    logprobs = torch.where(mask, torch.tensor(-8.0), torch.tensor(0.0))
    floors = Floors(window=-5.0, mean=-100.0)
    assert not bool(implausible(logprobs, mask, floors).any())
    assert bool(implausible(*without_gaps([sample], logprobs, mask), floors).all())
