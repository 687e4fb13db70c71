"""Tools in the sandbox: what a policy writes is calculated there, and a tool of an author fails with its line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarmgame import Question, QuestionRef, Step
from swarmgame.environments.sandboxed import SandboxedEpisodes
from swarmgame.errors import BadGame
from swarmgame.runtime.assembly import local_modules
from swarmgame.runtime.environment_trial import first_difference, tried_environment
from swarmgame_api.game import EnvironmentSpec

QUESTION = Question(QuestionRef("sums", "v1", 1, 2), "12*34=", "408")
TOOLBOX = "swarmgame.environments.toolbox:Toolbox"
CODE = """
from swarmgame import Config, Tool


class Dice(Tool):
    Config = Config
    parameters = {"sides": "how many"}

    def call(self, arguments):
        return str(int(arguments["sides"]) - 1)


class Silent(Dice):
    def call(self, arguments):
        return None


class Endless(Dice):
    def call(self, arguments):
        while True:
            pass


class Long(Dice):
    def call(self, arguments):
        return "é" * 3500


class NotMade(Dice):
    def __init__(self, config, context):
        raise LookupError("no dice")
"""


@pytest.fixture(scope="module", autouse=True)
def authors_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("author")
    (folder / "own_tools.py").write_text(CODE)
    (folder / "texts").mkdir()
    (folder / "texts" / "cities.txt").write_text("Bern is a city of Switzerland.\n\nLyon is a city of France.")
    with local_modules(folder):
        yield folder


def tools(*uses: str) -> dict[str, object]:
    return {"tools": [{"use": use, **({"with": {"folder": "texts"}} if "Search" in use else {})} for use in uses]}


def test_calls_are_answered_in_the_sandbox_the_same_in_two_plays(authors_folder: Path) -> None:
    options = tools(
        "swarmgame.environments.calculator:Calculator", "swarmgame.environments.search:Search", "own_tools:Dice"
    )
    episodes = SandboxedEpisodes(TOOLBOX, options, max_turns=4, max_observation_tokens=64, folder=authors_folder)
    turns = ["<calculator>12*34</calculator><search>france</search>", "<dice>6</dice>", "408"]
    hostile = ["<calculator>().__class__.__base__.__subclasses__()</calculator>"]
    try:
        played, refused = episodes.play([(QUESTION, turns), (QUESTION, hostile)])
        assert first_difference(episodes, [QUESTION]) == ""
        assert episodes.counters() == {}
    finally:
        episodes.close()
    assert played.failure is None
    assert played.steps == (
        Step("408\ncities.txt: Lyon is a city of France.", None, False),
        Step("5", None, False),
        Step("", None, True),
    )
    assert refused.steps == (Step("error: not calculated: a Attribute", None, False),)


@pytest.mark.parametrize("author", ["", "peer"])
def test_plays_whose_results_do_not_fit_one_answer_are_asked_again_alone(authors_folder: Path, author: str) -> None:
    """Each has 4 turns of 16 results of 3,500 characters, 1.3 MB as they are sent; an answer has 64 MiB."""
    options = {**tools("own_tools:Long"), "maxCalls": 16, "maxResult": 3500}
    episodes = SandboxedEpisodes(TOOLBOX, options, max_turns=4, max_observation_tokens=64)
    try:
        episodes.begin_round(0)
        plays = episodes.play([(QUESTION, ["<long>1</long>" * 16] * 4)] * 56, author=author)
        counts = episodes.counters()
    finally:
        episodes.close()
    assert {len(play.steps) for play in plays} == {4}
    assert [play.failure for play in plays] == [None] * 56
    assert counts == {}


@pytest.mark.parametrize(
    ("name", "turn", "said"),
    [
        ("Dice", "<dice>many</dice>", r"ValueError: invalid literal .* at .*own_tools\.py:10"),
        ("Silent", "<silent>6</silent>", r"BadStep: the tool silent returned None; expected a text"),
        ("Endless", "<endless>6</endless>", r"timeout"),
    ],
)
def test_a_tool_that_raises_hangs_or_returns_no_text_is_named_and_counted(
    authors_folder: Path, name: str, turn: str, said: str
) -> None:
    options = tools(f"own_tools:{name}")
    episodes = SandboxedEpisodes(TOOLBOX, options, max_turns=4, max_observation_tokens=64, deadline=0.5)
    try:
        failed, answered = episodes.play([(QUESTION, [turn]), (QUESTION, ["408"])])
        counts = episodes.counters()
    finally:
        episodes.close()
    assert failed.failure is not None
    assert re.search(said, str(failed.failure))
    assert answered.steps == (Step("", None, True),)
    assert counts == {"environment_failed": 1}


def test_a_tool_that_cannot_be_made_is_found_before_the_game_starts(authors_folder: Path) -> None:
    spec = EnvironmentSpec.model_validate({"use": TOOLBOX, "with": tools("own_tools:NotMade")})
    with (
        pytest.raises(BadGame, match=r"own_tools:NotMade failed in its constructor: LookupError: no dice at .*:\d+"),
        tried_environment(spec, authors_folder, QUESTION, shares=True),
    ):
        pass
