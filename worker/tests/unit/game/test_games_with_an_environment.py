"""Games whose rollouts have several turns: of one peer, and of a swarm in memory with one that forges."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from guessing_games import GuessingTrainer, LocalEpisodes
from scripted_game import RecordingObserver, Scripted, manager, remote
from toys import ToyData

from swarmgame import Config, Contribution, FinishReason, GameState, Group, Question, Rollout, Round
from swarmgame.errors import BadGame
from swarmgame.game import environment_data
from swarmgame.game.components import ComponentContext
from swarmgame.game.environment import Environment, Episode, Play, Step
from swarmgame.game.environment_data import EnvironmentData
from swarmgame.game.external_sampling import ExternalSamplingPolicy
from swarmgame.game.manager import Progression
from swarmgame.game.protocol import Exchange
from swarmgame.game.state import PeerId, QuestionRef
from swarmgame.rewards.environment import EnvironmentRewards, EnvironmentRewardsConfig
from swarmgame.swarm.settings import SwarmSettings
from swarmgame.swarm.transports.memory import MemoryHub
from swarmgame.user_code import CodeError


def parts(questions: int = 3, generations: int = 4, **options: Any) -> dict[str, Any]:
    """Return the components of a guessing game."""
    episodes = LocalEpisodes(**options)
    return {
        "data": EnvironmentData(ToyData(ToyData.Config(questions=questions)), episodes),
        "rewards": EnvironmentRewards(EnvironmentRewardsConfig(), ComponentContext()),
        "trainer": GuessingTrainer(episodes, generations=generations),
        "episodes": episodes,
    }


def test_a_peer_plays_episodes_is_rewarded_for_them_and_reports_its_turns() -> None:
    game, seen, _ = manager(Scripted(), Progression(max_rounds=2, single_peer=True), **parts())
    game.run()
    rollouts = [rollout for _, group in seen.states[0].own_groups() for rollout in group.rollouts]
    rewards = [reward for values in seen.rewards[0].values() for reward in values]
    assert seen.reports[0].turns == pytest.approx(sum(len(rollout.turns) for rollout in rollouts) / len(rollouts))
    assert seen.reports[0].turns > 1
    assert seen.reports[0].tokens == sum(2 * len(rollout.turns) for rollout in rollouts)
    assert "environment" in seen.reports[0].seconds
    for rollout, reward in zip(rollouts, rewards, strict=True):
        assert reward == (1 - 0.1 * (len(rollout.turns) - 1) if rollout.finish_reason == "done" else 0.0)
    assert 0 < sum(map(bool, rewards)) < len(rewards)


def test_a_game_without_an_environment_refuses_turns_and_reports_none() -> None:
    def played(own: Contribution) -> list[Contribution]:
        other = remote("other", own.round)

        def change(group: Group) -> Group:
            return replace(
                group, rollouts=(replace(group.rollouts[0], finish_reason=FinishReason.ERROR), *group.rollouts[1:])
            )

        return [replace(other, groups=(change(other.groups[0]), *other.groups[1:]))]

    game, seen, _ = manager(Scripted(played), Progression(max_rounds=1, sharing=ExternalSamplingPolicy(8)))
    game.run()
    assert seen.reports[0].outcomes["transcript-mismatch"] == 1
    assert sum(seen.reports[0].external.values()) == 2
    assert math.isnan(seen.reports[0].turns)
    assert "environment" not in seen.reports[0].seconds


def altered(rollout: Rollout) -> Rollout:
    """A transcript with one other observation: the first."""
    first, observation, *rest = rollout.segments
    other = "smaller" if observation.text == "larger" else "larger"
    return replace(rollout, segments=(first, replace(observation, text=other), *rest))


def test_a_swarm_shares_transcripts_keeps_honest_ones_and_drops_a_thousand_altered_ones() -> None:
    hub = MemoryHub("guessing")
    progression = Progression(
        max_rounds=1,
        exchange=Exchange.GATHER,
        quorum=1.0,
        stage_deadline_seconds=600.0,
        sharing=ExternalSamplingPolicy(5000, "uniform", 5000),
    )
    names = ("ann", "bob", "mallory")

    def run(name: str) -> RecordingObserver:
        # On a busy machine a peer may not run for a minute: it stays a member.
        communication = hub.communication(name, SwarmSettings(lifetimes=60.0))
        communication.join(min_replicas=len(names), timeout_seconds=240.0)
        if name == "mallory":
            publish = communication.publish

            def forged(contribution: Contribution, claims: Sequence[Any] = ()) -> None:
                groups = tuple(
                    replace(group, rollouts=tuple(map(altered, group.rollouts))) for group in contribution.groups
                )
                publish(replace(contribution, groups=groups), claims)

            communication.publish = forged  # type: ignore[method-assign]
        game, seen, _ = manager(communication, progression, **parts(questions=1000, generations=1))
        game.run()
        return seen

    with ThreadPoolExecutor(len(names)) as pool:
        found = dict(zip(names, pool.map(run, names), strict=True))
    hub.close()
    for honest, other in (("ann", "bob"), ("bob", "ann")):
        report = found[honest].reports[0]
        assert report.outcomes["transcript-mismatch"] == 1000
        assert report.external == {other: 1000}
        assert report.refused == {"mallory": {"transcript-mismatch": 1000}}
    assert found["mallory"].reports[0].external == {"ann": 1000, "bob": 1000}


class Broken(Environment):
    """Cannot begin with an even number, and fails at the guess 1."""

    Config = Config

    def start(self, question: Question) -> Episode:
        if int(question.answer) % 2 == 0:
            raise LookupError("an even number")
        return _Broken()


class _Broken(Episode):
    def step(self, action: str) -> Step:
        if action == "1":
            raise ZeroDivisionError("one")
        return Step("again", 1.0, done=action == "2")


class OddData(ToyData):
    """Asks for odd numbers only; other peers may ask for any."""

    def round_data(self, round: Round) -> Sequence[Question]:
        asked = [replace(each.reference, seed=each.reference.seed | 1) for each in super().round_data(round)]
        return [self._question(reference) for reference in asked]


def test_an_episode_that_fails_is_not_scored_and_the_game_goes_on() -> None:
    episodes = LocalEpisodes(f"{__name__}:Broken")
    changes = parts() | {
        "data": EnvironmentData(OddData(), episodes),
        "trainer": GuessingTrainer(episodes, generations=16),
        "episodes": episodes,
    }
    game, seen, _ = manager(Scripted(), Progression(max_rounds=1, single_peer=True), **changes)
    game.run()
    rollouts = [rollout for _, group in seen.states[0].own_groups() for rollout in group.rollouts]
    rewards = [reward for values in seen.rewards[0].values() for reward in values]
    failed = [rollout.finish_reason == "error" for rollout in rollouts]
    assert [math.isnan(reward) for reward in rewards] == failed
    assert 0 < sum(failed) < len(failed)


def test_a_question_at_which_the_environment_fails_ends_our_own_game_but_no_game_of_another_peer() -> None:
    episodes = LocalEpisodes(f"{__name__}:Broken")
    data = EnvironmentData(ToyData(), episodes)
    even, odd = QuestionRef("toy", "v1", 2, 0), QuestionRef("toy", "v1", 3, 0)
    asked = [question for question in data.resolve_all([even, odd]) if question is not None]
    assert data.unbegun(asked, "other", 1) == {even.id: "unresolvable"}
    game, _, _ = manager(
        Scripted(),
        Progression(max_rounds=1, single_peer=True),
        **parts() | {"data": data, "trainer": GuessingTrainer(episodes), "episodes": episodes},
    )
    with pytest.raises(BadGame, match=r"failed before the first turn, at question 'which .*LookupError: an even"):
        game.run()


def test_the_time_of_transcripts_counts_for_their_author() -> None:
    game, _, trainer = manager(
        Scripted(lambda own: [replace(own, peer="other")]),
        Progression(max_rounds=1, exchange=Exchange.GATHER, sharing=ExternalSamplingPolicy(8)),
        **parts(),
    )
    game.run()
    authors: list[PeerId] = trainer.episodes.authors  # type: ignore[attr-defined]
    assert set(authors) == {"", "other"}


class Tired(LocalEpisodes):
    """Has no time left for one author."""

    def play(
        self, plays: Sequence[tuple[Question, Sequence[str]]], *, author: PeerId = "", waiting: int = 1
    ) -> Sequence[Play]:
        played = super().play(plays, author=author, waiting=waiting)
        if author != "mallory":
            return played
        return [Play(failure=CodeError("beyond budget", "used up"), is_known=False) for _ in plays]


def test_first_observations_of_other_peers_questions_take_the_time_of_their_author() -> None:
    """Those that were not played are no fault of their author, and of no other peer."""
    episodes = Tired()
    data = ToyData()

    def sent(peer: str) -> Contribution:
        round = Round(0, ord(peer[0]), ord(peer[0]), 1, peer)
        asked = data.round_data(round)
        local = LocalEpisodes()
        prompts = EnvironmentData(data, local).stage_inputs(GameState.begin(round, asked), 0)
        groups = tuple(GuessingTrainer(local).generate(prompts, round))
        return Contribution(peer, 0, 0, groups, {each.id: each.reference for each in asked}, "characters")

    game, seen, _ = manager(
        Scripted(lambda own: [sent("mallory"), sent("bob")]),
        Progression(max_rounds=1, exchange=Exchange.GATHER, sharing=ExternalSamplingPolicy(8)),
        **parts()
        | {"episodes": episodes, "data": EnvironmentData(data, episodes), "trainer": GuessingTrainer(episodes)},
    )
    game.run()
    groups = len(sent("mallory").groups)
    assert seen.reports[0].refused == {"mallory": {"transcript-not-played": groups}}
    assert set(seen.reports[0].external) == {"bob"}
    assert Counter(filter(None, episodes.authors)) == {"mallory": 2, "bob": 2}, "first observations, then transcripts"


GIVEN: list[tuple[str, float, tuple[float, ...], float]] = [
    ("sum", 0.0, (math.nan, 0.5, 0.25), 0.75),
    ("last", 0.0, (1.0, 0.5, math.nan), 0.5),
    ("sum", -1.0, (math.nan,), -1.0),
]


@pytest.mark.parametrize(("turns", "unfinished", "given", "reward"), GIVEN)
def test_rewards_of_turns_become_one_of_the_rollout(
    turns: str, unfinished: float, given: tuple[float, ...], reward: float
) -> None:
    config = EnvironmentRewardsConfig.model_validate({"turns": turns, "unfinished": unfinished})
    manager_ = EnvironmentRewards(config, ComponentContext())
    rollout = Rollout("1", (1,), (-1.0,), FinishReason.DONE, turn_rewards=given)
    assert manager_._reward(rollout) == reward


def test_first_observations_of_the_last_questions_are_kept_and_others_played_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(environment_data, "_CACHED", 4)
    episodes = LocalEpisodes()
    data = EnvironmentData(ToyData(), episodes)
    asked = [question for seed in range(8) if (question := data.resolve(QuestionRef("toy", "v1", seed, 0)))]
    assert data.unbegun(asked, "other", 1) == {}
    data.stage_inputs(GameState.begin(Round(0, 1, 1, 1, "me"), asked), 0)
    assert episodes.authors == ["other"], "more than are kept, and none is played in our own time"
    data.unbegun(asked[7:], "bob", 1)
    data.unbegun(asked[:1], "ann", 1)
    assert episodes.authors == ["other", "ann"], "of the eight, the last four are left"
