"""Environments of authors in the sandbox: what they may do to a game, and what is said about their mistakes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarmgame import Question, QuestionRef, Step
from swarmgame.environments.sandboxed import SandboxedEpisodes
from swarmgame.errors import BadGame
from swarmgame.runtime.assembly import local_modules
from swarmgame.runtime.environment_trial import first_difference, tried_environment
from swarmgame_api.errors import InvalidManifest
from swarmgame_api.game import EnvironmentSpec

QUESTION = Question(QuestionRef("numbers", "v1", 1, 2), "which number?", "7")
CODE = """
import random
from swarmgame import Config, Environment, Episode, Step


class Base(Environment):
    Config = Config

    def start(self, question):
        return type(self).episode()


class Good(Base):
    class episode(Episode):
        def first(self):
            return "begin"

        def step(self, action):
            return Step("again", 0.5, done=action == "7")


class Raises(Base):
    class episode(Episode):
        def step(self, action):
            return Step("again" if action.isdigit() else action[0])


class Hangs(Base):
    class episode(Episode):
        def step(self, action):
            while action == "hang":
                pass
            return Step("again")


class NoText(Base):
    class episode(Episode):
        def step(self, action):
            return Step(len(action))


class FailsAtStart(Base):
    def start(self, question):
        raise LookupError("no such level")


class Random(Base):
    numbers = random.Random()

    class episode(Episode):
        def step(self, action):
            return Step(str(random.Random().random()))


class KeepsState(Base):
    plays = 0

    def start(self, question):
        self.plays += 1
        plays = self.plays

        class Counting(Episode):
            def step(self, action):
                return Step(f"play {plays}")

        return Counting()


class Opens(Base):
    class episode(Episode):
        def step(self, action):
            return Step(open("/etc/passwd").read())


class Reads(Base):
    def __init__(self, config, context):
        super().__init__(config, context)
        self.words = (context.folder / "words.txt").read_text()

    def start(self, question):
        return Words(f"{self.words} {self.context.seed}")


class Words(Episode):
    def __init__(self, words):
        self.words = words

    def step(self, action):
        return Step(self.words, done=True)
"""


@pytest.fixture(scope="module", autouse=True)
def authors_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("author")
    (folder / "answers_back.py").write_text(CODE)
    with local_modules(folder):
        yield folder


def spec(name: str) -> EnvironmentSpec:
    return EnvironmentSpec.model_validate({"use": f"answers_back:{name}", "maxTurns": 3})


def tried(name: str, *, shares: bool = True, folder: Path | None = None) -> list[str]:
    with tried_environment(spec(name), folder, QUESTION, shares=shares, seed=3) as (_, warnings):
        return list(warnings)


@pytest.fixture(scope="module")
def mixed() -> Iterator[SandboxedEpisodes]:
    """Its deadline is long enough that an honest play reaches neither it nor the wall time of it on a busy machine."""
    episodes = SandboxedEpisodes("answers_back:Hangs", {}, max_turns=3, max_observation_tokens=64, deadline=1.0)
    yield episodes
    episodes.close()


def test_plays_that_fail_are_counted_named_once_and_leave_the_others(caplog: pytest.LogCaptureFixture) -> None:
    episodes = SandboxedEpisodes("answers_back:Raises", {}, max_turns=3, max_observation_tokens=64)
    with caplog.at_level(logging.WARNING, "swarmgame.environments"):
        plays = episodes.play([(QUESTION, turns) for turns in (["1"], [""], ["1", ""], ["a"])])
    counts = episodes.counters()
    seconds = episodes.take_seconds()
    episodes.close()
    assert [play.failure is None for play in plays] == [True, False, False, True]
    assert [step.observation for step in plays[0].steps] == ["again"]
    assert plays[1].failure is not None
    assert plays[1].failure.kind == "IndexError"
    assert plays[1].failure.where.endswith("answers_back.py:25")
    assert all(play.is_known for play in plays)
    assert counts == {"environment_failed": 2}
    assert seconds > 0
    (record,) = caplog.records
    assert "the environment answers_back:Raises failed: IndexError: string index out of range at" in record.message


def test_a_play_that_hangs_says_nothing_and_spends_the_time_of_its_author(mixed: SandboxedEpisodes) -> None:
    mixed.begin_round(0)
    hanging = [(QUESTION, ["hang"])]
    (play,) = mixed.play(hanging)
    assert play.failure is not None
    assert play.failure.kind == "timeout"
    assert not play.is_known
    kinds: list[str] = []
    while "beyond budget" not in kinds:
        assert len(kinds) < 100, kinds
        (play,) = mixed.play(hanging, author="mallory")
        assert play.failure is not None
        kinds.append(play.failure.kind)
    assert set(kinds[:-1]) == {"timeout"}
    (honest,) = mixed.play([(QUESTION, ["1"])], author="bob")
    assert honest.failure is None
    mixed.begin_round(1)
    (again,) = mixed.play([(QUESTION, ["1"])], author="mallory")
    assert again.failure is None
    assert mixed.counters()["environment_not_played"] > 0


def test_turns_that_hang_cost_our_other_episodes_nothing(mixed: SandboxedEpisodes) -> None:
    plays = mixed.play([(QUESTION, ["hang"])] * 5 + [(QUESTION, ["1"])] * 3)
    assert [play.failure is None for play in plays] == [False] * 5 + [True] * 3


def test_a_good_environment_is_tried_without_a_word() -> None:
    assert tried("Good") == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("FailsAtStart", r"failed \(LookupError: no such level at .*answers_back.py:44\) before the first turn"),
        ("NoText", r"step\(\) returned 1; expected a text.* at the right answer of a question"),
        ("Random", r"the environment is not deterministic: at question 'which number\?', step\('7'\) returns"),
        ("KeepsState", r"keep no state outside of the episode that start\(\) returns"),
        ("Opens", r"failed \(.*\) at the right answer of a question \('7'\)"),
    ],
)
def test_an_environment_that_no_game_can_use_is_found_before_it_starts(name: str, said: str) -> None:
    with pytest.raises(BadGame, match=said):
        tried(name)


def test_what_a_constructor_reads_beside_the_manifest_is_there_in_each_play(authors_folder: Path) -> None:
    with pytest.raises(BadGame, match=r"Reads failed in its constructor: FileNotFoundError.* at .*answers_back.py:\d+"):
        tried("Reads", folder=authors_folder)
    (authors_folder / "words.txt").write_text("a word")
    environment = spec("Reads")
    with tried_environment(environment, authors_folder, QUESTION, shares=True, seed=3) as (episodes, warnings):
        assert warnings == []
        assert episodes is not None
        (play,) = episodes.play([(QUESTION, ["turn"])])
    assert play.steps == (Step("a word 3", None, True),)


def test_turns_that_the_game_may_never_have_cause_a_warning() -> None:
    (warning,) = tried("Raises")
    assert "answers_back:Raises failed (IndexError: string index out of range" in warning
    assert warning.endswith("such rollouts are not scored")


def test_where_nothing_is_shared_an_environment_may_differ_with_a_warning() -> None:
    (warning,) = tried("Random", shares=False)
    assert "is not deterministic" in warning


def test_both_plays_of_a_check_are_compared_question_by_question() -> None:
    other = Question(QuestionRef("numbers", "v1", 1, 3), "another?", "8")
    episodes = SandboxedEpisodes("answers_back:Good", {}, max_turns=3, max_observation_tokens=64)
    assert first_difference(episodes, [QUESTION, other]) == ""
    episodes.close()
    episodes = SandboxedEpisodes("answers_back:KeepsState", {}, max_turns=3, max_observation_tokens=64)
    assert "at question 'which number?'" in first_difference(episodes, [QUESTION, other])
    episodes.close()


@pytest.mark.parametrize(
    ("use", "said"),
    [
        ("answers_back:Missing", "a class that answers_back has; it has Base, .*Good"),
        ("number-gessing", "one of .*number-guessing"),
        ("swarmgame.rewards.exact:ExactRewards", "a subclass of swarmgame.Environment"),
    ],
)
def test_a_wrong_name_is_named_with_its_path(use: str, said: str) -> None:
    with pytest.raises(InvalidManifest, match=said) as raised:
        SandboxedEpisodes(use, {}, max_turns=3, max_observation_tokens=64)
    assert raised.value.problems[0].path == "spec.game.environment.use"
