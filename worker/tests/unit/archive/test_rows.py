"""Rows hold a round exactly: what was generated and received, how it was used, and why not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from archived_games import packed, record, with_text
from contributions import make_contribution

from swarmgame import Contribution, FinishReason, Group, GroupKey, Rollout
from swarmgame.archive.rows import CELL, RoundRecord, contributions_of, rewards_of, round_rows
from swarmgame.game.components import RolloutUse
from swarmgame.game.rollout import Segment


def keys(contribution: Contribution) -> list[GroupKey]:
    return [
        GroupKey(contribution.round, contribution.stage, contribution.peer, group.question_id)
        for group in contribution.groups
    ]


def outcomes(found: RoundRecord, author: str) -> list[str]:
    rows = round_rows(found)[1].to_pylist()
    return [row["outcome"] for row in rows if row["author"] == author and row["position"] == 0]


def test_contributions_come_back_exactly_own_and_received_and_late_ones() -> None:
    own, other, late = make_contribution("me", 4), packed(make_contribution("other", 4)), make_contribution("slow", 3)
    head, rows = round_rows(record(own, [other, late]))
    back = [contribution for _, contribution, _ in contributions_of(head, rows)]
    assert back == [own, other, late]
    assert set(rows["round"].to_pylist()) == {4}
    assert [each["own"] for each in head["contributions"]] == [True, False, False]


def test_log_probabilities_of_any_precision_are_kept_to_the_last_bit() -> None:
    own = make_contribution("me", groups=1, rollouts=1, tokens=3)
    exact = (-math.pi, -1e-300, -65504.0)
    group = own.groups[0]
    own = replace(own, groups=(replace(group, rollouts=(replace(group.rollouts[0], logprobs=exact),)),))
    assert round_rows(record(own, []))[1]["logprobs"].to_pylist() == [list(exact)]


def test_a_refused_group_is_kept_with_its_reason_and_without_reward() -> None:
    own, other = make_contribution("me"), make_contribution("other")
    refused, accepted, selected = keys(other)
    rewards = {key: [0.0, 1.0] for key in (*keys(own), refused, accepted, selected)}
    found = record(
        own,
        [other],
        reasons=[{refused.question_id: "prompt-mismatch"}],
        rewards=rewards,
        external=[selected],
        uses={selected: [RolloutUse(-0.5, 0.8), RolloutUse(0.5, 0.8)]},
    )
    assert outcomes(found, "other") == ["prompt-mismatch", "not-selected", "trained"]
    rows = {(row["question"], row["position"]): row for row in round_rows(found)[1].to_pylist()}
    assert rows[refused.question_id, 1]["reward"] is None
    assert rows[accepted.question_id, 1]["reward"] == 1.0
    assert (rows[selected.question_id, 0]["advantage"], rows[selected.question_id, 0]["weight"]) == (-0.5, 0.8)
    assert rows[accepted.question_id, 0]["weight"] == 0.0
    assert rewards_of(round_rows(found)[1]) == {key: rewards[key] for key in rewards if key != refused}


@pytest.mark.parametrize(
    ("uses", "expected"),
    [
        (None, "trained"),
        ([], "not-used"),
        ([RolloutUse(0.0, 0.0)], "zero-advantage"),
        ([RolloutUse(math.nan, 0.0)], "not-scored"),
        ([RolloutUse(1.5, 0.0)], "trained"),
    ],
)
def test_the_outcome_says_how_the_update_used_our_own_rollout(uses: list[RolloutUse] | None, expected: str) -> None:
    own = make_contribution("me", groups=1, rollouts=1)
    by_group = None if uses is None else {keys(own)[0]: uses} if uses else {}
    found = record(own, [], uses=by_group)
    assert outcomes(found, "me") == [expected]
    (weight,) = round_rows(found)[1]["weight"].to_pylist()
    assert weight == (None if uses is None else uses[0].weight if uses else 0.0)


def test_a_rollout_that_was_not_scored_keeps_its_nan() -> None:
    own = make_contribution("me", groups=1)
    rows = round_rows(record(own, [], rewards={keys(own)[0]: [math.nan, 0.25]}))[1]
    first, second = rewards_of(rows)[keys(own)[0]]
    assert math.isnan(first)
    assert second == 0.25


def test_roles_of_authors_and_the_order_of_external_groups_are_kept() -> None:
    own, other = make_contribution("me"), make_contribution("other")
    chosen = [keys(other)[2], keys(other)[0]]
    head, rows = round_rows(record(own, [other], external=chosen))
    assert head["external"] == [list(key) for key in chosen]
    assert dict(zip(rows["author"].to_pylist(), rows["role"].to_pylist(), strict=True)) == {
        "me": "solver",
        "other": "critic",
    }


def test_cells_of_an_unused_rollout_are_bounded_and_those_of_a_used_one_are_not() -> None:
    long = "x" * (CELL + 10)
    own, other = with_text(make_contribution("me"), long), with_text(make_contribution("other"), long)
    head, rows = round_rows(record(own, [other]))
    found = {(row["author"], row["question"], row["position"]): row for row in rows.to_pylist()}
    ours, theirs = found["me", own.groups[0].question_id, 0], found["other", other.groups[0].question_id, 0]
    assert len(ours["text"]) == len(ours["prompt"][0]["content"]) == CELL + 10
    assert len(theirs["text"]) == len(theirs["prompt"][0]["content"]) == CELL
    assert [each["cut"] for each in head["contributions"]] == [[], [other.groups[0].question_id]]


def test_a_text_that_utf_8_cannot_hold_is_kept_as_others_receive_it() -> None:
    own = with_text(make_contribution("me", groups=1, rollouts=1), "half \ud83d of a pair")
    assert round_rows(record(own, []))[1]["text"].to_pylist() == ["half ? of a pair"]


def transcript(contribution: Contribution, text: str = "larger") -> Contribution:
    """The contribution with a transcript in the place of each rollout."""

    def change(group: Group) -> Group:
        segments = (Segment(2, "5"), Segment(3, text), Segment(1, "7"))
        made = Rollout("7", (1, 2, 9, 9, 9, 3), (-1.0, -2.0, -3.0), FinishReason.DONE, segments)
        return replace(group, rollouts=(made,) * len(group.rollouts))

    return replace(contribution, groups=tuple(map(change, contribution.groups)))


def test_transcripts_come_back_with_their_segments() -> None:
    own, other = transcript(make_contribution("me")), transcript(make_contribution("other"), "\n漢\x1b")
    head, rows = round_rows(record(own, [other]))
    assert [contribution for _, contribution, _ in contributions_of(head, rows)] == [own, other]
    one_turn = make_contribution("me")
    head, rows = round_rows(record(one_turn, []))
    old = rows.drop_columns(["segments"])
    assert [contribution for _, contribution, _ in contributions_of(head, old)] == [one_turn]


def test_a_long_transcript_that_no_update_used_is_cut_and_named() -> None:
    other = transcript(make_contribution("other", groups=1), "x" * (CELL + 1))
    head, rows = round_rows(record(make_contribution("me"), [other]))
    assert head["contributions"][1]["cut"] == [other.groups[0].question_id]
    row = rows.to_pylist()[-1]
    assert (row["segments"], row["text"], row["logprobs"]) == ([], "7", [-1.0, -2.0, -3.0])
    list(contributions_of(head, rows))
