"""Logs are JSON lines, and never hold a secret."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from swarmgame_common.logs import HIDDEN, configure, get_logger


@pytest.fixture(autouse=True)
def untouched_root() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_pipe_and_a_file_get_one_json_object_a_line(tmp_path: Path) -> None:
    stream = io.StringIO()
    configure(file=tmp_path / "log.jsonl", stream=stream, index=2)
    get_logger("swarmgame.test").info("round finished", round=3)
    (line,) = lines(stream.getvalue())
    assert (line["event"], line["round"], line["index"], line["level"]) == ("round finished", 3, 2, "info")
    assert lines((tmp_path / "log.jsonl").read_text()) == [line]


def test_what_other_libraries_log_is_formatted_the_same_way() -> None:
    stream = io.StringIO()
    configure(stream=stream, index=2)
    logging.getLogger("another.library").warning("watch %s", "out")
    (line,) = lines(stream.getvalue())
    assert (line["event"], line["logger"], line["level"], line["index"]) == (
        "watch out",
        "another.library",
        "warning",
        2,
    )


def test_configuring_again_replaces_the_earlier_configuration(tmp_path: Path) -> None:
    first, second = io.StringIO(), io.StringIO()
    configure(stream=first, file=tmp_path / "first.jsonl")
    configure(stream=second)
    get_logger("x").info("hello")
    assert first.getvalue() == ""
    assert (tmp_path / "first.jsonl").read_text() == ""
    assert len(lines(second.getvalue())) == 1


@pytest.mark.parametrize(("form", "is_json"), [("auto", True), ("json", True), ("text", False)])
def test_the_form_of_the_stream_can_be_chosen(form: Literal["auto", "json", "text"], is_json: bool) -> None:
    stream = io.StringIO()
    configure(stream=stream, form=form, level="WARNING")
    get_logger("x").info("not shown")
    get_logger("x").warning("shown")
    assert "not shown" not in stream.getvalue()
    assert stream.getvalue().startswith("{") is is_json


@pytest.mark.parametrize(
    ("facts", "secret"),
    [
        ({"wallet_private_key": "abcdef"}, "abcdef"),
        ({"nested": {"HF_TOKEN": "abcdef"}}, "abcdef"),
        ({"uri": "https://user:hunter2@example.org/x"}, "hunter2"),
        ({"message": "using hf_ABCDEFGHIJKLMNOPQRST"}, "hf_ABCDEFGHIJKLMNOPQRST"),
        ({"headers": ["Bearer abcdefghijklmnop"]}, "abcdefghijklmnop"),
        ({"key": "0x" + "ab" * 32}, "ab" * 32),
    ],
)
def test_secrets_are_hidden_at_any_depth(facts: dict[str, object], secret: str) -> None:
    stream = io.StringIO()
    configure(stream=stream)
    get_logger("x").info("something", **facts)
    assert secret not in stream.getvalue()
    assert HIDDEN in json.dumps(lines(stream.getvalue()), ensure_ascii=False)


def test_a_secret_in_a_traceback_is_hidden() -> None:
    stream = io.StringIO()
    configure(stream=stream)
    try:
        raise ValueError("cannot reach https://user:hunter2@example.org")
    except ValueError:
        get_logger("x").exception("failed")
    assert "ValueError" in stream.getvalue()
    assert "hunter2" not in stream.getvalue()


def test_the_number_of_tokens_is_not_a_secret() -> None:
    stream = io.StringIO()
    configure(stream=stream)
    get_logger("x").info("sampled", tokens=512, tokenizer="char")
    (line,) = lines(stream.getvalue())
    assert (line["tokens"], line["tokenizer"]) == (512, "char")


def test_a_warning_that_repeats_is_written_at_powers_of_ten_with_its_count(tmp_path: Path) -> None:
    stream = io.StringIO()
    configure(stream=stream, file=tmp_path / "log.jsonl", limit_repeats=True)
    for number in range(120):
        logging.getLogger("swarmgame.test").warning("the swarm is at round %d: skipping ahead", number)
    events = [line["event"] for line in lines(stream.getvalue())]
    assert events == [
        "the swarm is at round 0: skipping ahead",
        "the swarm is at round 9: skipping ahead (10 times so far)",
        "the swarm is at round 99: skipping ahead (100 times so far)",
    ]
    assert [line["event"] for line in lines((tmp_path / "log.jsonl").read_text())] == events


def test_different_errors_facts_and_counted_records_are_all_written() -> None:
    stream = io.StringIO()
    configure(stream=stream, limit_repeats=True)
    for number in range(3):
        logging.getLogger("swarmgame.test").error("checkpoint skipped: round-%d", number)
        logging.getLogger("swarmgame.test").info("round %d", number)
        logging.getLogger("swarmgame.test").warning("found %d", number, extra={"counted": True})
        get_logger("swarmgame.test").warning("reconcile failed", game=number)
    assert len(lines(stream.getvalue())) == 12


def test_nothing_is_left_out_unless_it_is_asked_for() -> None:
    stream = io.StringIO()
    configure(stream=stream)
    for _ in range(3):
        logging.getLogger("swarmgame.test").warning("again")
    assert len(lines(stream.getvalue())) == 3
