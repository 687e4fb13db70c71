"""What an environment may return, and what is said where it returns something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from swarmgame import Config, Question, QuestionRef
from swarmgame.environments.number_guessing import NumberGuessing, NumberGuessingConfig
from swarmgame.environments.play import BadStep, call_of, described, digest_of, made, play, question_from
from swarmgame.errors import BadGame
from swarmgame.game.components import ComponentContext
from swarmgame.game.environment import Environment, Episode, Step

QUESTION = Question(QuestionRef("numbers", "v1", 3, 4), "guess", "5", {"odd": 1})
RETURNED: Any = None
FIRST: Any = ""


class Returning(Environment):
    """Returns what a test has set."""

    Config = Config

    def start(self, question: Question) -> Episode:
        return _Returning()


class Reading(Returning):
    """Reads a file beside the manifest when it is made."""

    def __init__(self, config: Any, context: ComponentContext) -> None:
        super().__init__(config, context)
        assert context.folder is not None
        self.words = (context.folder / "words.txt").read_text()

    def content_digest(self) -> str:
        return [self.words][len(self.words) // 8]


class _Returning(Episode):
    def first(self) -> str:
        return FIRST  # type: ignore[no-any-return]

    def step(self, action: str) -> Step:
        return RETURNED  # type: ignore[no-any-return]


def returned(monkeypatch: pytest.MonkeyPatch, value: Any, first: Any = "") -> dict[str, Any]:
    monkeypatch.setitem(globals(), "RETURNED", value)
    monkeypatch.setitem(globals(), "FIRST", first)
    return play(f"{__name__}:Returning", "{}", "", 0, described(QUESTION), ["turn"])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("larger", r"step\(\) returned .*; expected swarmgame.Step"),
        (None, r"step\(\) returned None"),
        (Step(3), r"step\(\) returned 3; expected a text"),  # type: ignore[arg-type]
        (Step(""), "no observation; expected a text, or done=True"),
        (Step("a", float("nan")), "expected a finite number or None"),
        (Step("a", "much"), "expected a finite number or None"),  # type: ignore[arg-type]
        (Step("a", 0.5, 1), "expected True or False"),  # type: ignore[arg-type]
        (Step("a" * 65_537), "returned 65537 characters; expected at most 65536"),
    ],
)
def test_anything_but_a_step_of_a_text_a_number_and_a_truth_value_is_refused(
    monkeypatch: pytest.MonkeyPatch, value: Any, said: str
) -> None:
    with pytest.raises(BadStep, match=said):
        returned(monkeypatch, value)


def test_the_first_observation_must_be_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadStep, match=r"first\(\) returned .*; expected a text"):
        returned(monkeypatch, Step("a"), first=None)


def test_a_text_is_played_as_it_arrives_at_other_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert returned(monkeypatch, Step("a\ud800b", True)) == {"first": "", "steps": [["a?b", 1.0, False]]}


def test_an_episode_ends_where_it_is_done() -> None:
    found = play(
        "swarmgame.environments.number_guessing:NumberGuessing", "{}", "", 0, described(QUESTION), ["3", "5", "9"]
    )
    assert found["steps"] == [["larger", None, False], ["Right.", pytest.approx(0.9), True]]


def test_guesses_are_read_from_texts_and_cost_reward() -> None:
    environment = NumberGuessing(NumberGuessingConfig(per_turn=0.4), ComponentContext())
    episode = environment.start(QUESTION)
    answers = [episode.step(text) for text in ("I say 12", "no number", "-3", "it is 5.")]
    assert answers == [Step("smaller"), Step("A number, please."), Step("larger"), Step("Right.", 0.0, done=True)]


def test_a_question_comes_back_with_what_json_can_hold() -> None:
    odd = Question(QUESTION.reference, "q", "a", {"plain": [1, "b"], "object": {1, 2}.__class__})
    back = question_from(json.loads(json.dumps(described(odd))))
    assert (back.reference, back.text, back.answer, back.metadata["plain"]) == (odd.reference, "q", "a", [1, "b"])
    assert back.metadata["object"] == "<class 'set'>"


def test_the_constructor_gets_the_manifests_folder_and_the_games_seed(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("seven")
    environment = made(*call_of(f"{__name__}:Reading", {}, tmp_path, 7))
    assert (environment.context.folder, environment.context.seed) == (tmp_path, 7)
    assert digest_of(f"{__name__}:Reading", {}, tmp_path, 7) == "seven"


def test_a_constructor_and_a_digest_that_fail_are_named_with_their_lines(tmp_path: Path) -> None:
    with pytest.raises(BadGame, match=r"Reading failed in its constructor: FileNotFoundError: .*test_play\.py:\d+"):
        made(*call_of(f"{__name__}:Reading", {}, tmp_path, 1))
    (tmp_path / "words.txt").write_text("a longer text")
    with pytest.raises(BadGame, match=r"Reading failed in content_digest: IndexError: .*test_play\.py:\d+"):
        digest_of(f"{__name__}:Reading", {}, tmp_path, 1)
