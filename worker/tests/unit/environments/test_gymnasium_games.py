"""Environments of gymnasium: seeds, actions, observations, and what a manifest may say. Needs gymnasium."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from swarmgame import Question, QuestionRef
from swarmgame.environments.gymnasium_games import as_text
from swarmgame.environments.play import call_of, described, digest_of, made, play
from swarmgame.errors import InvalidManifest

gymnasium = pytest.importorskip("gymnasium")
import numpy as np  # noqa: E402 — after the package that may be missing

USE = "swarmgame.environments.gymnasium_games:Gymnasium"
LAKE = {"id": "FrozenLake-v1", "options": {"is_slippery": False}, "actions": ["left", "down", "right", "up"]}
TOWARDS_THE_GOAL = ["down", "down", "right", "right", "down", "right"]
OWN = """
import gymnasium
from gymnasium import spaces


class Echo(gymnasium.Env):
    action_space = spaces.Text(5, min_length=1, charset="abc")
    observation_space = spaces.Text(10)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return f"begin {self.np_random.integers(1000)}", {}

    def step(self, action):
        if action == "cab":
            raise LookupError("no taxi")
        return action[::-1], 0.5, action == "abc", False, {}


class Wide(Echo):
    action_space = spaces.Box(0, 1)


gymnasium.register("Echo-v0", Echo)
gymnasium.register("Wide-v0", Wide)
"""


def question(seed: int = 1) -> Question:
    return Question(QuestionRef("round", "v1", seed, 0), "go:", "")


def played(options: dict[str, Any], *turns: str, seed: int = 1, folder: Path | None = None) -> dict[str, Any]:
    return play(*call_of(USE, options, folder, 0), described(question(seed)), turns)


def test_an_episode_is_played_by_words_to_its_end() -> None:
    found = played(LAKE, *TOWARDS_THE_GOAL, "never read")
    assert found["first"] == "0"
    assert found["steps"][-1] == ["15", 1.0, True]
    assert [step[0] for step in found["steps"]] == ["4", "8", "9", "10", "14", "15"]


def test_a_turn_without_an_action_is_corrected_and_steps_nothing() -> None:
    found = played(LAKE, "I stay", "leftwards", "I go DOWN, then right")
    assert found["steps"][:2] == [["one of left, down, right, up, please", None, False]] * 2
    assert found["steps"][2][0] == "4"
    numbers = {**LAKE, "actions": []}
    assert [step[0] for step in played(numbers, "4", "-1", "it is 1")["steps"]] == [
        "a number from 0 to 3, please",
        "a number from 0 to 3, please",
        "4",
    ]


@pytest.mark.parametrize(
    ("turn", "step"),
    [
        ("1000000001", "a number from 0 to 3, please"),
        ("in 2026 I choose 1", "4"),
        ("of 4 ways: 1, not 2", "4"),
        ("3-1", "0"),
        ("-1 or 1", "4"),
    ],
)
def test_an_action_is_the_first_whole_number_that_is_one(turn: str, step: str) -> None:
    assert played({**LAKE, "actions": []}, turn)["steps"][0][0] == step


def test_the_drawing_is_shown_with_the_place_in_brackets() -> None:
    found = played({**LAKE, "shows": "drawing"}, "down")
    assert found["first"].splitlines()[0] == "[S]FFF"
    assert found["steps"][0][0].splitlines()[:3] == ["(Down)", "SFFF", "[F]HFH"]


def test_chance_follows_from_the_question() -> None:
    slippery = {**LAKE, "options": {}}
    plays = [played(slippery, *["right"] * 6, seed=seed) for seed in range(8)]
    assert plays == [played(slippery, *["right"] * 6, seed=seed) for seed in range(8)]
    assert len({str(each) for each in plays}) > 1


@pytest.mark.parametrize(
    ("observation", "text"),
    [
        ((7, 10, 0), "7 10 0"),
        (np.array([[0.5, 1.25], [1e-9, 3.0]]), "0.5 1.25 1e-09 3"),
        (np.int64(4), "4"),
        ({"at": np.array([1, 2]), "key": True}, "at: 1 2, key: True"),
        (float("inf"), "inf"),
        ("", ""),
    ],
)
def test_observations_are_short_texts(observation: object, text: str) -> None:
    assert as_text(observation) == text


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_gym.py").write_text(OWN)
    (tmp_path / "broken_gym.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_gym", raising=False)
    return tmp_path


def test_an_environment_of_ones_own_with_texts_is_played_and_its_code_compared(own: Path) -> None:
    options = {"id": "own_gym:Echo-v0"}
    found = played(options, "ab", "xyz", " abc ", folder=own)
    assert found["first"].startswith("begin ")
    assert found["steps"] == [
        ["ba", 0.5, False],
        ["a text of 1 to 5 known characters, please", None, False],
        ["cba", 0.5, True],
    ]
    before = digest_of(USE, options, own, 0)
    assert before.startswith(f"gymnasium {gymnasium.__version__} ")
    (own / "own_gym.py").write_text(OWN.replace("0.5", "0.6"))
    assert digest_of(USE, options, own, 0) != before
    with pytest.raises(LookupError, match="no taxi"):
        played(options, "cab", folder=own)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"id": "FrozenLaek-v1"},
            r"with\.id is \"FrozenLaek-v1\"; expected an environment that gymnasium can make \(Env",
        ),
        ({**LAKE, "options": {"icy": True}}, r"with\.options is .*; expected arguments of FrozenLake-v1 \(Froz"),
        ({**LAKE, "actions": ["left", "right"]}, r"with\.actions is .*; expected 4 different words, one an action"),
        ({**LAKE, "actions": ["a", "b", "c", "A"]}, r"expected 4 different words, one an action"),
        ({"id": "own_gym:Wide-v0"}, r"with\.id is .*; expected discrete or text actions; it has Box"),
        (
            {"id": "own_gym:Echo-v0", "actions": ["a"]},
            r"with\.actions is .*; expected none, since the actions are texts",
        ),
        ({}, r"with\.id"),
        ({"id": "broken_gym:Any-v0"}, r"can make \(ZeroDivisionError: division by zero at .*broken_gym\.py:1\)"),
        ({"id": "missing_gym:Any-v0"}, r"can make \(ModuleNotFoundError: No module named 'missing_gym'"),
    ],
)
def test_mistakes_are_named_with_their_path(own: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidManifest, match=said):
        made(*call_of(USE, options, own, 0))


def test_a_package_that_is_not_installed_is_named_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    made.cache_clear()
    with pytest.raises(
        InvalidManifest, match=r"environment\.use is \"gymnasium\"; expected a package that is installed"
    ):
        made(*call_of(USE, LAKE, None, 0))
