"""`swarmgame env`: JSON lines on a pipe, a page for the documentation, an error for what is unfit or unknown."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from swarmgame.cli.env import app
from swarmgame.errors import BadGame, InvalidManifest, exit_code_of

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


GAME = """apiVersion: swarmgame.dev/v1alpha1
kind: SwarmGame
metadata: {name: words}
spec:
  game:
    maxRounds: 2
    data: {use: "mine:Data", with: {source: rows.csv, questionsPerRound: 3}}
    rewards: {use: exact}
    trainer: {use: policy-gradient, with: {actions: 4}}
"""
DATA = """from swarmgame.data.text import TextData

WORDS = {"alpha", "beta", "gamma", "delta"}


class Data(TextData):
    def round_data(self, round):
        from dataclasses import replace

        return [replace(question, answer=%s) for question in super().round_data(round)]
"""


def test_check_shows_what_a_game_rests_on_and_names_the_first_difference_of_two_processes(tmp_path: Path) -> None:
    game, module = tmp_path / "game.yaml", tmp_path / "mine.py"
    game.write_text(GAME)
    (tmp_path / "rows.csv").write_text("question,answer\n" + "".join(f"what is {n}?,{n}\n" for n in range(40)))
    module.write_text(DATA % "question.answer")
    rows = {row["source"]: row for row in map(json.loads, run("check", str(game)).splitlines()[-5:])}
    assert list(rows) == ["rounds", "data", "code", "rewards", "model"]
    assert (rows["code"]["of"], rows["model"]["fingerprint"]) == ("mine.py", "")
    assert all(re.fullmatch("[0-9a-f]{16}", rows[name]["fingerprint"]) for name in rows if name != "model")
    module.write_text(DATA % '" ".join(WORDS)')
    with pytest.raises(
        BadGame, match=r"round 0, question 0 \(rows\.csv, line \d+\): answer is '[a-z ]+' in one"
    ) as found:
        run("check", str(game))
    assert f"Data.round_data at {module}:7" in str(found.value)
    assert exit_code_of(found.value) == 78


def test_an_unknown_name_is_refused_with_a_suggestion() -> None:
    with pytest.raises(InvalidManifest, match="chain_sum"):
        run("show", "chain_sums")
