"""The check of plain words: what is counted, and the report of a package above the limit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import plain_words
import pytest

ALLOWED = re.compile("look[- ]?up|as a whole", re.IGNORECASE)


def settings(limit: float) -> dict[str, Any]:
    return {"words": ["said", "whole"], "allowed": ["as a whole"], "limit": limit, "packages": ["one", "two"]}


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    for name, text in (
        ("one", "def last_said(): ..."),
        ("two", "# plain names, and the game as a whole"),
        ("one/tests", "said"),
    ):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "module.py").write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("say_last", ["say", "last"]),
        ("HTTPServer lastWords", ["http", "server", "last", "words"]),
        ("a lookup, as a whole", []),
        ("of 10 GiB", []),
    ],
)
def test_identifiers_are_split_and_allowed_phrases_do_not_count(text: str, expected: list[str]) -> None:
    assert list(plain_words.words_of(text, ALLOWED)) == expected


def test_a_package_above_the_limit_is_reported_with_files_and_words(packages: Path) -> None:
    lines = plain_words.check(settings(limit=20), packages)
    assert lines[0].startswith("error: one: 3333.3 per 10,000")
    assert lines[1].endswith("one/module.py: said (1)")
    assert lines[2].startswith("two: 0.0 per 10,000")
    assert lines[3].startswith("error: all packages: ")


def test_tests_do_not_count_and_packages_within_the_limit_are_no_error(packages: Path) -> None:
    assert [line.partition(":")[0] for line in plain_words.check(settings(limit=5000), packages)] == [
        "one",
        "two",
        "all packages",
    ]
