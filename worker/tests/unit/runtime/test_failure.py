"""The error that ended a peer: where it is, and whose it is."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from swarmgame.models.builtin import BuiltinOptions
from swarmgame.runtime.failure import Failure, failure_of, packages_of
from swarmgame_api.manifest import SwarmGame

GAME = """
import torch

def rewards(number):
    if number == 1:
        raise KeyError("my bug")
    return shape(number)

def shape(number):
    return torch.zeros(2) @ torch.zeros(3)

class Silent(Exception):
    def __str__(self):
        raise RuntimeError("not even a text")

def silent():
    raise Silent
"""


@pytest.fixture
def game(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    file = tmp_path / "game_of_a_test.py"
    file.write_text(GAME)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield file
    sys.modules.pop("game_of_a_test", None)


def failure(call: Callable[[], object], **options: Any) -> Failure:
    """Return the failure of a call, without the frames of this file: a peer has none of it."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 — each test says which
        call()
    trace = caught.value.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return failure_of(caught.value.with_traceback(trace), **options)


def wrong_shape() -> object:
    return torch.nn.Linear(1, 1)(torch.zeros(3, 7))


def test_an_exception_of_the_game_has_its_line_and_function(game: Path) -> None:
    module = importlib.import_module("game_of_a_test")
    found = failure(lambda: module.rewards(1), round=2)
    assert found == Failure("KeyError", "'my bug'", f"{game}:6", "rewards", round=2, of_game=True)
    assert str(found) == f"KeyError: 'my bug' at {game}:6, in rewards (in round 2)"


def test_an_exception_of_a_library_that_the_game_called_has_the_games_line(game: Path) -> None:
    module = importlib.import_module("game_of_a_test")
    found = failure(lambda: module.rewards(2))
    assert (found.kind, found.where, found.function, found.of_game) == ("RuntimeError", f"{game}:10", "shape", True)
    assert "(before the first round)" in str(found)


def test_an_exception_of_this_project_or_of_a_library_is_not_the_games() -> None:
    ours = failure(lambda: BuiltinOptions.of(None))  # type: ignore[arg-type]
    assert (ours.of_game, ours.function) == (False, "of")
    library = failure(wrong_shape)
    assert not library.of_game
    assert f"site-packages{os.sep}torch" in library.where


def test_a_game_that_is_installed_like_a_library_is_the_games_own_by_the_name_in_the_manifest() -> None:
    component = {"use": "torch.nn:Linear"}
    manifest = SwarmGame.model_validate(
        {
            "apiVersion": "swarmgame.dev/v1alpha1",
            "kind": "SwarmGame",
            "metadata": {"name": "installed"},
            "spec": {"game": {"maxRounds": 1, "data": component, "rewards": {"use": "exact"}, "trainer": component}},
        }
    )
    assert packages_of(manifest) == {"torch"}
    assert failure(wrong_shape, packages=packages_of(manifest)).of_game
    assert not failure(wrong_shape).of_game


def test_an_exception_without_a_text_and_a_module_that_cannot_be_compiled_are_described(game: Path) -> None:
    module = importlib.import_module("game_of_a_test")
    assert failure(module.silent).kind == "Silent"
    broken = game.with_name("broken_game_of_a_test.py")
    broken.write_text("def score(:\n    pass\n")
    found = failure(lambda: importlib.import_module("broken_game_of_a_test"))
    assert (found.kind, found.where, found.of_game) == ("SyntaxError", f"{broken}:1", True)


def test_the_same_failure_is_recognised_though_its_text_holds_an_address() -> None:
    first = Failure("ValueError", "<object at 0x1>", "game.py:3", "rewards", round=2, of_game=True)
    assert first.is_same(Failure("ValueError", "<object at 0x2>", "game.py:3", "rewards", round=2, of_game=True))
    for other in (
        Failure("TypeError", "", "game.py:3", "rewards", round=2, of_game=True),
        Failure("ValueError", "", "game.py:4", "rewards", round=2, of_game=True),
        Failure("ValueError", "", "game.py:3", "rewards", round=3, of_game=True),
    ):
        assert not first.is_same(other)


def test_a_failure_survives_json_and_anything_else_is_no_failure() -> None:
    first = Failure("ValueError", "x", "game.py:3", "rewards", round=2, of_game=True)
    assert Failure.of_json(json.loads(json.dumps(first.as_json()))) == first
    assert [Failure.of_json(found) for found in (None, [], "x", {"kind": "x"})] == [None] * 4
