"""GameState: immutable, and independent of the order of arrival; seeds."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmgame import Contribution, GameState, Group, GroupKey, Prompt, Question, QuestionRef, Rollout, Round
from swarmgame.seeds import derive_seed

QUESTIONS = tuple(
    Question(QuestionRef("sums", "c0", 7, index), text=f"{index} + 1 = ?", answer=str(index + 1)) for index in range(3)
)


def contribution_of(
    peer: str, *, round: int = 5, stage: int = 0, questions: tuple[Question, ...] = QUESTIONS, text: str = "x"
) -> Contribution:
    groups = tuple(
        Group(Prompt.from_question(question), (Rollout(text=f"{text}{question.answer}"),)) for question in questions
    )
    return Contribution(peer, round, stage, groups, {question.id: question.reference for question in questions})


def begin(peer: str = "a") -> GameState:
    return GameState.begin(Round(number=5, seed=1, peer_seed=2, stages=2, peer=peer), QUESTIONS)


def test_the_tree_does_not_depend_on_the_order_of_arrival() -> None:
    states = []
    for order in itertools.permutations("abcd"):
        state = begin()
        for peer in order:
            state = state.with_contribution(contribution_of(peer))
        states.append([key for key, _ in state.groups()])
    assert all(keys == states[0] for keys in states)
    assert [key.peer for key in states[0]] == sorted("aaabbbcccddd")


def test_adding_a_contribution_does_not_change_the_old_state() -> None:
    before = begin()
    after = before.with_contribution(contribution_of("a"))
    assert before.stages == ()
    assert after.own(0) is not None
    with pytest.raises(TypeError):
        after.stages[0]["b"] = contribution_of("b")  # type: ignore[index]


def test_a_second_contribution_of_a_peer_to_a_stage_is_refused() -> None:
    state = begin().with_contribution(contribution_of("b"))
    with pytest.raises(ValueError, match="already contributed"):
        state.with_contribution(contribution_of("b", text="y"))


def test_a_contribution_to_a_stage_or_round_that_has_not_begun_is_refused() -> None:
    with pytest.raises(ValueError, match="has not begun"):
        begin().with_contribution(contribution_of("a", stage=1))
    with pytest.raises(ValueError, match="has not begun"):
        begin().with_contribution(contribution_of("a", round=6))


def test_a_late_contribution_is_kept_in_late_and_found_by_its_key() -> None:
    late = contribution_of("b", round=4)
    state = begin().with_contribution(contribution_of("a")).with_contribution(late)
    key = GroupKey(4, 0, "b", QUESTIONS[0].id)
    assert state.contribution_of(key) is late
    assert key in [k for k, _ in state.remote_groups()]
    assert key not in [k for k, _ in state.own_groups()]
    with pytest.raises(ValueError, match="already contributed"):
        state.with_contribution(contribution_of("b", round=4))


def test_groups_for_a_question_are_sorted_by_peer() -> None:
    state = (
        begin()
        .with_contribution(contribution_of("c"))
        .with_contribution(contribution_of("a"))
        .with_contribution(contribution_of("b", questions=QUESTIONS[:1]))
    )
    assert [peer for peer, _ in state.groups_for(0, QUESTIONS[0].id)] == ["a", "b", "c"]
    assert [peer for peer, _ in state.groups_for(0, QUESTIONS[1].id)] == ["a", "c"]


def test_a_question_cannot_appear_twice_in_a_contribution() -> None:
    with pytest.raises(ValueError, match="twice"):
        contribution_of("a", questions=(QUESTIONS[0], QUESTIONS[0]))


def test_ids_and_log_probabilities_come_in_pairs() -> None:
    with pytest.raises(ValueError, match="log-probabilities"):
        Rollout(token_ids=(1, 2), logprobs=(-0.1,))


@given(
    st.lists(st.tuples(st.text(max_size=5), st.integers(-3, 3)), max_size=4),
    st.lists(st.tuples(st.text(max_size=5), st.integers(-3, 3)), max_size=4),
)
def test_seeds_of_different_parts_differ_and_of_equal_parts_agree(
    left: list[tuple[str, int]], right: list[tuple[str, int]]
) -> None:
    parts_left = [part for pair in left for part in pair]
    parts_right = [part for pair in right for part in pair]
    assert (derive_seed(*parts_left) == derive_seed(*parts_right)) == (parts_left == parts_right)
    assert 0 <= derive_seed(*parts_left) < 2**62


def test_seeds_differ_for_a_number_and_its_text_and_for_a_pair_and_its_join() -> None:
    assert derive_seed(1) != derive_seed("1")
    assert derive_seed("ab", "c") != derive_seed("a", "bc")


def test_a_reference_has_the_same_id_on_every_peer() -> None:
    assert QuestionRef("sums", "c0", 7, 1).id == QuestionRef("sums", "c0", 7, 1).id == QUESTIONS[1].id
    assert (
        len(
            {question.id for question in QUESTIONS}
            | {QuestionRef("sums", "c1", 7, 1).id, QuestionRef("sums", "c0", 8, 0).id}
        )
        == 5
    )
