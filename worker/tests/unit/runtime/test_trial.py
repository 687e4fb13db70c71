"""The trial of a game before anything starts: the author's errors with the author's lines, and a time limit."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from toys import ToyData, ToyRewards

from swarmgame import (
    ComponentContext,
    GameState,
    GroupKey,
    Prompt,
    Question,
    QuestionRef,
    Role,
    RoleManager,
    Rollout,
    Round,
)
from swarmgame.errors import BadGame, InvalidManifest
from swarmgame.game.external_sampling import ExternalSamplingPolicy
from swarmgame.game.manager import Progression
from swarmgame.game.protocol import Exchange
from swarmgame.rewards import composite
from swarmgame.rewards.composite import CompositeRewards, CompositeRewardsConfig
from swarmgame.runtime import trial
from swarmgame.runtime.trial import try_game

SHARES = Progression(max_rounds=3, sharing=ExternalSamplingPolicy(external_groups=8), evaluate_every=1)


def tried(
    data: type[ToyData] = ToyData,
    rewards: type[ToyRewards] = ToyRewards,
    progression: Progression = SHARES,
    roles: RoleManager | None = None,
    replicas: int = 2,
    seconds: float = 60.0,
) -> tuple[str, ...]:
    context, config = ComponentContext(), ToyRewards.Config()
    return try_game(
        progression, data, data.Config(), rewards, config, context, roles=roles, replicas=replicas, seconds=seconds
    ).warnings


def test_a_sound_game_has_no_warnings_and_its_data_is_closed() -> None:
    closed: list[bool] = []

    class Closing(ToyData):
        def close(self) -> None:
            closed.append(True)

    assert tried(Closing) == ()
    assert closed == [True, True]  # of each of the two peers


def test_an_error_of_the_data_names_class_method_and_the_authors_line() -> None:
    class Failing(ToyData):
        def round_data(self, round: Round) -> Sequence[Question]:
            raise KeyError("column")

    with pytest.raises(BadGame) as caught:
        tried(Failing)
    message = str(caught.value)
    assert "test_trial:Failing failed in round_data: KeyError: 'column' at " in message
    assert 'raise KeyError("column")' in message


def test_an_error_of_the_constructor_is_explained_alike() -> None:
    class Failing(ToyData):
        def __init__(self, config: Any, context: ComponentContext) -> None:
            raise ZeroDivisionError("no rows")

    with pytest.raises(BadGame, match=r"Failing failed in its constructor: ZeroDivisionError: no rows at .*test_trial"):
        tried(Failing)


def test_an_error_of_the_digest_is_explained_before_a_peer_announces_it() -> None:
    class Failing(ToyData):
        def content_digest(self) -> str:
            raise ZeroDivisionError("no rows")

    with pytest.raises(BadGame, match=r"Failing failed in content_digest: ZeroDivisionError: no rows at .*test_trial"):
        tried(Failing)


@pytest.mark.parametrize(
    ("returned", "found"),
    [
        (None, "Odd.round_data returned None; expected a list of Question"),
        (["q"], "Odd.round_data returned a list with 'q' (str); expected a list of Question"),
    ],
)
def test_data_that_returns_no_questions_is_refused(returned: Any, found: str) -> None:
    class Odd(ToyData):
        def round_data(self, round: Round) -> Sequence[Question]:
            return returned  # type: ignore[no-any-return]

    with pytest.raises(BadGame) as caught:
        tried(Odd)
    assert str(caught.value) == found


def test_prompts_may_depend_on_peer_and_role_and_not_on_what_one_peer_has() -> None:
    class Turns(ToyData):
        def stage_inputs(self, state: GameState, stage: int) -> Sequence[Prompt]:
            first = min(state.round.members)
            return super().stage_inputs(state, stage) if state.round.peer == first else []

    class Named(ToyData):
        def stage_inputs(self, state: GameState, stage: int) -> Sequence[Prompt]:
            return [Prompt.from_question(q, f"{state.round.peer}: {q.text}") for q in state.questions.values()]

    class Private(ToyData):
        def stage_inputs(self, state: GameState, stage: int) -> Sequence[Prompt]:
            return [Prompt.from_question(q, f"{self.context.peer}: {q.text}") for q in state.questions.values()]

    class Silent(Private):
        def stage_inputs(self, state: GameState, stage: int) -> Sequence[Prompt]:
            return super().stage_inputs(state, stage) if state.round.peer == self.context.peer else []

    assert tried(Turns) == tried(Named) == ()
    for data, found in ((Private, "another prompt"), (Silent, "no prompt")):
        with pytest.raises(
            BadGame, match=rf"{data.__name__}\.stage_inputs makes {found} in stage 0 .* as self\.context"
        ):
            tried(data)
        assert tried(data, progression=Progression(max_rounds=3)) == ()
        assert tried(data, progression=Progression(max_rounds=3, sharing=SHARES.sharing, single_peer=True)) == ()


STAGES = Progression(max_rounds=1, stages=3, exchange=Exchange.GATHER)
SHARED_STAGES = replace(STAGES, sharing=SHARES.sharing)


class Quoting(ToyData):
    """Later stages add up what was answered before."""

    def _text(self, state: GameState, stage: int, question: Question) -> str:
        groups = state.groups_for(stage - 1, question.id) if stage else ()
        return f"{question.text} {sum(int(group.rollouts[0].text) for _, group in groups)}"


def test_a_later_stage_that_fails_on_a_text_of_another_peer_is_an_error_before_it_can_end_the_game() -> None:
    class Shared(Quoting):
        def round_data(self, round: Round) -> Sequence[Question]:
            return super().round_data(replace(round, peer_seed=round.seed))

    class Checked(Shared):
        def check_move(self, state: GameState, question_id: str, rollout: Rollout) -> None:
            int(rollout.text)

    with pytest.raises(BadGame) as caught:
        tried(Shared, progression=STAGES)
    message = str(caught.value)
    assert "Shared.stage_inputs failed in stage 1 on a text that another peer may send ('')" in message
    assert "Raise ValueError for such a text in check_move" in message
    assert "int(group.rollouts[0].text)" in message
    (warning,) = tried(Checked, progression=STAGES)
    assert "failed when it was tried once, with an empty answer, as a policy gives" in warning


def test_a_later_prompt_that_only_one_peer_can_make_is_an_error_too() -> None:
    class Private(ToyData):
        def _text(self, state: GameState, stage: int, question: Question) -> str:
            return f"{self.context.peer} in stage {stage}" if stage == 2 else question.text

    with pytest.raises(BadGame, match=r"Private\.stage_inputs makes another prompt in stage 2"):
        tried(Private, progression=SHARED_STAGES)
    (warning,) = tried(Private, progression=STAGES)
    assert "Private.stage_inputs makes another prompt in stage 2" in warning


def test_a_check_of_moves_that_is_broken_is_an_error_with_the_authors_line() -> None:
    class Broken(ToyData):
        def check_move(self, state: GameState, question_id: str, rollout: Rollout) -> None:
            if int(rollout.text) not in self.legal:  # type: ignore[attr-defined]
                raise ValueError("not legal")

    with pytest.raises(BadGame) as caught:
        tried(Broken, progression=STAGES)
    message = str(caught.value)
    assert "Broken.check_move refused all 66 texts that were tried in stage 0, " in message
    assert "AttributeError: 'Broken' object has no attribute 'legal'" in message
    assert "if int(rollout.text) not in self.legal" in message


def test_moves_that_the_trial_does_not_know_are_a_warning_that_the_turns_were_not_tried() -> None:
    class Chess(ToyData):
        def check_move(self, state: GameState, question_id: str, rollout: Rollout) -> None:
            if rollout.text != "e2e4":
                raise ValueError(f"{rollout.text} is no move")

    (warning,) = tried(Chess, progression=STAGES)
    assert "Chess.check_move refused all 66 texts that were tried in stage 0, such as 'yes' (yes is no move)" in warning
    assert "the turns of the peers were not tried" in warning


def test_a_broken_check_that_still_allows_a_move_refuses_the_others_as_in_a_swarm() -> None:
    class Table(Quoting):
        def check_move(self, state: GameState, question_id: str, rollout: Rollout) -> None:
            {str(number): number for number in range(10)}[rollout.text]

    (warning,) = tried(Table, progression=STAGES)
    assert "failed when it was tried once, with an empty answer" in warning


def test_questions_that_peers_keep_to_themselves_are_a_warning_while_nobody_trains_on_them() -> None:
    class Own(ToyData):
        def resolve(self, reference: QuestionRef) -> Question | None:
            return None

    class Other(ToyData):
        def resolve(self, reference: QuestionRef) -> Question | None:
            return Question(reference, "another question", "1")

    (warning,) = tried(Own, progression=STAGES)
    assert "Own.resolve does not know a question of its own round_data" in warning
    assert "spec.game.sharing.exchange Pull and externalGroups 0" in warning
    with pytest.raises(BadGame, match=r"Own\.resolve does not know"):
        tried(Own, progression=SHARED_STAGES)
    first, second, *_ = tried(Other, progression=STAGES)
    assert "Other.resolve makes another question from a reference" in first
    assert "Other.stage_inputs makes another prompt in stage 0" in second


THREE = [Role("proposer", count=1), Role("solver", count=1), Role("evaluator", count=1)]


def test_the_trial_has_as_many_peers_as_the_game_has_roles() -> None:
    class Judged(ToyData):
        def round_data(self, round: Round) -> Sequence[Question]:
            return super().round_data(replace(round, peer_seed=round.seed))

        def _text(self, state: GameState, stage: int, question: Question) -> str:
            judgement = state.move(question.id, 0, "evaluator") if stage else None
            return f"{question.text} {judgement.text}" if judgement is not None else question.text

        def stage_inputs(self, state: GameState, stage: int) -> Sequence[Prompt]:
            prompts = super().stage_inputs(state, stage)
            if stage and any(state.move(prompt.question_id, 0, "evaluator") is None for prompt in prompts):
                raise RuntimeError("nobody evaluates")
            return prompts

    class OfTwo(ToyData):
        def round_data(self, round: Round) -> Sequence[Question]:
            members.append(round.members)
            return super().round_data(round)

    members: list[tuple[str, ...]] = []
    (warning,) = tried(Judged, progression=SHARED_STAGES, roles=RoleManager(THREE), replicas=3)
    assert "nobody evaluates" in warning
    assert "No other role had made a move, as where its peer is lost" in warning
    with pytest.raises(BadGame, match="nobody evaluates"):
        tried(Judged, progression=SHARED_STAGES, roles=RoleManager(THREE), replicas=2)
    shares = [Role("writer", share=0.9), Role("reader")]
    for roles, replicas in (((), 8), (THREE, 0), (THREE, 8), (shares, 8), ([Role("x", share=1.0), Role("y")], 4)):
        tried(OfTwo, roles=RoleManager(roles), replicas=replicas)
    assert [len(found) for found in dict.fromkeys(members)] == [2, 3, 5, 4]


def test_data_is_closed_where_a_peer_cannot_be_created_or_has_no_role() -> None:
    closed: list[str] = []

    class Closing(ToyData):
        def __init__(self, config: Any, context: ComponentContext) -> None:
            if context.peer == failing:
                raise ZeroDivisionError("no rows")
            super().__init__(config, context)

        def close(self) -> None:
            closed.append(self.context.peer)

    class OfThree(RoleManager):
        def assign(self, members: Sequence[str], number: int = 0, seed: int = 0) -> Mapping[str, str]:
            return dict(zip(members, (members[2], "", ""), strict=True))

    failing = ""
    with pytest.raises(BadGame, match="IndexError"):
        tried(Closing, roles=OfThree())
    assert closed == ["peer-000", "peer-001"]
    failing = "peer-001"
    with pytest.raises(BadGame, match="no rows"):
        tried(Closing)
    assert closed[2:] == ["peer-000"]


def test_the_peers_of_a_trial_have_the_games_roles() -> None:
    seen: list[str] = []

    class ByRole(ToyData):
        def round_data(self, round: Round) -> Sequence[Question]:
            seen.append(round.role)
            return super().round_data(round)

        def stage_inputs(self, state: GameState, stage: int) -> Sequence[Prompt]:
            seen.append(state.round.role)
            return super().stage_inputs(state, stage)

    assert tried(ByRole, roles=RoleManager([Role("solver", count=1), Role("proposer")])) == ()
    assert set(seen) == {"solver", "proposer"}


def test_a_role_that_asks_nothing_is_fine_while_another_one_asks() -> None:
    class OneAsks(ToyData):
        def round_data(self, round: Round) -> Sequence[Question]:
            return super().round_data(round) if round.role == "solver" else ()

    assert tried(OneAsks, roles=RoleManager([Role("judge", count=1), Role("solver")])) == ()
    (warning,) = tried(OneAsks, roles=RoleManager([Role("judge", count=1), Role("writer")]))
    assert "OneAsks.round_data returns no question in round 0" in warning


def test_questions_that_cannot_be_made_again_are_found() -> None:
    class Unknown(ToyData):
        def resolve(self, reference: QuestionRef) -> Question | None:
            return None

    class Different(ToyData):
        def resolve(self, reference: QuestionRef) -> Question | None:
            return Question(reference, "another question", "1")

    with pytest.raises(BadGame, match="other peers drop all groups as unresolvable"):
        tried(Unknown)
    with pytest.raises(BadGame, match=r"Different\.resolve makes another question from a reference"):
        tried(Different)


def test_an_evaluation_without_questions_is_found() -> None:
    class Without(ToyData):
        def evaluation_data(self, count: int) -> Sequence[Question]:
            return ()

    assert tried(Without) == (
        "spec.game.evaluation is set, but Without.evaluation_data returns no question: nothing is evaluated",
    )
    assert tried(Without, progression=Progression(max_rounds=3)) == ()


def test_errors_of_the_rewards_are_raised_as_they_are() -> None:
    class Refusing(ToyRewards):
        @classmethod
        def check_with(cls, config: Any, context: ComponentContext, question: Question) -> None:
            raise InvalidManifest("spec.game.rewards.use", question.answer, "other rewards")

    with pytest.raises(InvalidManifest, match="expected other rewards"):
        tried(rewards=Refusing)


class OwnRewards(ToyRewards):
    """Rewards of an author, that score each text by a function."""

    closed = 0

    def of(self, text: str) -> Any:
        return 1.0

    def rewards(self, state: GameState) -> Mapping[GroupKey, Sequence[float]]:
        return {key: [self.of(rollout.text) for rollout in group.rollouts] for key, group in state.groups()}

    def close(self) -> None:
        type(self).closed += 1


def test_rewards_of_an_author_that_fail_on_a_right_answer_are_an_error_with_the_authors_line() -> None:
    class Failing(OwnRewards):
        def of(self, text: str) -> float:
            return {"7": 1.0}[text]

    with pytest.raises(BadGame) as caught:
        tried(rewards=Failing)
    message = str(caught.value)
    assert "Failing.rewards failed when it was tried once, with the right answer of a question ('" in message
    assert "test_trial.py:" in message
    assert 'return {"7": 1.0}[text]' in message
    assert Failing.closed == 1


@pytest.mark.parametrize(
    ("returned", "found"),
    [
        (
            lambda text: "good",
            r"Odd\.rewards, round 0, stage 0, question \w+ .*: returned 'good' \(str\); expected a number",
        ),
        (lambda text: math.inf, "returned inf; expected a finite number"),
    ],
)
def test_what_is_no_reward_is_found_before_anything_starts(returned: Any, found: str) -> None:
    class Odd(OwnRewards):
        def of(self, text: str) -> Any:
            return returned(text)

    with pytest.raises(BadGame, match=found):
        tried(rewards=Odd)


def test_rewards_that_fail_on_an_empty_answer_are_a_warning() -> None:
    class Careless(OwnRewards):
        def of(self, text: str) -> float:
            return float(text[0] == "1")

    (warning,) = tried(rewards=Careless)
    assert "Careless.rewards failed when it was tried once, with an empty answer, as a policy gives" in warning
    assert "IndexError" in warning
    assert Careless.closed == 1


def test_rewards_in_a_sum_are_tried_and_all_stages_are_played() -> None:
    seen: list[tuple[int, str]] = []

    class Recording(OwnRewards):
        def rewards(self, state: GameState) -> Mapping[GroupKey, Sequence[float]]:
            seen.extend((key.stage, group.rollouts[0].text) for key, group in state.groups())
            return super().rewards(state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(composite, "_resolved", lambda entry, path: (Recording, ToyRewards.Config()))
        config = CompositeRewardsConfig.model_validate({"rewards": [{"use": "m:Recording"}]})
        assert CompositeRewards.needs_trial(config)
        progression = Progression(max_rounds=1, stages=2)
        found = try_game(progression, ToyData, ToyData.Config(), CompositeRewards, config, ComponentContext())
    assert found.warnings == ()
    assert [stage for stage, _ in seen] == [0, 1, 0, 1]
    assert [text == "" for _, text in seen] == [False, False, True, True]


def test_rewards_of_a_game_without_text_may_refuse_an_action_that_was_made_up() -> None:
    class Boards(ToyData):
        def stage_inputs(self, state: GameState, stage: int) -> Sequence[Prompt]:
            return [replace(prompt, messages=()) for prompt in super().stage_inputs(state, stage)]

    class Moves(OwnRewards):
        def of(self, text: str) -> float:
            return {"3": 1.0}[text]

    (warning,) = tried(Boards, rewards=Moves)
    assert "Moves.rewards failed when it was tried once, with action 0: KeyError" in warning


def test_a_trial_that_takes_too_long_is_left_out_with_a_word() -> None:
    waiting = threading.Event()

    class Slow(ToyData):
        def round_data(self, round: Round) -> Sequence[Question]:
            waiting.wait()
            return ()

    assert tried(Slow, seconds=0.05) == (
        "the trial of Slow and ToyRewards took longer than 0.2 s and was left out: a mistake in them shows in the "
        "first round",
    )
    waiting.set()


def test_a_trial_that_computes_too_long_is_left_out_long_before_the_limit_by_the_clock() -> None:
    over = threading.Event()

    class Endless(ToyData):
        def round_data(self, round: Round) -> Sequence[Question]:
            while not over.is_set():
                pass
            return ()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "WALL_FACTOR", 10_000)
        (warning,) = tried(Endless, seconds=0.05)
    over.set()
    assert "took longer than 0.05 s of processor time and was left out" in warning


def test_processor_time_of_another_thread_is_not_that_of_a_trial() -> None:
    over = threading.Event()

    def computing() -> None:
        while not over.is_set():
            pass

    class Waiting(ToyData):
        def round_data(self, round: Round) -> Sequence[Question]:
            while time.process_time() < began + 1.0:
                threading.Event().wait(0.05)
            return super().round_data(round)

    other, began = threading.Thread(target=computing, daemon=True), time.process_time()
    other.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "WALL_FACTOR", 10_000)
        found = tried(Waiting, seconds=0.5)
    over.set()
    other.join()
    assert found == ()
