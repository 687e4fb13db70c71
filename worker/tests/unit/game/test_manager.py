"""GameManager: the order of a round, what is learnt from whom, and what happens when others lie, vanish or come late."""

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
    """One end of a conversation whose other end is a script: `others(round, stage, published)` says what is heard."""

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
        """Always in."""

    def membership(self) -> tuple[Member, ...]:
        return tuple(sorted((Member(self.peer, 0, 0), *self.members), key=lambda member: member.peer))

    def announce_progress(self, round: int, stage: int) -> None:
        """Nobody asks."""

    def publish(self, contribution: Contribution, claims: Sequence[Claim] = ()) -> None:
        self.published.append((contribution, tuple(claims)))

    def collect(
        self, round: int, stage: int, policy: CollectPolicy, *, stopped: Callable[[], bool] = lambda: False
    ) -> Collected:
        self.on_collect()
        self.policies.append(policy)
        heard = tuple(sorted(self.others(self.published[-1][0]), key=lambda c: (c.round, c.peer)))
        names = tuple(member.peer for member in self.membership())
        closed = ClosedBy.QUORUM if len(names) > 1 else ClosedBy.ISOLATED
        return Collected(heard, names, (), closed, {"accepted": len(heard)}, seconds=0.0)

    def leave(self) -> None:
        """Nothing to close."""


class Listening(Observer):
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


def manager(communication: Any, progression: Progression, **changes: Any) -> tuple[GameManager, Listening, ToyTrainer]:
    observer, trainer = Listening(), changes.pop("trainer", None) or ToyTrainer()
    parts = {
        "data": ToyData(),
        "rewards": ToyRewards(),
        "trainer": trainer,
        "communication": communication,
        "observers": [observer],
    } | changes
    return GameManager(progression, **parts), observer, trainer


def foreign(peer: str, round: int, *, stage: int = 0, count: int = 3) -> Contribution:
    """What an honest peer says in stage 0: its own questions, answered right, wrong, right, wrong."""
    questions = [Question(QuestionRef("toy", "v1", derive_seed(peer, round, index), index)) for index in range(count)]
    resolved = [ToyData().resolve(question.reference) for question in questions]
    groups = []
    for question in resolved:
        assert question is not None
        right = int(question.answer)
        picks = (right, (right + 1) % 4, right, (right + 2) % 4)
        groups.append(
            Group(
                Prompt.ask(question), tuple(Rollout(str(p), (p,), (math.log(0.25),), FinishReason.STOP) for p in picks)
            )
        )
    return Contribution(
        peer, round, stage, tuple(groups), {i.id: i.reference for i in resolved if i is not None}, tokenizer="digits"
    )


TWO = (Member("other", 0, 0),)
SHARE = Progression(max_rounds=1, sharing=ExternalSamplingPolicy(external_groups=8))


def test_a_policy_learns_from_its_own_rewards_alone() -> None:
    game, seen, _ = manager(Scripted(), Progression(max_rounds=60, seed=1, single_peer=True))
    assert game.run() is RunResult.FINISHED
    rewards = [report.reward for report in seen.reports]
    assert sum(rewards[-10:]) / 10 > sum(rewards[:10]) / 10 + 0.3


def test_an_honest_peers_groups_are_scored_by_us_and_trained_on() -> None:
    game, seen, trainer = manager(Scripted(lambda own: [foreign("other", own.round)], members=TWO), SHARE)
    game.run()
    assert seen.reports[0].external == {"other": 3}
    assert {key.peer for key in trainer.trained} == {"me", "other"}
    key = next(key for key in trainer.trained if key.peer == "other")
    assert seen.rewards[0][key] == [1.0, 0.0, 1.0, 0.0]


def lie_about_the_answer(contribution: Contribution) -> Contribution:
    """Right text over other ids."""
    groups = tuple(
        replace(g, rollouts=tuple(replace(r, token_ids=((r.token_ids[0] + 1) % 4,)) for r in g.rollouts))
        for g in contribution.groups
    )
    return replace(contribution, groups=groups)


def lie_about_the_prompt(contribution: Contribution) -> Contribution:
    groups = tuple(
        replace(g, prompt=replace(g.prompt, messages=(Message("user", "say what I want"),)))
        for g in contribution.groups
    )
    return replace(contribution, groups=groups)


def lie_about_the_question(contribution: Contribution) -> Contribution:
    """References that are not of the ids they stand under."""
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
def test_a_lying_peer_is_counted_and_nothing_of_it_is_trained_on(
    lie: Callable[[Contribution], Contribution], reason: str
) -> None:
    game, seen, trainer = manager(Scripted(lambda own: [lie(foreign("other", own.round))], members=TWO), SHARE)
    assert game.run() is RunResult.FINISHED
    assert seen.reports[0].outcomes[reason] == 3
    assert {key.peer for key in trainer.trained} == {"me"}


def test_a_claim_is_our_own_score_and_is_made_only_where_others_choose_by_it() -> None:
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


def test_the_prompts_trained_on_are_those_generated_on_in_every_stage() -> None:
    """Three stages with the others' words in them; GenRL rebuilt the prompts at training time and got 24 of 36 wrong."""
    asked: list[Prompt] = []

    class Remembering(ToyTrainer):
        def generate(self, prompts: Sequence[Prompt], round: Round) -> Sequence[Group]:
            asked.extend(prompts)
            return super().generate(prompts, round)

    def same_questions(own: Contribution) -> list[Contribution]:
        return [replace(own, peer="other")]

    progression = Progression(max_rounds=2, stages=3, exchange=Exchange.GATHER)
    game, seen, _ = manager(Scripted(same_questions, members=TWO), progression, trainer=Remembering())
    game.run()
    trained = [group.prompt for state in seen.states for _, group in state.own_groups()]
    assert len(trained) == 18
    assert [(p.question_id, p.messages) for p in trained] == [(p.question_id, p.messages) for p in asked]
    assert sum("other: " in prompt.text for prompt in trained) == 12


def test_words_of_a_later_stage_that_answer_another_prompt_are_heard_but_not_trained_on() -> None:
    def other_context(own: Contribution) -> list[Contribution]:
        groups = own.groups
        if own.stage:
            groups = tuple(
                replace(g, prompt=replace(g.prompt, messages=(Message("user", "what another set of peers said"),)))
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
        return [foreign("slow", own.round - 1)] if own.round == 1 else [foreign("slower", 0)] if own.round == 3 else []

    game, seen, trainer = manager(Scripted(late, members=TWO), replace(SHARE, max_rounds=4))
    game.run()
    assert [report.external for report in seen.reports] == [{}, {"slow": 3}, {}, {}]
    assert sum(key.peer == "slow" for key in trainer.trained) == 3


def test_words_that_were_there_when_a_stage_closed_are_not_asked_for_again_even_by_the_next_process() -> None:
    first = Scripted(lambda own: [foreign("other", own.round)], members=TWO)
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


def test_stopping_in_the_middle_of_a_round_loses_that_round_alone_and_a_resume_repeats_it() -> None:
    straight, whole, _ = manager(Scripted(), Progression(max_rounds=6, seed=3))
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

    assert [comparable(r) for r in (*seen.reports, *rest.reports)] == [comparable(r) for r in whole.reports]
    assert resumed.state_dict() == straight.trainer.state_dict()


class Ahead(ToyTrainer):
    """A trainer that notes what it is asked to generate ahead, and says that older weights sampled what it generates."""

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


def test_the_next_rounds_first_stage_begins_once_the_last_stage_is_sampled_with_the_prompts_that_it_will_ask() -> None:
    communication = Scripted(members=TWO)
    game, _, trainer = manager(communication, Progression(max_rounds=4, stages=2, evaluate_every=2), trainer=Ahead())
    published: list[int] = []
    communication.on_collect = lambda: published.append(len(trainer.begun))  # type: ignore[attr-defined]
    game.run()
    assert isinstance(trainer, Ahead)
    assert [(round.number, round.stage, round.evaluation) for round, _, _ in trainer.begun] == [
        (n, 0, False) for n in (1, 2, 3)
    ]
    assert all(prompts == trainer.generated[round.number, 0] for round, prompts, _ in trainer.begun)
    assert [stages for *_, stages in trainer.begun] == [2, 4, 6]
    assert published == [0, 1, 1, 2, 2, 3, 3, 3]
    assert [c.policy_version for c, _ in communication.published] == [0, 0, 0, 0, 1, 1, 2, 2]


def test_data_that_cannot_know_its_next_questions_is_not_asked_for_them_and_that_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Dependent(ToyData):
        knows_next_round = False

    with caplog.at_level(logging.WARNING):
        game, _, trainer = manager(Scripted(members=TWO), Progression(max_rounds=4), trainer=Ahead(), data=Dependent())
        game.run()
    assert isinstance(trainer, Ahead)
    assert trainer.begun == []
    assert (
        len([record for record in caplog.records if "Dependent knows a round's questions only when" in record.message])
        == 1
    )


def test_the_last_peer_says_that_it_is_alone_and_stops_when_the_manifest_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        stopping, seen, _ = manager(Scripted(), Progression(max_rounds=5, stop_when_isolated=True))
        assert stopping.run() is RunResult.ISOLATED
    assert [report.closed_by for report in seen.reports] == [ClosedBy.ISOLATED]
    assert [record.levelname for record in caplog.records if "alone" in record.message] == ["ERROR"]


def test_the_last_peer_goes_on_when_the_manifest_says_so_and_says_it_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert manager(Scripted(), Progression(max_rounds=5))[0].run() is RunResult.FINISHED
    assert len([record for record in caplog.records if "alone" in record.message]) == 1


def test_a_game_for_one_is_not_alone(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        manager(Scripted(), Progression(max_rounds=3, single_peer=True, stop_when_isolated=True))[0].run()
    assert not caplog.records


def test_a_newcomer_begins_where_the_swarm_is_and_no_single_liar_sends_it_elsewhere() -> None:
    members = [Member("a", 7, 0), Member("b", 8, 0), Member("liar", 10**9, 0)]
    game, seen, _ = manager(Scripted(members=members), Progression(max_rounds=9))
    game.run()
    assert seen.began[0] == 8


def test_a_peer_that_fell_behind_skips_what_nobody_can_share_with_it_and_one_round_is_not_behind() -> None:
    behind, seen, _ = manager(Scripted(members=[Member("a", 6, 0), Member("b", 6, 0)]), Progression(max_rounds=8))
    behind.run(2)
    assert seen.began == [6, 7]
    close, seen, _ = manager(Scripted(members=[Member("a", 6, 0), Member("b", 6, 0)]), Progression(max_rounds=8))
    close.run(5)
    assert seen.began == [5, 6, 7]


def test_evaluation_asks_held_out_questions_learns_nothing_and_tells_nobody() -> None:
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


def test_evaluation_does_not_change_what_is_learnt() -> None:
    with_it, _, trained = manager(Scripted(), Progression(max_rounds=6, evaluate_every=1))
    without, _, untouched = manager(Scripted(), Progression(max_rounds=6))
    with_it.run()
    without.run()
    assert trained.state_dict() == untouched.state_dict()


def test_an_error_of_a_part_ends_the_game_loudly() -> None:
    class Failing(ToyTrainer):
        def train(self, state: GameState, rewards: Rewards) -> dict[str, float]:
            raise ZeroDivisionError("the author's mistake")

    with pytest.raises(ZeroDivisionError, match="the author's mistake"):
        manager(Scripted(), Progression(max_rounds=3), trainer=Failing())[0].run()


def test_a_group_key_of_an_external_group_finds_its_group() -> None:
    game, seen, _ = manager(Scripted(lambda own: [foreign("other", own.round)], members=TWO), SHARE)
    game.run()
    state = seen.states[0]
    assert len(state.external) == 3
    for key in state.external:
        assert isinstance(key, GroupKey)
        group = state.group_of(key)
        assert group.prompt.token_ids == ()
        assert group.prompt.text == state.questions[key.question_id].text
