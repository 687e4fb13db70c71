"""docs/guide/tools.md: its manifests are valid, and its tool answers. Needs the entry points of this package."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from guides import GUIDES, blocks

from swarmgame import Question, QuestionRef
from swarmgame.environments.play import call_of, described, play
from swarmgame_api.game import EnvironmentSpec

PAGE = GUIDES / "tools.md"
QUESTION = Question(QuestionRef("words", "v1", 1, 1), "what is a scow?", "a flat boat")


def played(text: str, folder: Path, *turns: str) -> list[str]:
    spec = EnvironmentSpec.model_validate(yaml.safe_load(text)["environment"])
    found = play(*call_of(spec.use, spec.with_, folder, 0), described(QUESTION), turns)
    return [observation for observation, _, _ in found["steps"]]


def test_the_environments_of_the_guide_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks(PAGE, "python")
    calculator, toolbox = blocks(PAGE, "yaml")
    (tmp_path / "dictionary.py").write_text(code)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "boats.txt").write_text("A scow sails in shallow water.")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert played(calculator, tmp_path, "<c>12*34</c>", "<c>1/0</c>", "408") == ["408", "error: division by zero", ""]
    turn = "<dictionary>scow</dictionary><calculator>12*(3+4)</calculator><search>shallow</search>"
    assert played(toolbox, tmp_path, turn, "a flat boat") == [
        "a flat boat\n84\nboats.txt: A scow sails in shallow water.",
        "",
    ]
