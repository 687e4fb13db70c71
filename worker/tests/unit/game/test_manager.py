"""GameManager: the order of a round, resumes, isolation, and evaluation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from scripted_game import SHARE, TWO, RecordingObserver, Scripted, manager, remote
from toys import ToyData, ToyTrainer

from swarmgame import (
    Contribution,
    GameState,
    Group,
    Prompt,
    Rewards,
    Round,
)
from swarmgame.game.collected_log import CollectedLog
from swarmgame.game.manager import Progression, RunResult
from swarmgame.game.protocol import Claim, ClosedBy, Collected, Exchange, Member
from swarmgame.game.report import RoundReport, SkipCause


def test_a_policy_improves_on_its_own_rewards_only() -> None:
    game, seen, _ = manager(Scripted(), Progression(max_rounds=60, seed=1, single_peer=True))
    assert game.run() is RunResult.FINISHED
    rewards = [report.reward for report in seen.reports]
    assert sum(rewards[-10:]) / 10 > sum(rewards[:10]) / 10 + 0.3


def test_claims_are_the_authors_scores_and_are_published_in_pull_mode_only() -> None:
    pull, gather = Scripted(members=TWO), Scripted(members=TWO)
    manager(pull, replace(SHARE, exchange=Exchange.PULL))[0].run()
    manager(gather, replace(SHARE, exchange=Exchange.GATHER))[0].run()
    contribution, claims = pull.published[0]
    for group, claim in zip(contribution.groups, claims, strict=True):
        resolved = ToyData().resolve(contribution.references[group.question_id])
        assert resolved is not None
        scores = [float(rollout.text == resolved.answer) for rollout in group.rollouts]
        assert claim == Claim(sum(scores) / len(scores), len(set(scores)) > 1)
    assert gather.published[0][1] == ()


def test_a_late_contribution_is_trained_on_once_and_not_when_it_is_too_old() -> None:
    def late(own: Contribution) -> list[Contribution]:
        return [remote("slow", own.round - 1)] if own.round == 1 else [remote("slower", 0)] if own.round == 3 else []

    game, seen, trainer = manager(Scripted(late, members=TWO), replace(SHARE, max_rounds=4))
    game.run()
    assert [report.external for report in seen.reports] == [{}, {"slow": 3}, {}, {}]
    assert sum(key.peer == "slow" for key in trainer.trained) == 3


def test_the_late_contribution_of_a_peer_that_does_not_count_is_still_asked_for() -> None:
    class WithNewcomer(Scripted):
        def collect(self, *args: Any, **options: Any) -> Collected:
            standings = {"other": "anchor", "new": "probation", "slow": "missed"}
            return replace(super().collect(*args, **options), standings=standings)

    members = [Member(name, 0, 0) for name in ("new", "other", "slow")]

    def others(own: Contribution) -> list[Contribution]:
        return [remote("new", 0), remote("other", 1)] if own.round == 1 else []

    scripted = WithNewcomer(others, members=members)
    game, seen, _ = manager(scripted, replace(SHARE, max_rounds=3))
    game.run()
    assert scripted.policies[1].collected == {(0, 0, "me"), (0, 0, "other")}
    assert {(0, 0, "new"), (1, 0, "other")} <= scripted.policies[2].collected
    assert not {(1, 0, "new"), (0, 0, "slow")} & scripted.policies[2].collected
    assert seen.reports[1].external["new"] == 3


def test_collected_contributions_are_excluded_from_later_stages_also_after_a_restart() -> None:
    first = Scripted(lambda own: [remote("other", own.round)], members=TWO)
    game, _, _ = manager(first, replace(SHARE, max_rounds=3))
    game.run()
    assert {(2, 0, "other"), (2, 0, "me"), (1, 0, "other")} <= first.policies[
        -1
    ].collected | game.collected_log.collected
    assert (0, 0, "other") not in game.collected_log.collected

    collected_log = CollectedLog(keep_rounds=1)
    collected_log.load_state_dict(game.collected_log.state_dict())
    second = Scripted(members=TWO)
    manager(second, replace(SHARE, max_rounds=4), collected_log=collected_log)[0].run(3)
    assert (2, 0, "other") in second.policies[0].collected


def test_a_stop_in_the_middle_of_a_round_loses_only_that_round_and_a_resume_repeats_it() -> None:
    straight, complete, _ = manager(Scripted(), Progression(max_rounds=6, seed=3))
    straight.run()

    stop = False
    communication = Scripted()
    game, seen, trainer = manager(communication, Progression(max_rounds=6, seed=3), stopped=lambda: stop)

    def stop_in_round_three() -> None:
        nonlocal stop
        stop = communication.published[-1][0].round == 3

    communication.on_collect = stop_in_round_three
    assert game.run() is RunResult.STOPPED
    assert trainer.policy_version == 3
    assert seen.began == [0, 1, 2, 3]

    resumed = ToyTrainer()
    resumed.load_state_dict(trainer.state_dict())
    again, rest, _ = manager(Scripted(), Progression(max_rounds=6, seed=3), trainer=resumed)
    assert again.run(3) is RunResult.FINISHED

    def comparable(report: RoundReport) -> RoundReport:
        return replace(report, seconds={})

    assert [comparable(r) for r in (*seen.reports, *rest.reports)] == [comparable(r) for r in complete.reports]
    assert resumed.state_dict() == straight.trainer.state_dict()


def test_a_round_that_a_stop_ended_has_collected_nothing() -> None:
    stop = False
    communication = Scripted(lambda own: [remote("other", own.round)] if own.stage == 0 else [], members=TWO)
    game, _, _ = manager(communication, replace(SHARE, max_rounds=4, stages=2), stopped=lambda: stop)

    def stop_in_the_second_stage() -> None:
        nonlocal stop
        stop = (communication.published[-1][0].round, communication.published[-1][0].stage) == (2, 1)

    communication.on_collect = stop_in_the_second_stage
    assert game.run() is RunResult.STOPPED
    assert {when for when, _, _ in game.collected_log.collected} == {0, 1}


class AheadTrainer(ToyTrainer):
    """Records the calls of `generate_ahead`, and reports an older version as the sampling version."""

    generates_ahead = True

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[tuple[Round, tuple[Prompt, ...], int]] = []
        self.generated: dict[tuple[int, int], tuple[Prompt, ...]] = {}

    @property
    def sampling_version(self) -> int:
        return max(0, self.updates - 1)

    def generate_ahead(self, prompts: Sequence[Prompt], round: Round) -> None:
        self.begun.append((round, tuple(prompts), len(self.generated)))

    def generate(self, prompts: Sequence[Prompt], round: Round) -> Sequence[Group]:
        if not round.evaluation:
            self.generated[round.number, round.stage] = tuple(prompts)
        return super().generate(prompts, round)


def test_the_next_rounds_first_stage_is_generated_ahead_with_its_own_prompts_after_the_last_stage() -> None:
    communication = Scripted(members=TWO)
    game, _, trainer = manager(
        communication, Progression(max_rounds=4, stages=2, evaluate_every=2), trainer=AheadTrainer()
    )
    published: list[int] = []
    communication.on_collect = lambda: published.append(len(trainer.begun))  # type: ignore[attr-defined]
    game.run()
    assert isinstance(trainer, AheadTrainer)
    assert [(round.number, round.stage, round.evaluation) for round, _, _ in trainer.begun] == [
        (n, 0, False) for n in (1, 2, 3)
    ]
    assert all(prompts == trainer.generated[round.number, 0] for round, prompts, _ in trainer.begun)
    assert [stages for *_, stages in trainer.begun] == [2, 4, 6]
    assert published == [0, 1, 1, 2, 2, 3, 3, 3]
    assert [c.policy_version for c, _ in communication.published] == [0, 0, 0, 0, 1, 1, 2, 2]


def test_nothing_is_generated_ahead_for_data_that_depends_on_the_round_before_and_one_warning_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Dependent(ToyData):
        knows_next_round = False

    with caplog.at_level(logging.WARNING):
        game, _, trainer = manager(
            Scripted(members=TWO), Progression(max_rounds=4), trainer=AheadTrainer(), data=Dependent()
        )
        game.run()
    assert isinstance(trainer, AheadTrainer)
    assert trainer.begun == []
    assert (
        len([record for record in caplog.records if "Dependent knows a round's questions only after" in record.message])
        == 1
    )


def test_an_isolated_peer_logs_an_error_and_stops_with_stop_when_isolated(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        stopping, seen, _ = manager(Scripted(), Progression(max_rounds=5, stop_when_isolated=True))
        assert stopping.run() is RunResult.ISOLATED
    assert [report.closed_by for report in seen.reports] == [ClosedBy.ISOLATED]
    assert [record.levelname for record in caplog.records if "alone" in record.message] == ["ERROR"]


def test_an_isolated_peer_goes_on_without_stop_when_isolated_and_logs_one_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        assert manager(Scripted(), Progression(max_rounds=5))[0].run() is RunResult.FINISHED
    assert len([record for record in caplog.records if "alone" in record.message]) == 1


def test_a_game_for_one_peer_is_never_isolated(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        manager(Scripted(), Progression(max_rounds=3, single_peer=True, stop_when_isolated=True))[0].run()
    assert not caplog.records


def test_a_new_peer_begins_at_the_median_round_of_the_swarm() -> None:
    members = [Member("a", 7, 0), Member("b", 8, 0), Member("liar", 10**9, 0)]
    game, seen, _ = manager(Scripted(members=members), Progression(max_rounds=9))
    game.run()
    assert seen.began[0] == 8


def test_a_peer_that_lags_by_more_than_one_round_skips_ahead() -> None:
    lagging, seen, _ = manager(Scripted(members=[Member("a", 6, 0), Member("b", 6, 0)]), Progression(max_rounds=8))
    lagging.run(2)
    assert seen.began == [6, 7]
    close, seen, _ = manager(Scripted(members=[Member("a", 6, 0), Member("b", 6, 0)]), Progression(max_rounds=8))
    close.run(5)
    assert seen.began == [5, 6, 7]


def test_evaluation_uses_held_out_questions_trains_nothing_and_publishes_nothing() -> None:
    communication = Scripted()
    game, seen, trainer = manager(communication, Progression(max_rounds=4, evaluate_every=2, evaluation_questions=5))
    game.run()
    evaluations = [report.evaluation for report in seen.reports]
    assert [evaluation is not None for evaluation in evaluations] == [False, True, False, True]
    assert trainer.policy_version == 4
    held_out = {question.id for question in ToyData().evaluation_data(5)}
    assert held_out.isdisjoint(
        group.question_id for contribution, _ in communication.published for group in contribution.groups
    )
    first = evaluations[1]
    assert first is not None
    assert first.samples == 4
    assert set(first.average) == {"toy", "all"}
    assert first.average["toy"] <= first.passed["toy"] <= 1


def test_evaluation_does_not_change_the_training() -> None:
    with_it, _, trained = manager(Scripted(), Progression(max_rounds=6, evaluate_every=1))
    without, _, untouched = manager(Scripted(), Progression(max_rounds=6))
    with_it.run()
    without.run()
    assert trained.state_dict() == untouched.state_dict()


def test_an_exception_of_a_component_ends_the_game() -> None:
    class Failing(ToyTrainer):
        def train(self, state: GameState, rewards: Rewards) -> dict[str, float]:
            raise ZeroDivisionError("the author's mistake")

    with pytest.raises(ZeroDivisionError, match="the author's mistake"):
        manager(Scripted(), Progression(max_rounds=3), trainer=Failing())[0].run()


class SkipObserver(RecordingObserver):
    def __init__(self) -> None:
        super().__init__()
        self.skipped: list[tuple[int, int, SkipCause]] = []

    def rounds_skipped(self, first: int, count: int, cause: SkipCause) -> None:
        self.skipped.append((first, count, cause))


@pytest.mark.parametrize(
    ("first_round", "present", "skipped", "played"),
    [
        (None, 0, [], [0, 1, 2, 3]),
        (None, 2, [(0, 2, SkipCause.LATE)], [2, 3]),
        (1, 3, [(1, 2, SkipCause.AWAY)], [3]),
        (2, 3, [], [2, 3]),
        (1, 9, [(1, 2, SkipCause.AWAY)], [3]),
        (None, 10**9, [(0, 3, SkipCause.LATE)], [3]),
    ],
    ids=["from the start", "entered late", "resumed", "one behind is no gap", "after the end", "of any claim"],
)
def test_observers_hear_of_skipped_rounds_and_why(
    first_round: int | None, present: int, skipped: list[tuple[int, int, SkipCause]], played: list[int]
) -> None:
    observer = SkipObserver()
    swarm = Scripted(members=[Member("other", present, 0)])
    game, _, _ = manager(swarm, replace(SHARE, max_rounds=4), observers=[observer])
    assert game.run(first_round) is RunResult.FINISHED
    assert (observer.skipped, observer.began) == (skipped, played)


def test_a_peer_that_the_others_have_left_behind_skips_because_it_is_slow() -> None:
    observer = SkipObserver()
    swarm = Scripted(members=TWO)
    game, _, _ = manager(swarm, replace(SHARE, max_rounds=6), observers=[observer])

    def others_go_on() -> None:
        swarm.members = (Member("other", 4, 0),)

    swarm.on_collect = others_go_on
    game.run()
    assert (observer.skipped, observer.began) == ([(1, 3, SkipCause.SLOW)], [0, 4, 5])
