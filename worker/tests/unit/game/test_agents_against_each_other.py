"""Games of turns: whose turn it is follows from the round, prompts are verified as their author's, and moves that the
rules do not allow are dropped."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from scripted_game import Scripted, manager
from toys import ToyData, ToyTrainer

from swarmgame import (
    Contribution,
    GameState,
    Group,
    Prompt,
    Question,
    QuestionRef,
    Role,
    RoleManager,
    Rollout,
    Round,
)
from swarmgame.game.copies import SeenRollouts
from swarmgame.game.manager import Progression
from swarmgame.game.protocol import Exchange, Member
from swarmgame.game.roles import Rotating
from swarmgame.game.verification import RolloutVerifier, VerifiedRollouts
from swarmgame.seeds import derive_seed

SEED = 5
ROLES = RoleManager([Role("first", share=0.5), Role("second")])
TURNS = ("first", "second")


class Counting(ToyData):
    """Players in turn name a digit from 0 to 3; the prompt is the sum so far. A peer has no prompt when it is not its
    turn."""

    def round_data(self, round: Round) -> Sequence[Question]:
        return super().round_data(replace(round, peer_seed=round.seed))

    def stage_inputs(self, state: GameState, stage: int) -> Sequence[Prompt]:
        prompts = []
        for question in (state.questions[question_id] for question_id in state.question_ids):
            moves = self.moves(state, question.id, stage)
            if len(moves) == stage and state.round.player(TURNS[stage % 2], question.id) == state.round.peer:
                prompts.append(Prompt.from_question(question, f"{state.round.role} after {sum(moves)}"))
        return prompts

    def moves(self, state: GameState, question_id: str, stage: int) -> list[int]:
        found = (state.move(question_id, at, TURNS[at % 2]) for at in range(stage))
        return [int(move.text) for move in found if move is not None]

    def check_move(self, state: GameState, question_id: str, rollout: Rollout) -> None:
        if not 0 <= int(rollout.text) < 4:
            raise ValueError(f"{rollout.text} is above 3")


def round_of(peer: str, members: Sequence[str] = ("a", "b"), number: int = 0) -> Round:
    return ROLES.round(SEED, 4, peer, number, tuple(members))


def play(members: Sequence[str], stages: int, *, edit: Any = lambda contribution: contribution) -> dict[str, GameState]:
    """Play a game of honest peers but for `edit`; every peer verifies the others. Returns their states."""
    states = {peer: GameState.begin(round_of(peer, members), Counting().round_data(round_of(peer))) for peer in members}
    for stage in range(stages):
        sent = {peer: edit(contribution(states[peer], stage)) for peer in members}
        for peer in members:
            states[peer] = states[peer].with_contribution(sent[peer])
        for peer in members:
            states[peer] = verify(states[peer], [sent[other] for other in members if other != peer]).state
    return states


def contribution(state: GameState, stage: int) -> Contribution:
    data = Counting()
    groups = tuple(
        Group(prompt, (Rollout(str(stage % 4), (stage % 4,), (-1.0,)),)) for prompt in data.stage_inputs(state, stage)
    )
    references = {group.question_id: state.questions[group.question_id].reference for group in groups}
    return Contribution(
        state.peer, state.round.number, stage, groups, references, tokenizer="digits", role=state.round.role
    )


def verify(state: GameState, received: Sequence[Contribution]) -> VerifiedRollouts:
    verifier = RolloutVerifier(Counting(), ToyTrainer(), Exchange.GATHER, SeenRollouts(1), seed=SEED)
    return verifier.verify(state, received, {})


@pytest.mark.parametrize("members", [("a", "b"), ("a", "b", "c", "d"), ("a", "b", "c")])
def test_turns_that_depend_on_the_role_go_on_for_as_many_stages_as_the_game_has(members: tuple[str, ...]) -> None:
    states = play(members, 7)
    for state in states.values():
        assert [Counting().moves(state, question, 7) for question in state.question_ids] == [[0, 1, 2, 3, 0, 1, 2]] * 3
        for stage in range(7):
            assert {c.peer for c in state.contributions(stage) if c.groups} <= {
                peer for peer, role in state.round.roles.items() if role == TURNS[stage % 2]
            }


def test_each_role_of_a_question_has_one_player_whom_all_peers_name() -> None:
    members = tuple("abcdefgh")
    rounds = [round_of(peer, members) for peer in members]
    seats = []
    for number in range(200):
        question = str(number)
        players = {tuple(each.player(role, question) for role in TURNS) for each in rounds}
        assert len(players) == 1
        seats.append(players.pop())
    assert {each.role for each in rounds} == set(TURNS)
    counts = {peer: sum(peer in seat for seat in seats) for peer in members}
    assert min(counts.values()) > 30  # 50 each on average
    assert round_of("a", ("a",)).player("second", "0") == ""
    assert replace(rounds[0], evaluation=True).player("second", "0") == "a"


def test_moves_of_others_in_later_stages_are_trained_on() -> None:
    state = play(("a", "b"), 1)["a"].with_contribution(Contribution("a", 0, 1, (), {}, role="first"))
    other = contribution(play(("a", "b"), 1)["b"], 1)
    found = verify(state, [other])
    assert len(other.groups) == 3
    assert {key.question_id for key in found.trainable} == set(state.question_ids)
    assert found.outcomes == {}
    assert [group.prompt.text for _, group in found.state.remote_groups()] == ["second after 0"] * 3


def test_a_peer_that_takes_a_turn_of_another_role_is_counted_and_changes_no_position() -> None:
    start = round_of("a")
    state = GameState.begin(start, Counting().round_data(start)).with_contribution(Contribution("a", 0, 0, (), {}))
    as_first = replace(contribution(GameState.begin(round_of("a"), Counting().round_data(start)), 0), peer="b")
    found = verify(state, [as_first])
    assert found.outcomes == {"other-role": 3}
    assert found.invalid == frozenset()  # the peers may see other members for a while
    assert found.state.contributions(0)[1].groups == ()
    assert found.state.contributions(0)[1].role == "second"

    honest = verify(state, [replace(as_first, role="second")])
    assert honest.outcomes == {"prompt-mismatch": 3}
    assert honest.invalid == {(0, 0, "b")}


def test_an_illegal_move_is_dropped_and_counted_and_its_author_named_once(caplog: pytest.LogCaptureFixture) -> None:
    def cheat(sent: Contribution) -> Contribution:
        if sent.peer != "b" or sent.stage != 1:
            return sent
        return replace(sent, groups=tuple(replace(g, rollouts=(Rollout("9", (9,), (-1.0,)),)) for g in sent.groups))

    before = play(("a", "b"), 1)
    state = before["a"].with_contribution(Contribution("a", 0, 1, (), {}, role="first"))
    verifier = RolloutVerifier(Counting(), ToyTrainer(), Exchange.GATHER, SeenRollouts(1), seed=SEED)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            found = verifier.verify(state, [cheat(contribution(before["b"], 1))], {})
    assert found.outcomes == {"illegal-move": 3}
    assert found.invalid == {(0, 1, "b")}
    assert [record.getMessage() for record in caplog.records] == [
        "peer b made a move that the rules do not allow (9 is above 3): its group is dropped, as each such one of any "
        "peer is, and counted as illegal-move"
    ]
    assert Counting().stage_inputs(found.state, 2) == []


def test_a_rule_that_fails_at_an_unforeseen_text_refuses_it_with_the_authors_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Careless(Counting):
        def check_move(self, state: GameState, question_id: str, rollout: Rollout) -> None:
            {"0": 1}[rollout.text]

    before = play(("a", "b"), 1)
    state = before["a"].with_contribution(Contribution("a", 0, 1, (), {}, role="first"))
    verifier = RolloutVerifier(Careless(), ToyTrainer(), Exchange.GATHER, SeenRollouts(1), seed=SEED)
    with caplog.at_level(logging.WARNING):
        found = verifier.verify(state, [contribution(before["b"], 1)], {})
    assert found.outcomes == {"illegal-move": 3}
    assert "KeyError: '1' at " in caplog.text
    assert "test_agents_against_each_other.py:" in caplog.text


def test_a_late_move_is_checked_with_the_role_that_its_author_had() -> None:
    early = contribution(GameState.begin(round_of("b", ("b", "c")), Counting().round_data(round_of("b"))), 0)
    assert (early.role, len(early.groups)) == ("first", 3)
    later = round_of("a", number=1)
    state = GameState.begin(later, Counting().round_data(later)).with_contribution(Contribution("a", 1, 0, (), {}))

    class Whoever(Counting):
        def stage_inputs(self, state: GameState, stage: int) -> Sequence[Prompt]:
            role = state.round.role
            return [Prompt.from_question(q, f"{role} after 0") for q in state.questions.values() if role == "first"]

    verifier = RolloutVerifier(Whoever(), ToyTrainer(), Exchange.GATHER, SeenRollouts(1), seed=SEED)
    assert verifier.verify(state, [early], {}).outcomes == {}
    assert verifier.verify(state, [replace(early, role="queen")], {}).outcomes == {"other-role": 3}


def test_a_newcomer_is_checked_in_the_role_that_it_claims_and_moves_for_nobody() -> None:
    class AnyPeer(Counting):
        def stage_inputs(self, state: GameState, stage: int) -> Sequence[Prompt]:
            role = state.round.role
            return [Prompt.from_question(q, f"{role} after 0") for q in state.questions.values() if role == "first"]

    start = round_of("a")
    state = GameState.begin(start, Counting().round_data(start)).with_contribution(Contribution("a", 0, 0, (), {}))
    sent = replace(contribution(GameState.begin(round_of("a"), Counting().round_data(start)), 0), peer="new")
    verifier = RolloutVerifier(AnyPeer(), ToyTrainer(), Exchange.GATHER, SeenRollouts(1), seed=SEED, roles=ROLES)
    found = verifier.verify(state, [sent], {})
    assert (found.outcomes, len(found.trainable)) == ({}, 3)
    assert [found.state.move(question, 0, "first") for question in state.question_ids] == [None] * 3
    mismatched = verifier.verify(state, [replace(sent, role="second", peer="newer")], {})
    assert (mismatched.outcomes, mismatched.invalid) == ({"prompt-mismatch": 3}, frozenset())
    queen = verifier.verify(state, [replace(sent, role="queen", peer="newest")], {})
    assert (queen.outcomes, queen.invalid) == ({"other-role": 3}, frozenset())


def test_a_move_in_a_position_that_we_do_not_know_is_dropped_without_blame(caplog: pytest.LogCaptureFixture) -> None:
    before = play(("a", "b"), 1)
    state = before["a"].with_contribution(Contribution("a", 0, 1, (), {}, role="first"))
    sent = contribution(before["b"], 1)
    elsewhere = [
        Group(Prompt.from_question(state.questions[g.question_id], "second after 2"), (Rollout(text, (9,), (-1.0,)),))
        for g, text in zip(sent.groups, "931", strict=True)
    ]
    with caplog.at_level(logging.WARNING):
        found = verify(state, [replace(sent, groups=tuple(elsewhere), tokenizer="other")])
    assert found.outcomes == {"other-position": 1, "words-only": 2}
    assert (found.invalid, caplog.records) == (frozenset(), [])
    assert [group.rollouts[0].text for group in found.state.contributions(1)[1].groups] == ["3", "1"]


def test_a_late_move_is_checked_with_the_roles_of_its_round() -> None:
    roles = Rotating(ROLES.roles)
    rounds = [roles.round(SEED, 4, peer, number, ("a", "b")) for peer, number in (("a", 0), ("b", 1))]
    assert [round.role for round in rounds] == ["first", "first"]
    early = contribution(GameState.begin(rounds[0], Counting().round_data(rounds[0])), 0)
    state = GameState.begin(rounds[1], Counting().round_data(rounds[1])).with_contribution(
        Contribution("b", 1, 0, (), {}, role="first")
    )
    verifier = RolloutVerifier(Counting(), ToyTrainer(), Exchange.GATHER, SeenRollouts(1), seed=SEED, roles=roles)
    found = verifier.verify(state, [early], {})
    assert (found.outcomes, len(found.trainable)) == ({}, 3)
    other = verifier.verify(state, [replace(early, role="second")], {})
    assert (other.outcomes, other.invalid) == ({"prompt-mismatch": 3}, frozenset())


def test_a_late_group_of_a_later_stage_is_read_by_nothing() -> None:
    early = contribution(play(("a", "b"), 1)["b"], 1)
    assert len(early.groups) == 3
    later = round_of("a", number=1)
    state = GameState.begin(later, Counting().round_data(later)).with_contribution(Contribution("a", 1, 0, (), {}))
    found = verify(state, [early])
    assert (found.outcomes, found.invalid, found.trainable) == ({"past-stage": 3}, frozenset(), frozenset())
    assert found.state.remote_groups() == ()


def test_a_role_without_a_taker_is_counted_in_each_round() -> None:
    roles = RoleManager([Role("first", count=1), Role("second", count=1), Role("judge", count=1)])
    game, seen, _ = manager(Scripted(members=(Member("you", 0, 0),)), Progression(max_rounds=2, stages=2), roles=roles)
    game.run()
    assert [report.outcomes for report in seen.reports] == [{"role-without-taker": 1}] * 2
    assert {contribution.role for contribution, _ in game.communication.published} == {"first"}  # type: ignore[attr-defined]


def test_the_role_travels_with_a_contribution_and_costs_nothing_where_there_is_none() -> None:
    from swarmgame.swarm.codec import decode, encode

    sent = contribution(GameState.begin(round_of("a"), Counting().round_data(round_of("a"))), 0)
    assert sent.role == "first"
    assert decode([shard.data for shard in encode(sent, "run")]).role == "first"
    without = replace(sent, role="")
    (plain,) = encode(without, "run")
    assert b"role" not in plain.data
    assert decode([plain.data]).role == ""


def test_one_seed_makes_the_rounds_of_all_peers() -> None:
    mine, yours = round_of("a"), round_of("b")
    assert (mine.seed, mine.roles) == (yours.seed, yours.roles)
    assert mine.peer_seed == derive_seed(SEED, "peer", "a", 0) != yours.peer_seed


def test_a_reference_decides_who_moves_not_the_order_of_questions() -> None:
    references: Mapping[str, QuestionRef] = {q.id: q.reference for q in Counting().round_data(round_of("a"))}
    assert [round_of("a").player("first", each) for each in references] == ["a"] * 3


class Sure(Counting):
    """A game that takes for granted that its peer is a member, has a role, and sent something in stage 0."""

    def stage_inputs(self, state: GameState, stage: int) -> Sequence[Prompt]:
        prompt = {"first": "begin", "second": "wait"}[state.round.role]
        seat = state.round.members.index(state.round.peer)
        if stage == 0:
            return [Prompt.from_question(state.questions[q], f"{prompt} {seat}") for q in state.question_ids]
        own = state.own(0)
        assert own is not None
        texts = {q: own.group(q).rollouts[0].text for q in state.question_ids}  # type: ignore[union-attr]
        return [Prompt.from_question(state.questions[q], f"{prompt} after {text}") for q, text in texts.items()]


def sure(peer: str, stage: int, prompts: Sequence[Prompt], *, role: str = "second", number: int = 0) -> Contribution:
    """Return a contribution with these prompts, as a game of roles makes it."""
    references = {each.id: each.reference for each in Counting().round_data(round_of(peer, number=number))}
    groups = tuple(Group(prompt, (Rollout("1", (1,), (-1.0,)),)) for prompt in prompts)
    return Contribution(peer, number, stage, groups, references, tokenizer="digits", role=role)


def test_code_that_fails_as_a_peer_that_is_no_member_drops_its_groups_and_names_it_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    start = round_of("a")
    state = GameState.begin(start, Counting().round_data(start)).with_contribution(Contribution("a", 0, 0, (), {}))
    prompts = [Prompt.from_question(question, "wait 2") for question in state.questions.values()]
    verifier = RolloutVerifier(Sure(), ToyTrainer(), Exchange.GATHER, SeenRollouts(1), seed=SEED)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            found = verifier.verify(state, [sure("stranger", 0, prompts)], {})
    assert found.outcomes == {"prompt-failed": 3}
    assert found.invalid == frozenset()
    assert not found.trainable
    (record,) = caplog.records
    assert "Sure.stage_inputs failed in stage 0 as peer stranger" in record.getMessage()
    assert "test_agents_against_each_other.py:" in record.getMessage()


def test_a_member_that_sent_nothing_in_an_earlier_stage_ends_no_peer() -> None:
    start = round_of("a")
    state = GameState.begin(start, Counting().round_data(start))
    for stage in range(2):
        state = state.with_contribution(Contribution("a", 0, stage, (), {}, role="first"))
    state = state.with_contribution(Contribution("b", 0, 0, (), {}, role="second"))
    prompts = [Prompt.from_question(question, "wait after 1") for question in state.questions.values()]
    verifier = RolloutVerifier(Sure(), ToyTrainer(), Exchange.GATHER, SeenRollouts(1), seed=SEED)
    assert verifier.verify(state, [sure("b", 1, prompts)], {}).outcomes == {"prompt-failed": 3}


def test_a_later_stage_has_only_the_questions_of_which_the_author_sent_a_group() -> None:
    start = round_of("a")
    state = GameState.begin(start, Counting().round_data(start)).with_contribution(Contribution("a", 0, 0, (), {}))
    begun = [Prompt.from_question(question, "wait 1") for question in state.questions.values()]
    verifier = RolloutVerifier(Sure(), ToyTrainer(), Exchange.GATHER, SeenRollouts(1), seed=SEED)
    one = verifier.verify(state, [sure("b", 0, begun[:1])], {})
    assert one.outcomes == {}
    state = one.state.with_contribution(Contribution("a", 0, 1, (), {}, role="first"))
    followed = Prompt.from_question(state.questions[begun[0].question_id], "wait after 1")
    # Its references name questions without a group, too: they do not count.
    found = verifier.verify(state, [sure("b", 1, [followed])], {})
    assert (found.outcomes, len(found.trainable)) == ({}, 1)


def test_without_roles_a_peer_cannot_move_in_the_turn_of_another_one() -> None:
    class ByPlace(Counting):
        """The members move in the order of their ids."""

        def stage_inputs(self, state: GameState, stage: int) -> Sequence[Prompt]:
            if state.round.members[stage % 2] != state.round.peer:
                return []
            return [Prompt.from_question(state.questions[q], "your turn") for q in state.question_ids]

    start = RoleManager().round(SEED, 2, "a", 0, ("a", "b"))
    state = GameState.begin(start, Counting().round_data(start)).with_contribution(Contribution("a", 0, 0, (), {}))
    ours = {prompt.question_id: prompt for prompt in ByPlace().stage_inputs(state, 0)}
    assert len(ours) == 3
    verifier = RolloutVerifier(ByPlace(), ToyTrainer(), Exchange.GATHER, SeenRollouts(1), seed=SEED)
    found = verifier.verify(state, [sure("b", 0, list(ours.values()), role="")], ours)
    assert (found.outcomes, found.trainable) == ({"prompt-mismatch": 3}, frozenset())
