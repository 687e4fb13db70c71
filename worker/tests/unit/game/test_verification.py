"""Groups of other peers: which are verified and trained on, and which are dropped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from scripted_game import SHARE, TWO, Scripted, manager, remote
from toys import ToyTrainer

from swarmgame import (
    Contribution,
    GameState,
    Group,
    GroupKey,
    Message,
    Observer,
    Prompt,
    Question,
    QuestionRef,
    Round,
)
from swarmgame.game.manager import Progression, RunResult
from swarmgame.game.protocol import Collected, Exchange
from swarmgame.game.verification import VerifiedRollouts


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


def test_the_reason_of_each_group_is_given_beside_the_counts() -> None:
    found: list[VerifiedRollouts] = []

    class Reasons(Observer):
        def stage_verified(self, state: GameState, collected: Collected, verified: VerifiedRollouts) -> None:
            found.append(verified)

    honest, liar = remote("other", 0), lie_about_the_answer(remote("liar", 0))
    game, _, _ = manager(Scripted(lambda own: [honest, liar], members=TWO), SHARE, observers=[Reasons()])
    game.run()
    by_peer = dict(zip(("liar", "other"), found[0].reasons, strict=True))
    assert by_peer == {"other": {}, "liar": {group.question_id: "text-mismatch" for group in liar.groups}}


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
