"""`swarmgame env`: JSON lines on a pipe, a page for the documentation, an error for what is unfit or unknown."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from swarmgame.cli.env import app
from swarmgame.errors import InvalidManifest

PAGE = Path(__file__).parents[4] / "docs" / "reference" / "environments.md"


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_list_prints_one_json_line_for_each_and_the_page_is_up_to_date() -> None:
    rows = [json.loads(line) for line in run("list").splitlines()]
    assert len({row["name"] for row in rows}) == len(rows) >= 106
    gcd = next(row for row in rows if row["name"] == "gcd")
    assert (gcd["category"], gcd["curriculum"], gcd["evaluates"]) == ("arithmetic", True, False)
    evaluating = {row["name"] for row in rows if row["evaluates"]}
    assert evaluating >= {
        "n_queens",
        "countdown",
        "puzzle24",
        "simple_integration",
        "polynomial_multiplication",
        "binary_matrix",
    }
    assert [
        row["name"] for row in rows if f"| `{row['name']}` |" not in PAGE.read_text() and row["category"] != "own"
    ] == []


def test_show_tells_fields_and_an_example() -> None:
    shown = json.loads(run("show", "chain_sum"))
    assert {"name": "min_terms", "type": "int", "default": 2, "required": False} in shown["fields"]
    assert shown["example"]["question"]
    assert re.fullmatch(r"-?\d+", shown["example"]["answer"])


def test_check_reports_each_environment() -> None:
    found = [json.loads(line) for line in run("check", "gcd", "graph_color", "composite").splitlines()]
    assert [(result["name"], result["own_answer"], result["problems"]) for result in found] == [
        ("gcd", 1.0, []),
        ("graph_color", None, []),
        ("composite", 1.0, []),
    ]


def test_an_unknown_name_is_refused_with_a_suggestion() -> None:
    with pytest.raises(InvalidManifest, match="chain_sum"):
        run("show", "chain_sums")
