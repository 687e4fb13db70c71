"""Rows in the shapes that people have: every type of cell, file and conversation."""

from __future__ import annotations

import json
import logging
import math
from datetime import date, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pyarrow.parquet
import pytest

from swarmgame import ComponentContext, Message, Round
from swarmgame.data.cells import CellProblem, question_of_cell, text_of_cell
from swarmgame.data.dataset import Side
from swarmgame.data.files import rows_of_file
from swarmgame.data.images import ImageConfig, ImageData
from swarmgame.data.text import TextConfig, TextData
from swarmgame.errors import BadData, InvalidManifest

ROUND = Round(number=0, seed=1, peer_seed=2, stages=1, peer="a", members=("a",))
USER = {"role": "user", "content": "What is 3+1?"}


def text(source: Path, **rest: Any) -> TextData:
    options = {"source": str(source), "heldOut": 0, "demonstrations": 0, "questionsPerRound": 1, **rest}
    return TextData(TextConfig.model_validate(options), ComponentContext())


def rows(folder: Path, found: list[Any], **rest: Any) -> TextData:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, found)))
    return text(path, **rest)


def file(folder: Path, name: str, content: bytes, **rest: Any) -> TextData:
    (folder / name).write_bytes(content)
    return text(folder / name, **rest)


def pairs(data: TextData) -> list[tuple[str, str]]:
    return [(data._question(row).text, data._question(row).answer) for row in range(len(data._rows))]


def prompt(data: TextData, row: int = 0) -> tuple[Message, ...]:
    return data.prompt(data._question(row)).messages


@pytest.mark.parametrize(
    ("cell", "shown"),
    [("7", "7"), (7, "7"), (7.0, "7.0"), (True, "True"), (Decimal("1.50"), "1.50"), (date(2024, 10, 5), "2024-10-05"),
     (datetime(2024, 10, 5, 12, 30), "2024-10-05T12:30:00"), (numpy.int64(7), "7"), (numpy.float64(0.5), "0.5"),
     ("", ""), ("é \u2028", "é \u2028"), (10**30, str(10**30)), (10**400, str(10**400)), (-(10**400), f"-{10**400}"),
     (Fraction(10**400, 3), f"{10**400}/3"), (Decimal("1e400"), "1E+400")],
)  # fmt: skip
def test_texts_numbers_booleans_and_dates_are_texts(cell: object, shown: str) -> None:
    assert text_of_cell(cell) == shown


@pytest.mark.parametrize(
    ("cell", "message"),
    [(None, "null"), (math.nan, "nan"), (math.inf, "inf"), (Decimal("NaN"), "Decimal"), (Decimal("sNaN"), "Decimal"),
     (b"7", "bytes"),
     ([7], "a list of 1"), ({"ground_truth": 7, "style": "rule"}, "keys ground_truth, style"), ({}, r"keys \(none\)"),
     ("\ud83d", "surrogate"), (1j, "complex")],
)  # fmt: skip
def test_anything_else_is_refused_with_what_it_is(cell: object, message: str) -> None:
    with pytest.raises(CellProblem, match=message):
        text_of_cell(cell)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("", "an empty text"),
        (" \n", "an empty text"),
        ("[{'role': 'user', 'content': 'hi'}]", "written as text"),
        ('[{"content": "hi", "role": "user"}]', "written as text"),
        ([], "ends with no message"),
        (["hi"], "element 0 is text"),
        ([["user", "hi"]], "element 0 is a list"),
        ([{"role": "user"}], "content null"),
        ([{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "content a list"),
        ([{"role": "tool", "content": "hi"}], "role 'tool'"),
        ([{"content": "hi"}], "role None"),
        ([USER, {"role": "system", "content": "be brief"}, USER], "element 1 has the role 'system'"),
        ([USER, {"role": "assistant", "content": "4"}], "ends with assistant"),
        ([{"role": "user", "content": " "}], "last message is empty"),
        ([{**USER, "name": "Ada"}], "also has name"),
        ([{"role": "user", "content": "\udc00"}, USER], "surrogate"),
    ],
)
def test_a_question_that_is_no_question_is_refused(cell: object, message: str) -> None:
    with pytest.raises(CellProblem, match=message):
        question_of_cell(cell)


def test_messages_are_asked_as_messages(tmp_path: Path) -> None:
    history = [{"role": "system", "content": "Be brief."}, USER, {"role": "assistant", "content": "4", "name": None}]
    last = {"role": "user", "content": "And {answer}?"}
    data = rows(tmp_path, [{"prompt": [*history, last], "answer": 5}], question="prompt")
    assert pairs(data) == [("And {answer}?", "5")]
    assert [(each.role, each.content) for each in prompt(data)] == [
        ("system", "Be brief."), ("user", "What is 3+1?"), ("assistant", "4"), ("user", "And {answer}?")
    ]  # fmt: skip
    data = rows(
        tmp_path, [{"prompt": [USER], "answer": 4}], question="prompt", systemPrompt="Hi", promptTemplate="Q: {prompt}"
    )
    assert prompt(data) == (Message("system", "Hi"), Message("user", "Q: What is 3+1?"))
    with pytest.raises(InvalidManifest, match=r"systemPrompt.*system messages of their own"):
        rows(tmp_path, [{"prompt": [*history, last], "answer": 5}], question="prompt", systemPrompt="Hi")


def test_a_parquet_file_may_hold_messages(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist([{"prompt": [USER], "answer": 4.0}] * 2)
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    data = text(tmp_path / "rows.parquet", question="prompt")
    assert prompt(data) == (Message("user", "What is 3+1?"),)
    assert pairs(data)[0] == ("What is 3+1?", "4.0")


@pytest.mark.parametrize(
    ("row", "column", "found"),
    [
        ({"question": "q", "answer": {"ground_truth": 7}}, "answer", "an object with the keys ground_truth"),
        ({"question": "q", "answer": None}, "answer", "null"),
        ({"question": "q"}, "answer", "this row has no such column, only question"),
        ({"question": None, "answer": "x"}, "question", "null"),
        ({"question": "q", "answer": "x", "level": [1]}, "level", "a list of 1"),
        ({"question": "q", "answer": "x"}, "level", "this row has no such column"),
    ],
)
def test_a_cell_that_cannot_be_used_is_named_by_row_and_column(
    tmp_path: Path, row: dict[str, Any], column: str, found: str
) -> None:
    good = {"question": "q", "answer": "x", "level": 1}
    template = "{level} {question}" if column == "level" else "{question}"
    with pytest.raises(BadData, match=rf"rows\.jsonl, line 2, column {column}: {found}") as caught:
        rows(tmp_path, [good, row, good, row], promptTemplate=template)
    assert "2 of 4 rows cannot be used" in str(caught.value)


def test_columns_that_are_not_used_may_hold_anything(tmp_path: Path) -> None:
    data = rows(tmp_path, [{"question": "q", "answer": "x", "info": {"a": None}}])
    assert data._question(0).metadata["info"] == {"a": None}


def test_a_number_and_its_text_are_the_same_row(tmp_path: Path) -> None:
    numbers = rows(tmp_path, [{"question": 7, "answer": 8}])
    assert numbers.digest == rows(tmp_path, [{"question": "7", "answer": "8"}]).digest
    assert pairs(numbers) == [("7", "8")]


def test_braces_in_a_row_are_never_expanded_and_the_answer_never_shown(tmp_path: Path) -> None:
    data = rows(tmp_path, [{"question": 'What does f"{answer}" print for {x}?', "answer": "42", "x": "{question}"}])
    assert prompt(data)[0].content == 'What does f"{answer}" print for {x}?'
    with pytest.raises(InvalidManifest, match="answerInPrompt"):
        text(tmp_path / "rows.jsonl", promptTemplate="{question} {answer}")
    shown = text(tmp_path / "rows.jsonl", promptTemplate="{answer}: {x}", answerInPrompt=True)
    assert prompt(shown)[0].content == "42: {question}"
    with pytest.raises(InvalidManifest, match=r"no \{questoin\}"):
        text(tmp_path / "rows.jsonl", promptTemplate="{questoin}")
    with pytest.raises(InvalidManifest, match="another column"):
        text(tmp_path / "rows.jsonl", answer="question")


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("count", [1, 3])
def test_marks_line_ends_and_a_missing_last_one_do_not_matter(
    tmp_path: Path, ending: bytes, mark: bytes, final: bool, count: int
) -> None:
    expected = [(f"é{number}", "7") for number in range(count)]
    lines = {
        "rows.jsonl": [f'{{"question": "é{number}", "answer": 7}}' for number in range(count)],
        "rows.csv": ["question,answer", *(f"é{number},7" for number in range(count))],
        "rows.tsv": ["question\tanswer", *(f"é{number}\t7" for number in range(count))],
    }
    digests = set()
    for name, found in lines.items():
        content = mark + ending.join(line.encode() for line in found) + (ending if final else b"")
        data = file(tmp_path, name, content)
        assert pairs(data) == expected
        digests.add(data.digest)
    assert len(digests) == 1


def test_lines_inside_a_cell_are_the_same_from_every_system(tmp_path: Path) -> None:
    for ending in (b"\n", b"\r\n"):
        data = file(tmp_path, "rows.csv", ending.join([b"question,answer", b'"one', b'two",""', b""]), answer="answer")
        assert pairs(data) == [("one\ntwo", "")]
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n---\r\n7")
    (folder / "b.txt").write_bytes(b"only a question")
    assert pairs(text(folder)) == [("one\ntwo", "7"), ("only a question", "")]
    assert pairs(text(folder, answer="")) == [("one\ntwo", ""), ("only a question", "")]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.tsv"])
@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", b"\r\n"])
def test_an_empty_file_has_no_rows(tmp_path: Path, name: str, content: bytes) -> None:
    with pytest.raises(InvalidManifest, match="at least one row"):
        file(tmp_path, name, content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"question,answer\nq,1\nq,1,2\n", "line 3: 3 cells, but the header has 2"),
        ("a.csv", b"question,answer\nq\n", "line 2: 1 cells"),
        ("a.csv", b"question,answer,answer\nq,1,2\n", "line 1: the column 'answer' appears twice"),
        ("a.csv", b'question,answer\n"open,1\nq,2\n', "line 3: unexpected end of data"),
        ("a.csv", b'question,answer\n"a" b,1\n', "line 2:"),
        ("a.csv", b"question,answer\n\xe9,1\n", "not in UTF-8"),
        ("a.tsv", b"question\tanswer\nq 1\n", "line 2: 1 cells"),
        ("a.jsonl", b'{"question": "\xe9"}', "line 1: the text is not in UTF-8"),
        ("a.jsonl", '{"question": "q"}'.encode("utf-16"), "line 1: the text is not in UTF-8"),
        ("a.jsonl", b'{"question": 1, "question": 2, "answer": 3}', "line 1: the key 'question' appears twice"),
        ("a.jsonl", b'[{"question": 1}]', "line 1: expected an object"),
        ("a.jsonl", b"[\n", "line 1: .*one JSON object a line"),
        ("a.jsonl", b'{"question": "q", "answer": NaN}', "column answer: nan"),
        ("a.jsonl", b'{"question": "q", "answer": "\\ud800"}', "column answer: .*surrogate"),
        ("a.jsonl", b"[" * 200_000, "line 1: .*nested more than 100 deep"),
        ("a.jsonl", b'{"a": ' * 200_000, "line 1: .*nested more than 100 deep"),
        ("a.parquet", b"PAR1 torn", "cannot be read as Parquet"),
        ("a.parquet", b"", "cannot be read as Parquet"),
    ],
)
def test_a_file_that_would_be_read_in_part_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(BadData, match=message):
        file(tmp_path, name, content)


def test_brackets_in_texts_and_one_behind_another_are_not_nested(tmp_path: Path) -> None:
    row = {"question": '[{"\\"' * 300, "answer": "x", "other": [[]] * 200}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    assert [found for _, found in rows_of_file(tmp_path / "a.jsonl")] == [row]


def test_cells_of_parquet_have_their_types(tmp_path: Path) -> None:
    columns = {
        "question": pyarrow.array(["a", "b"]).dictionary_encode(),
        "answer": pyarrow.array([1, None], pyarrow.float64()),
        "raw": pyarrow.array([b"x", b"y"]),
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "rows.parquet")
    with pytest.raises(BadData, match=r"row 1 \(from 0\), column answer: null"):
        text(tmp_path / "rows.parquet")
    assert pairs(text(tmp_path / "rows.parquet", answer="")) == [("a", ""), ("b", "")]
    with pytest.raises(BadData, match=r"row 0 \(from 0\), column raw: bytes"):
        text(tmp_path / "rows.parquet", answer="", promptTemplate="{raw}")


def sides(data: TextData) -> dict[Side, set[str]]:
    return {side: {data._question(row).text for row in found} for side, found in data.rows.items()}


def test_equal_questions_are_on_one_side_whatever_their_answers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = [{"question": f"What is {n % 40}?", "answer": str(n)} for n in range(200)]
    with caplog.at_level(logging.WARNING):
        data = rows(tmp_path, asked, heldOut=0.3, demonstrations=0.3)
    found = sides(data)
    assert all(found.values())
    assert sum(map(len, found.values())) == 40
    assert "160 of the 200 rows" in caplog.text
    assert "40 of these questions have several answers" in caplog.text
    other = [{**row, "answer": "other"} for row in asked]
    assert sides(rows(tmp_path, other, heldOut=0.3, demonstrations=0.3)) == found
    written = [{**row, "question": row["question"].upper().replace(" ", "  ")} for row in asked]
    again = rows(tmp_path, asked + written, heldOut=0.3, demonstrations=0.3)
    folded = {side: {each.lower().replace("  ", " ") for each in texts} for side, texts in sides(again).items()}
    assert folded == {side: {each.lower() for each in texts} for side, texts in found.items()}
    assert data.digest != again.digest


def test_rows_without_repetitions_are_read_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        rows(tmp_path, [{"question": f"q{n}", "answer": "x"} for n in range(20)])
    assert not caplog.records


def test_a_question_includes_the_columns_and_messages_that_its_prompt_shows(tmp_path: Path) -> None:
    reviews = [{"question": "Positive?", "answer": "yes", "review": f"review {n}"} for n in range(60)]
    data = rows(tmp_path, reviews, heldOut=0.3, promptTemplate="{review}\n{question}")
    assert all(data.rows[side] for side in (Side.ROUND, Side.EVALUATION))
    changed = [{**row, "review": "other"} for row in reviews]
    assert rows(tmp_path, changed, heldOut=0, promptTemplate="{review}\n{question}").digest != data.digest
    talks = [{"question": [{"role": "assistant", "content": str(n)}, USER], "answer": "4"} for n in range(60)]
    data = rows(tmp_path, talks, heldOut=0.3)
    assert all(data.rows[side] for side in (Side.ROUND, Side.EVALUATION))


def test_the_same_picture_with_another_label_is_on_the_same_side(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from PIL import Image

    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for number in range(40):
            Image.new("RGB", (2, 2), (number, 0, 0)).save(tmp_path / label / f"{number}.png")
    with caplog.at_level(logging.WARNING):
        data = ImageData(ImageConfig(source=str(tmp_path), held_out=0.4), ComponentContext())
    pictures = {side: {data._images[row].tobytes() for row in found} for side, found in data.rows.items()}
    assert pictures[Side.EVALUATION]
    assert not pictures[Side.EVALUATION] & pictures[Side.ROUND]
    assert "40 of the 80 rows" in caplog.text


def test_what_is_left_out_or_unmarked_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = [{"question": f"q{n}", "answer": f"so #### {n}" if n else "none"} for n in range(5)]
    with caplog.at_level(logging.WARNING):
        data = rows(tmp_path, found, maxRows=4, answerAfter="####")
    assert pairs(data) == [("q0", "none"), ("q1", "1"), ("q2", "2"), ("q3", "3")]
    assert "only the first 4 rows" in caplog.text
    assert "1 of the 4 rows" in caplog.text
    assert "line 1" in caplog.text


def test_too_few_rows_for_rounds_names_where_the_others_are(tmp_path: Path) -> None:
    with pytest.raises(InvalidManifest, match=r"at most the 1 rows .* of 1, 0 are held out"):
        rows(tmp_path, [{"question": "q", "answer": "x"}], questionsPerRound=2)
