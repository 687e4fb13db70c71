"""A trial of a game's environment before anything starts: a few episodes of one question, each played twice.

An environment that raises, hangs, returns no text or differs between two plays is named with the author's lines, as
data and rewards are (`trial`). The plays run where the game has them, in the sandbox, in another order the second time:
an environment that keeps state between episodes differs then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from swarmgame.environments.play import digest_of
from swarmgame.environments.sandboxed import episodes_of
from swarmgame.errors import BadGame
from swarmgame.game.environment import Episodes, Play
from swarmgame.game.state import Question
from swarmgame.user_code import printable
from swarmgame_api.game import EnvironmentSpec

_WORDS = "0", "I do not know.", "<answer>1</answer>"
"""Turns beside the right answer and an empty one."""
_SHOWN = 60


@contextmanager
def tried_environment(
    spec: EnvironmentSpec | None, folder: Path | None, question: Question | None, *, shares: bool, seed: int = 0
) -> Iterator[tuple[Episodes | None, Sequence[str]]]:
    """Play episodes of a question; the value is the environment, which ends with the block, and warnings as sentences.

    Args:
        spec: None: the game has no environment.
        folder: of the manifest.
        question: None: the game asks none, and nothing is played.
        shares: peers train on each other's rollouts, so that an environment that differs between two plays is an error.
        seed: of the game.

    Raises:
        InvalidManifest: the environment cannot be imported or configured.
        BadGame: its constructor or `content_digest` failed, it failed before the first turn or at the right answer, or
            it differs; with the author's lines.
    """
    if spec is None:
        yield None, ()
        return
    episodes = episodes_of(spec, folder, seed)
    try:
        digest_of(spec.use, spec.with_, folder, seed)
        yield episodes, _try(episodes, spec, question, shares=shares) if question is not None else ()
    finally:
        episodes.close()


def _try(episodes: Episodes, spec: EnvironmentSpec, question: Question, *, shares: bool) -> list[str]:
    trials = [(), *_trials(question, spec.max_turns)]
    plays = episodes.play([(question, turns) for turns in trials])
    if plays[0].failure is not None:
        raise BadGame(f"{_failed(spec, plays[0])} before the first turn, at question {_quoted(question.text)}")
    if question.answer and plays[1].failure is not None:
        raise BadGame(f"{_failed(spec, plays[1])} at the right answer of a question ({_quoted(question.answer)})")
    different = _difference([(question, turns) for turns in trials], plays, episodes)
    if different and shares:
        raise BadGame(different)
    found = [different] if different else []
    for turns, play in zip(trials, plays, strict=True):
        if play.failure is not None:
            shown = ", ".join(map(_quoted, turns))
            return [*found, f"{_failed(spec, play)} at the turns {shown}: such rollouts are not scored"]
    return found


def first_difference(episodes: Episodes, questions: Sequence[Question]) -> str:
    """Play episodes of these questions twice, and return the first difference as sentences; empty: there is none."""
    plays = [(question, turns) for question in questions for turns in _trials(question, episodes.max_turns)]
    return _difference(plays, episodes.play(plays), episodes)


def _difference(plays: Sequence[tuple[Question, Sequence[str]]], first: Sequence[Play], episodes: Episodes) -> str:
    """Compare plays with second ones, made in the reverse order."""
    second = episodes.play(plays[::-1])[::-1]
    for (question, turns), before, after in zip(plays, first, second, strict=True):
        if before.is_known and after.is_known and _comparable(before) != _comparable(after):
            return (
                f"the environment is not deterministic: at question {_quoted(question.text)}, "
                f"{_where(before, after, turns)}. Other peers play each transcript again, and drop what differs. Take "
                "no clock, no random without a seed, and keep no state outside of the episode that start() returns"
            )
    return ""


def _trials(question: Question, max_turns: int) -> list[tuple[str, ...]]:
    """Return the turns of some episodes: first the right answer."""
    words = (question.answer or _WORDS[0], "", *_WORDS)
    return [(words[0],), *[(word,) * min(3, max_turns) for word in words[1:]], words[::-1][:max_turns]]


def _comparable(play: Play) -> tuple[object, ...]:
    return play.first, play.steps, None if play.failure is None else play.failure.kind


def _where(before: Play, after: Play, turns: Sequence[str]) -> str:
    if before.first != after.first:
        return f"first() returns {_quoted(before.first)} in one play and {_quoted(after.first)} in another"
    for turn, old, new in zip(turns, before.steps, after.steps, strict=False):
        if old != new:
            return f"step({_quoted(turn)}) returns {_step(*old)} in one play and {_step(*new)} in another"
    return "one play goes on longer than another with the same turns, or fails"


def _step(observation: str, reward: float | None, done: bool) -> str:
    return f"({_quoted(observation)}, {reward}, {done})"


def _failed(spec: EnvironmentSpec, play: Play) -> str:
    return f"the environment {spec.use} failed ({play.failure})"


def _quoted(text: str) -> str:
    return printable(repr(text), _SHOWN)
