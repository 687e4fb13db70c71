"""Rollouts that were seen before, in another contribution."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from scripted_game import SHARE, TWO, Scripted, manager, remote
from toys import ToyData, ToyTrainer

from swarmgame.game.copies import SeenRollouts
from swarmgame.game.protocol import Exchange
from swarmgame.game.state import (
    Contribution,
    FinishReason,
    GameState,
    Group,
    Prompt,
    QuestionRef,
    Rollout,
    Round,
    Segment,
)
from swarmgame.game.verification import RolloutVerifier

QUESTION = QuestionRef("toy", "v1", 1, 1)


def contribution(texts: Sequence[str], logprob: float, *, peer: str = "first", round: int = 0) -> Contribution:
    """One group; each rollout with that log-probability in all."""
    rollouts = tuple(Rollout(text, tuple(text.encode()), (logprob / len(text),) * len(text)) for text in texts)
    return Contribution(peer, round, 0, (Group(Prompt(QUESTION.id), rollouts),), {QUESTION.id: QUESTION})


def seen_of(*contributions: Contribution) -> SeenRollouts:
    seen = SeenRollouts(keep_rounds=1)
    for each in contributions:
        seen.add(each)
    return seen


def is_copy(seen: SeenRollouts, made: Contribution) -> bool:
    return seen.is_copy(made, made.groups[0])


LONG = [f"a long answer, number {number}" for number in range(8)]


@pytest.mark.parametrize(
    ("texts", "copied"),
    [(LONG, True), (LONG[:1], True), ([*LONG[:1], "own", "work"], True), (["own", "work"], False)],
    ids=["all", "one alone", "one among others", "none"],
)
def test_improbable_rollouts_that_were_seen_are_copies(texts: Sequence[str], copied: bool) -> None:
    seen = seen_of(contribution(LONG, -30.0))
    assert is_copy(seen, contribution(texts, -0.1, peer="second")) is copied


def test_a_contribution_that_comes_again_after_a_stop_is_no_copy_of_itself() -> None:
    made = contribution(LONG, -30.0, round=3)
    seen = seen_of(made)
    assert not is_copy(seen, made)
    assert is_copy(seen, replace(made, round=4)), "sent again in another round"
    assert is_copy(seen, replace(made, peer="second"))


def test_honest_peers_with_one_question_and_the_same_short_answers_are_no_copies() -> None:
    rng = random.Random(0)
    for spread in (2, 8, 30):
        for _ in range(200):
            seen = SeenRollouts(keep_rounds=1)
            for peer in range(6):
                answers = [str(rng.randrange(spread)) for _ in range(8)]
                made = contribution(answers, -math.log(spread), peer=str(peer))
                assert not is_copy(seen, made)
                seen.add(made)


def test_several_answers_that_are_each_not_rare_are_copies_together() -> None:
    texts = [f"answer {number}" for number in range(8)]
    seen = seen_of(contribution(texts, math.log(1e-3)))
    assert is_copy(seen, contribution(texts, -1.0, peer="second"))
    assert not is_copy(seen, contribution([texts[0], *"abcdefg"], -1.0, peer="second"))


def test_an_accomplice_that_claims_certainty_does_not_hide_a_copy() -> None:
    seen = seen_of(
        contribution(LONG, -30.0),
        contribution(["surely this"], 0.0, peer="accomplice"),
        contribution(LONG, 0.0, peer="another"),
    )
    assert is_copy(seen, contribution(LONG, -0.1, peer="thief"))


@pytest.mark.parametrize("nats", [0.05, 0.2, 0.5])
def test_low_claims_for_likely_answers_do_not_make_copies_of_those_of_honest_peers(nats: float) -> None:
    """A liar answers first, and claims that its answers were nearly impossible."""
    seen, likely = SeenRollouts(keep_rounds=1), ["12", "13", "14", "21", "24"]
    seen.add_own(contribution(["11", "12", "12"], -2 * nats, peer="me"))
    seen.add(contribution(likely, -900.0, peer="liar"))
    rng = random.Random(0)
    for _ in range(200):
        answers = rng.choices(likely, [16, 4, 2, 1, 1], k=8)
        assert not is_copy(seen, contribution(answers, -0.5, peer="honest"))


def test_equal_answers_prove_nothing_where_policies_sample_the_likeliest_tokens_only() -> None:
    seen = SeenRollouts(keep_rounds=1)
    seen.filtered = True
    seen.add(contribution(LONG, -30.0))
    assert not is_copy(seen, contribution(LONG, -30.0, peer="second"))


def test_other_ids_for_the_same_text_are_a_copy_too_and_other_stages_and_questions_are_not() -> None:
    seen = seen_of(contribution(LONG, -30.0))
    made = contribution(LONG, -1.0, peer="second")
    [group] = made.groups
    renamed = Group(group.prompt, tuple(Rollout(r.text, (7, 8), (-1.0, -1.0)) for r in group.rollouts))
    assert seen.is_copy(made, renamed)
    assert not seen.is_copy(replace(made, stage=1), group)
    assert not seen.is_copy(made, Group(Prompt("another"), group.rollouts))


def test_what_can_no_longer_arrive_is_forgotten_and_memory_is_bounded() -> None:
    seen = seen_of(contribution(LONG, -30.0, round=3))
    seen.move_to(4)
    assert len(seen) == 8
    seen.move_to(5)
    assert len(seen) == 0
    small = SeenRollouts(keep_rounds=1, max_seen=10)
    small.add(contribution(LONG, -30.0, round=3))
    small.add(contribution([text + "!" for text in LONG], -30.0, round=4))
    small.move_to(4)
    assert len(small) == 8
    assert not is_copy(small, contribution(LONG, -1.0))


def test_a_resumed_peer_knows_the_same_rollouts() -> None:
    seen = seen_of(contribution(LONG, -30.0, round=2))
    again = SeenRollouts(keep_rounds=1)
    again.load_state_dict(json.loads(json.dumps(seen.state_dict())))
    assert again.state_dict() == seen.state_dict()
    assert len(again) == len(seen)
    assert is_copy(again, contribution(LONG, -1.0))


def long(peer: str) -> Contribution:
    """The same rollouts, which are long enough to be no chance, whoever signs them."""
    made = remote("first", 0)
    groups = tuple(
        Group(g.prompt, tuple(Rollout("0" * 40, (0,) * 40, (math.log(0.25),) * 40) for _ in g.rollouts))
        for g in made.groups
    )
    return Contribution(peer, 0, 0, groups, made.references, tokenizer="digits")


def test_a_contribution_that_another_peer_signs_again_is_dropped_and_counted_by_author() -> None:
    game, seen, _ = manager(Scripted(lambda own: [long("first"), long("second")], members=TWO), SHARE)
    game.run()
    assert seen.reports[0].outcomes["copied"] == 3
    assert seen.reports[0].refused == {"second": {"copied": 3}}
    assert seen.reports[0].external == {}  # its rewards are all equal; what follows shows that it was kept
    assert {key.peer for key, _ in seen.states[0].remote_groups()} == {"first"}


@pytest.mark.parametrize("arrivals", [(0, 1), (1, 0), ()])
def test_of_equal_rollouts_those_that_arrived_first_count_whatever_the_names(arrivals: tuple[int, ...]) -> None:
    state = GameState.begin(Round(0, 0, 0, 1, "me"), []).with_contribution(Contribution("me", 0, 0, (), {}))
    verifier = RolloutVerifier(ToyData(), ToyTrainer(), Exchange.GATHER, SeenRollouts(1))
    names = ["a-thief", "honest"] if arrivals else ["honest", "thief"]
    verified = verifier.verify(state, [long(name) for name in names], {}, arrivals)
    first = names[arrivals.index(0)] if arrivals else names[0]
    assert {key.peer for key in verified.trainable} == {first}
    # It may be the original that came later, so it is no fault of its author.
    assert verified.invalid == frozenset()
    assert [set(reasons.values()) for reasons in verified.reasons] == [
        set() if name == first else {"copied"} for name in names
    ]


def test_the_same_peer_has_one_contribution_to_a_stage() -> None:
    state = GameState.begin(Round(0, 0, 0, 1, "me"), []).with_contribution(Contribution("me", 0, 0, (), {}))
    verifier = RolloutVerifier(ToyData(), ToyTrainer(), Exchange.GATHER, SeenRollouts(1))
    verified = verifier.verify(state, [long("other"), remote("other", 0)], {})
    assert [set(reasons.values()) for reasons in verified.reasons] == [set(), {"duplicate"}]
    assert verified.outcomes == {"duplicate": 3}
    assert len(verified.trainable) == 3


def test_transcripts_are_compared_by_all_their_turns() -> None:
    """Many end with the same guess: that alone is no copy of the transcript."""

    def transcript(first: str) -> Contribution:
        segments = (Segment(20, first * 20), Segment(1, "larger"), Segment(1, "7"))
        rollout = Rollout("7", (1,) * 22, (-1.0,) * 21, FinishReason.DONE, segments)
        return Contribution(first, 0, 0, (Group(Prompt(QUESTION.id), (rollout,)),), {QUESTION.id: QUESTION})

    seen = seen_of(transcript("3"))
    assert not is_copy(seen, transcript("4"))
    assert is_copy(seen, replace(transcript("3"), peer="thief"))
