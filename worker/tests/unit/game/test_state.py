"""GameState: what was said stays said, in an order that does not depend on arrival."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmgame import Contribution, GameState, Group, GroupKey, Prompt, Question, QuestionRef, Rollout, Round
from swarmgame.seeds import derive_seed

ITEMS = tuple(
    Question(QuestionRef("sums", "c0", 7, index), text=f"{index} + 1 = ?", answer=str(index + 1)) for index in range(3)
)


def say(
    peer: str, *, round: int = 5, stage: int = 0, questions: tuple[Question, ...] = ITEMS, text: str = "x"
) -> Contribution:
    groups = tuple(Group(Prompt.ask(question), (Rollout(text=f"{text}{question.answer}"),)) for question in questions)
    return Contribution(peer, round, stage, groups, {question.id: question.reference for question in questions})


def begin(peer: str = "a") -> GameState:
    return GameState.begin(Round(number=5, seed=1, peer_seed=2, stages=2, peer=peer), ITEMS)


def test_the_tree_does_not_depend_on_the_order_of_arrival() -> None:
    states = []
    for order in itertools.permutations("abcd"):
        state = begin()
        for peer in order:
            state = state.with_contribution(say(peer))
        states.append([key for key, _ in state.groups()])
    assert all(keys == states[0] for keys in states)
    assert [key.peer for key in states[0]] == sorted("aaabbbcccddd")


def test_adding_a_contribution_leaves_the_old_state_as_it_was() -> None:
    before = begin()
    after = before.with_contribution(say("a"))
    assert before.stages == ()
    assert after.own(0) is not None
    with pytest.raises(TypeError):
        after.stages[0]["b"] = say("b")  # type: ignore[index]


def test_a_peer_speaks_once_in_a_stage() -> None:
    state = begin().with_contribution(say("b"))
    with pytest.raises(ValueError, match="already spoken"):
        state.with_contribution(say("b", text="y"))


def test_a_stage_cannot_come_before_its_time() -> None:
    with pytest.raises(ValueError, match="has not come yet"):
        begin().with_contribution(say("a", stage=1))
    with pytest.raises(ValueError, match="has not come yet"):
        begin().with_contribution(say("a", round=6))


def test_a_late_contribution_stands_among_the_late_and_is_found_by_its_key() -> None:
    late = say("b", round=4)
    state = begin().with_contribution(say("a")).with_contribution(late)
    key = GroupKey(4, 0, "b", ITEMS[0].id)
    assert state.contribution_of(key) is late
    assert key in [k for k, _ in state.remote_groups()]
    assert key not in [k for k, _ in state.own_groups()]
    with pytest.raises(ValueError, match="already spoken"):
        state.with_contribution(say("b", round=4))


def test_the_swarms_answers_to_one_question_come_sorted_by_peer() -> None:
    state = (
        begin().with_contribution(say("c")).with_contribution(say("a")).with_contribution(say("b", questions=ITEMS[:1]))
    )
    assert [peer for peer, _ in state.groups_for(0, ITEMS[0].id)] == ["a", "b", "c"]
    assert [peer for peer, _ in state.groups_for(0, ITEMS[1].id)] == ["a", "c"]


def test_an_item_cannot_appear_twice_in_a_contribution() -> None:
    with pytest.raises(ValueError, match="twice"):
        say("a", questions=(ITEMS[0], ITEMS[0]))


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


def test_a_seed_tells_a_number_from_its_text_and_a_pair_from_its_join() -> None:
    assert derive_seed(1) != derive_seed("1")
    assert derive_seed("ab", "c") != derive_seed("a", "bc")


def test_a_reference_has_the_same_id_on_every_peer() -> None:
    assert QuestionRef("sums", "c0", 7, 1).id == QuestionRef("sums", "c0", 7, 1).id == ITEMS[1].id
    assert (
        len(
            {question.id for question in ITEMS}
            | {QuestionRef("sums", "c1", 7, 1).id, QuestionRef("sums", "c0", 8, 0).id}
        )
        == 5
    )
