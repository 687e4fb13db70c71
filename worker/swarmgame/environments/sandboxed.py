"""Episodes in the sandbox: the side of the peer.

Every play begins anew, with all turns so far, so that the sandbox holds no state: one that dies loses nothing, a round
that is resumed repeats itself, and the check of another peer's transcript is the same call as our own play. An episode
of n turns therefore takes n (n + 1) / 2 steps; steps of games in words take microseconds.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from swarmgame.environments.play import call_of, described, made
from swarmgame.errors import InvalidManifest
from swarmgame.game.environment import Episodes, Play, Step
from swarmgame.game.remote_work import RemoteWork
from swarmgame.game.state import PeerId, Question
from swarmgame.sandbox.author_budgets import DEADLINES, AuthorBudgets
from swarmgame.sandbox.client import Budget, CallFailed, CallResult, Sandbox
from swarmgame.sandbox.requests import batches
from swarmgame.user_code import CodeError
from swarmgame_api.game import EnvironmentSpec

_log = logging.getLogger("swarmgame.environments")

_PLAY, _PREPARE = "swarmgame.environments.play:play", "swarmgame.environments.play:prepare"
_PATH = "spec.game.environment"
_OF_THE_EPISODE = frozenset({"exception", "forbidden", "program"})
"""Breaches that depend on question and turns alone. All others are of time, memory or processes."""
_NO_ROOM = "no room"
_NOT_ASKED = frozenset({"not run", "beyond budget", _NO_ROOM})
"""Breaches of plays that were not made, or whose result did not come."""
_REPEATS = 3
"""More requests for plays of our own that were not made."""
_MOST_WARNINGS = 16
"""Different failures of the environment that are logged; all of them are counted."""


class SandboxedEpisodes(Episodes):
    """Plays the environment that a manifest names.

    Args:
        use, options: from the manifest.
        folder: of the manifest. The constructor may read in it, once in this process and once in the sandbox; a play
            cannot.
        seed: of the game.
        deadline: most processor seconds of one play.
        memory: most bytes that a play may allocate.
        work: bounds the time for peers that nobody vouches for; None: they are as all others.

    Raises:
        InvalidManifest: the environment cannot be imported, configured or made in the sandbox.
        BadGame: its constructor failed; with the author's lines.
    """

    def __init__(
        self,
        use: str,
        options: Mapping[str, Any],
        *,
        max_turns: int,
        max_observation_tokens: int,
        folder: Path | None = None,
        seed: int = 0,
        deadline: float = 2.0,
        memory: int = 512 * 2**20,
        work: RemoteWork | None = None,
    ) -> None:
        self._call = call_of(use, options, folder, seed)
        environment = made(*self._call)
        super().__init__(max_turns=max_turns, max_observation_tokens=max_observation_tokens, role=environment.role)
        self._counts: Counter[str] = Counter()
        self._warned: set[str] = set()
        self._seconds = 0.0
        self._budgets = AuthorBudgets(DEADLINES * deadline, work)
        readable = [folder.absolute()] if folder is not None else []
        self._sandbox = Sandbox(deadline=deadline, memory=memory, readable=readable)
        try:
            self._sandbox.prepare(_PREPARE, *self._call)
        except CallFailed as error:
            self.close()
            expected = f"an environment that the sandbox can import, with files of the manifest's folder only ({error})"
            raise InvalidManifest(f"{_PATH}.use", use, expected) from error

    def begin_round(self, number: int) -> None:
        self._budgets.begin(number)

    def play(
        self, plays: Sequence[tuple[Question, Sequence[str]]], *, author: PeerId = "", waiting: int = 1
    ) -> Sequence[Play]:
        budget = self._budgets.allow(author, waiting) if author else None
        allowed, began = budget.seconds if budget is not None else 0.0, time.perf_counter()
        results = self._results(plays, budget)
        if budget is not None:
            self._budgets.spend(author, allowed - budget.seconds)
        else:
            self._repeat(plays, results)
        self._seconds += time.perf_counter() - began
        return [self._played(result, own=not author) for result in results]

    def take_seconds(self) -> float:
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def counters(self) -> Mapping[str, int]:
        """Return running totals for metrics: plays that failed, and plays of other peers that were not made."""
        return dict(self._counts)

    def close(self) -> None:
        """End the sandbox."""
        self._sandbox.close()

    def _results(self, plays: Sequence[tuple[Question, Sequence[str]]], budget: Budget | None) -> list[CallResult]:
        calls = [(*self._call, described(question), list(turns)) for question, turns in plays]
        requests = [self._sandbox.call_untrusted(_PLAY, batch, budget=budget, trial=True) for batch in batches(calls)]
        results = [result for found in requests for result in found]
        for at, result in enumerate(results):
            if result.breach == _NO_ROOM:  # alone it has room: the length of one result is bounded
                (results[at],) = self._sandbox.call_untrusted(_PLAY, [calls[at]], budget=budget, trial=True)
        return results

    def _repeat(self, plays: Sequence[tuple[Question, Sequence[str]]], results: list[CallResult]) -> None:
        """Make plays of our own that were not made, since others of their request took too long; in place."""
        for _ in range(_REPEATS):
            missing = [at for at, result in enumerate(results) if result.breach == "not run"]
            if not missing:
                return
            for at, result in zip(missing, self._results([plays[at] for at in missing], None), strict=True):
                results[at] = result

    def _played(self, result: CallResult, *, own: bool) -> Play:
        if result.breach:
            return self._failed(result, own=own)
        steps = tuple(Step(text, reward, done) for text, reward, done in result.value["steps"])
        return Play(steps, str(result.value["first"]))

    def _failed(self, result: CallResult, *, own: bool) -> Play:
        error = result.error or CodeError(result.breach, result.message)
        not_made = result.breach in _NOT_ASKED
        self._counts["environment_not_played" if not_made else "environment_failed"] += 1
        place = f"{error.kind} {error.where}"
        if own and not not_made and place not in self._warned and len(self._warned) < _MOST_WARNINGS:
            self._warned.add(place)
            _log.warning(
                "the environment %s failed: %s. Such rollouts are not scored (counted: environment_failed). Its step() "
                "must answer every text%s",
                self._call[0],
                error,
                f"\n{error.trace}" if error.trace else "",
            )
        return Play(failure=error, is_known=result.breach in _OF_THE_EPISODE)


def episodes_of(
    spec: EnvironmentSpec, folder: Path | None, seed: int, work: RemoteWork | None = None
) -> SandboxedEpisodes:
    """Return what plays the environment of a manifest.

    Args:
        folder: of the manifest.
        seed: of the game.

    Raises:
        InvalidManifest, BadGame: as `SandboxedEpisodes`.
    """
    return SandboxedEpisodes(
        spec.use,
        spec.with_,
        max_turns=spec.max_turns,
        max_observation_tokens=spec.max_observation_tokens,
        folder=folder,
        seed=seed,
        work=work,
    )
