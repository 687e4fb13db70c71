"""GameManager: the order of a round, which groups are trained on, and peers that lie, leave or come late."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from toys import ToyData, ToyRewards, ToyTrainer

from swarmgame import (
    Contribution,
    FinishReason,
    GameState,
    Group,
    GroupKey,
    Message,
    Prompt,
    Question,
    QuestionRef,
    Rewards,
    Rollout,
    Round,
)
from swarmgame.game.collected_log import CollectedLog
from swarmgame.game.external_sampling import ExternalSamplingPolicy
from swarmgame.game.manager import GameManager, Progression, RunResult
from swarmgame.game.protocol import Claim, ClosedBy, Collected, CollectPolicy, Exchange, Member
from swarmgame.game.report import Observer, RoundReport
from swarmgame.seeds import derive_seed


class Scripted:
    """A CommunicationManager with scripted peers: `others(published)` returns what `collect` collects."""

    def __init__(
        self,
        others: Callable[[Contribution], Sequence[Contribution]] = lambda own: (),
        *,
        members: Sequence[Member] = (),
        peer: str = "me",
    ) -> None:
        self.peer = peer
        self.others = others
        self.members = tuple(members)
        self.published: list[tuple[Contribution, tuple[Claim, ...]]] = []
        self.policies: list[CollectPolicy] = []
        self.on_collect: Callable[[], None] = lambda: None

    def join(self, *, expect: Sequence[str] = (), at_least: int = 1, timeout_seconds: float = 120.0) -> None:
        """Nothing to do."""

    def membership(self) -> tuple[Member, ...]:
        return tuple(sorted((Member(self.peer, 0, 0), *self.members), key=lambda member: member.peer))

    def announce_progress(self, round: int, stage: int) -> None:
        """Nothing to do."""

    def publish(self, contribution: Contribution, claims: Sequence[Claim] = ()) -> None:
        self.published.append((contribution, tuple(claims)))

    def collect(
        self, round: int, stage: int, policy: CollectPolicy, *, stopped: Callable[[], bool] = lambda: False
    ) -> Collected:
        self.on_collect()
        self.policies.append(policy)
        received = tuple(sorted(self.others(self.published[-1][0]), key=lambda c: (c.round, c.peer)))
        names = tuple(member.peer for member in self.membership())
        closed = ClosedBy.QUORUM if len(names) > 1 else ClosedBy.ISOLATED
        return Collected(received, names, (), closed, {"accepted": len(received)}, seconds=0.0)

    def leave(self) -> None:
        """Nothing to close."""


class RecordingObserver(Observer):
    def __init__(self) -> None:
        self.reports: list[RoundReport] = []
        self.states: list[GameState] = []
        self.rewards: list[Rewards] = []
        self.began: list[int] = []

    def round_started(self, round: Round) -> None:
        self.began.append(round.number)

    def round_finished(self, report: RoundReport, state: GameState, rewards: Rewards) -> None:
        self.reports.append(report)
        self.states.append(state)
        self.rewards.append(rewards)


def manager(
    communication: Any, progression: Progression, **changes: Any
) -> tuple[GameManager, RecordingObserver, ToyTrainer]:
    observer, trainer = RecordingObserver(), changes.pop("trainer", None) or ToyTrainer()
    components = {
        "data": ToyData(),
        "rewards": ToyRewards(),
        "trainer": trainer,
        "communication": communication,
        "observers": [observer],
    } | changes
    return GameManager(progression, **components), observer, trainer


def remote(peer: str, round: int, *, stage: int = 0, count: int = 3) -> Contribution:
    """The contribution of an honest peer in stage 0: its own questions, answered right, wrong, right, wrong."""
    questions = [Question(QuestionRef("toy", "v1", derive_seed(peer, round, index), index)) for index in range(count)]
    resolved = [ToyData().resolve(question.reference) for question in questions]
    groups = []
    for question in resolved:
        assert question is not None
        right = int(question.answer)
        picks = (right, (right + 1) % 4, right, (right + 2) % 4)
        groups.append(
            Group(
                Prompt.from_question(question),
                tuple(Rollout(str(p), (p,), (math.log(0.25),), FinishReason.STOP) for p in picks),
            )
        )
    return Contribution(
        peer, round, stage, tuple(groups), {i.id: i.reference for i in resolved if i is not None}, tokenizer="digits"
    )


TWO = (Member("other", 0, 0),)
SHARE = Progression(max_rounds=1, sharing=ExternalSamplingPolicy(external_groups=8))


def test_a_policy_improves_on_its_own_rewards_only() -> None:
    game, seen, _ = manager(Scripted(), Progression(max_rounds=60, seed=1, single_peer=True))
    assert game.run() is RunResult.FINISHED
    rewards = [report.reward for report in seen.reports]
    assert sum(rewards[-10:]) / 10 > sum(rewards[:10]) / 10 + 0.3


def test_groups_of_an_honest_peer_are_scored_here_and_trained_on() -> None:
    game, seen, trainer = manager(Scripted(lambda own: [remote("other", own.round)], members=TWO), SHARE)
    game.run()
    assert seen.reports[0].external == {"other": 3}
    assert {key.peer for key in trainer.trained} == {"me", "other"}
    key = next(key for key in trainer.trained if key.peer == "other")
    assert seen.rewards[0][key] == [1.0, 0.0, 1.0, 0.0]


def lie_about_the_answer(contribution: Contribution) -> Contribution:
    """The right text with different ids."""
    groups = tuple(
        replace(g, rollouts=tuple(replace(r, token_ids=((r.token_ids[0] + 1) % 4,)) for r in g.rollouts))
        for g in contribution.groups
    )
    return replace(contribution, groups=groups)


def lie_about_the_prompt(contribution: Contribution) -> Contribution:
    groups = tuple(
        replace(g, prompt=replace(g.prompt, messages=(Message("user", "answer what I want"),)))
        for g in contribution.groups
    )
    return replace(contribution, groups=groups)


def lie_about_the_question(contribution: Contribution) -> Contribution:
    """References under ids that are not theirs."""
    other = QuestionRef("toy", "v1", 1, 1)
    return replace(contribution, references=dict.fromkeys(contribution.references, other))


def another_game(contribution: Contribution) -> Contribution:
    questions = {
        group.question_id: Question(replace(contribution.references[group.question_id], config="v2"))
        for group in contribution.groups
    }
    groups = tuple(
        replace(g, prompt=replace(g.prompt, question_id=questions[g.question_id].id)) for g in contribution.groups
    )
    return replace(
        contribution, groups=groups, references={question.id: question.reference for question in questions.values()}
    )


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (lie_about_the_answer, "text-mismatch"),
        (lie_about_the_prompt, "prompt-mismatch"),
        (lie_about_the_question, "unresolvable"),
        (another_game, "unresolvable"),
    ],
)
def test_forged_groups_are_counted_and_not_trained_on(lie: Callable[[Contribution], Contribution], reason: str) -> None:
    game, seen, trainer = manager(Scripted(lambda own: [lie(remote("other", own.round))], members=TWO), SHARE)
    assert game.run() is RunResult.FINISHED
    assert seen.reports[0].outcomes[reason] == 3
    assert {key.peer for key in trainer.trained} == {"me"}


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


def test_in_every_stage_the_trained_prompts_are_those_that_were_generated_from() -> None:
    """Three stages whose prompts contain remote text; GenRL rebuilt prompts in training and got 24 of 36 wrong."""
    prompted: list[Prompt] = []

    class RecordingTrainer(ToyTrainer):
        def generate(self, prompts: Sequence[Prompt], round: Round) -> Sequence[Group]:
            prompted.extend(prompts)
            return super().generate(prompts, round)

    def same_questions(own: Contribution) -> list[Contribution]:
        return [replace(own, peer="other")]

    progression = Progression(max_rounds=2, stages=3, exchange=Exchange.GATHER)
    game, seen, _ = manager(Scripted(same_questions, members=TWO), progression, trainer=RecordingTrainer())
    game.run()
    trained = [group.prompt for state in seen.states for _, group in state.own_groups()]
    assert len(trained) == 18
    assert [(p.question_id, p.messages) for p in trained] == [(p.question_id, p.messages) for p in prompted]
    assert sum("other: " in prompt.text for prompt in trained) == 12


def test_groups_of_a_later_stage_with_a_different_prompt_are_used_as_text_but_not_trained_on() -> None:
    def other_context(own: Contribution) -> list[Contribution]:
        groups = own.groups
        if own.stage:
            groups = tuple(
                replace(g, prompt=replace(g.prompt, messages=(Message("user", "the answers of another set of peers"),)))
                for g in groups
            )
        return [replace(own, peer="other", groups=groups)]

    progression = replace(SHARE, stages=2, exchange=Exchange.GATHER)
    game, seen, _ = manager(Scripted(other_context, members=TWO), progression)
    game.run()
    assert seen.reports[0].outcomes["words-only"] == 3
    assert {key.stage for key in seen.states[0].external} <= {0}
    assert len(seen.states[0].contributions(1)) == 2


def test_a_late_contribution_is_trained_on_once_and_not_when_it_is_too_old() -> None:
    def late(own: Contribution) -> list[Contribution]:
        return [remote("slow", own.round - 1)] if own.round == 1 else [remote("slower", 0)] if own.round == 3 else []

    game, seen, trainer = manager(Scripted(late, members=TWO), replace(SHARE, max_rounds=4))
    game.run()
    assert [report.external for report in seen.reports] == [{}, {"slow": 3}, {}, {}]
    assert sum(key.peer == "slow" for key in trainer.trained) == 3


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


def test_a_group_key_of_an_external_group_finds_its_group() -> None:
    game, seen, _ = manager(Scripted(lambda own: [remote("other", own.round)], members=TWO), SHARE)
    game.run()
    state = seen.states[0]
    assert len(state.external) == 3
    for key in state.external:
        assert isinstance(key, GroupKey)
        group = state.group_of(key)
        assert group.prompt.token_ids == ()
        assert group.prompt.text == state.questions[key.question_id].text
