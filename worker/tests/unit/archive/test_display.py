"""What another peer wrote cannot control a terminal, and JSON lines hold all of it."""

from __future__ import annotations

import io
import json

import pytest
from archived_games import record, with_text
from contributions import make_contribution
from rich.console import Console

from swarmgame.archive.display import answer, as_json, block, cut, visible
from swarmgame.archive.rows import round_rows
from swarmgame.archive.selection import Row, best, longest, worst


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("a\rb\x08c\x7f", "a\\rb\\x08c\\x7f"),
        ("\u202eevil\u2066", "\\u202eevil\\u2066"),
        ("zero\u200bwidth\ufeff", "zero\\u200bwidth\\ufeff"),
        ("line\u2028paragraph\u2029", "line\\u2028paragraph\\u2029"),
        ("two\nlines, ✓ é 漢字", "two\nlines, ✓ é 漢字"),
    ],
)
def test_control_characters_become_escapes_and_printed_ones_stay(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_a_long_text_is_cut_and_the_rest_is_counted() -> None:
    assert cut("x" * 1_500).endswith("x … 300 characters more")


def rows(text: str = "plain") -> list[Row]:
    own, other = make_contribution("me", 3), with_text(make_contribution("other\x1b[31m", 3), text)
    return [{"archive": 0, **row} for row in round_rows(record(own, [other]))[1].to_pylist()]


def test_a_hostile_rollout_is_shown_at_80_columns_without_a_control_character() -> None:
    for row in rows("\x1b[31m[red]bold[/red] " + "wide 漢字 " * 40):
        output = io.StringIO()
        Console(file=output, width=80, markup=False, force_terminal=False).print(block(row, {"me": "peer 0"}))
        shown = output.getvalue()
        assert "\x1b" not in shown
        assert max(map(len, shown.splitlines())) <= 80
    assert "[red]" in shown or "answer" in shown


def test_a_json_line_holds_every_column() -> None:
    (first, *_) = rows()
    line = json.loads(json.dumps(as_json(first), allow_nan=False))
    assert line["author"] == "me"
    assert line["token_ids"] == first["token_ids"]
    assert line["reward"] is None


def test_best_worst_and_longest_leave_out_what_was_not_scored() -> None:
    def row(reward: float | None, tokens: int, round: int = 0) -> Row:
        return {"reward": reward, "token_ids": [0] * tokens, "round": round}

    made = [row(0.5, 3), row(float("nan"), 9), row(1.0, 1, round=1), row(1.0, 2, round=2), row(None, 5), row(0.0, 4)]
    assert best(made, 2) == [made[3], made[2]]
    assert worst(made, 1) == [made[5]]
    assert longest(made, 2) == [made[1], made[4]]


def played() -> Row:
    (row, *_) = rows()
    segments = [{"tokens": 2, "text": "5"}, {"tokens": 3, "text": "larger\x1b"}, {"tokens": 1, "text": ""}]
    return {**row, "segments": segments, "finish_reason": "turns", "logprobs": [-1.0] * 3}


def test_the_turns_of_a_transcript_are_set_apart() -> None:
    assert answer(played()) == [("turn 1", "5"), ("environment", "larger\\x1b"), ("turn 2", "(empty)")]
    output = io.StringIO()
    Console(file=output, width=80, markup=False, force_terminal=False).print(block(played(), {"me": "peer 0"}))
    shown = [line.split(maxsplit=1)[0] for line in output.getvalue().splitlines() if line.strip()]
    assert shown[-3:] == ["turn", "environment", "turn"]
    assert "3 tokens, no turns left" in output.getvalue()


def test_a_rollout_of_one_turn_and_one_of_an_earlier_release_are_a_text() -> None:
    (row, *_) = rows()
    expected = [("text", cut(row["text"]))]
    assert answer(row) == answer({key: value for key, value in row.items() if key != "segments"}) == expected
