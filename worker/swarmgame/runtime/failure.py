"""The error that ended a peer, as a value: its class, its text, its line, and whether the game's own code raised it.

`run_peer` wraps an exception that no rule foresees in a `PeerFailure`; the record of the exit and the runner show its
sentence. The game's own code is every file that is neither this project's nor Python's nor an installed library's,
and every module of the packages that the manifest names.
"""

from __future__ import annotations

import importlib.util
import sysconfig
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import FrameType
from typing import Any, Self

from swarmgame.user_code import describe, short_path
from swarmgame_api.manifest import SwarmGame

PROJECT = ("swarmgame", "swarmgame_api", "swarmgame_chain", "swarmgame_common")


@dataclass(frozen=True)
class Failure:
    """An exception that ended a peer.

    Args:
        kind: name of its class.
        message: its text, at most 500 characters.
        where: `file:line`: the last line of the game's own code, or else the line that raised it.
        function: the function of that line.
        round: the round in progress; -1 before the first.
        of_game: whether the game's own code is in the traceback.
    """

    kind: str
    message: str
    where: str = ""
    function: str = ""
    round: int = -1
    of_game: bool = False

    def __str__(self) -> str:
        when = f"in round {self.round}" if self.round >= 0 else "before the first round"
        text = f"{self.kind}: {self.message}" if self.message else self.kind
        at = f" at {short_path(self.where)}, in {self.function}" if self.where else ""
        return f"{text}{at} ({when})"

    def is_same(self, other: Failure) -> bool:
        """Return whether both are the same exception at the same line in the same round. Texts may differ: some hold an
        address or a time.
        """
        return (self.kind, self.where, self.round) == (other.kind, other.where, other.round)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_json(cls, found: object) -> Self | None:
        """Return what `as_json` wrote; None for anything else."""
        if not isinstance(found, Mapping):
            return None
        try:
            return cls(**{field.name: found[field.name] for field in fields(cls)})
        except KeyError:
            return None


class PeerFailure(Exception):
    """A peer ended by an exception that no rule foresees: a bug of the game's code or of this project."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure))
        self.failure = failure


def failure_of(error: BaseException, *, round: int = -1, packages: Iterable[str] = ()) -> Failure:
    """Return an exception as a value; never raises, although its `__str__` may.

    Args:
        packages: names of top-level packages that count as the game's own, wherever they are installed.
    """
    described = describe(error)
    own = frozenset(packages)
    if isinstance(error, SyntaxError) and error.filename:
        of_game = _is_own_file(error.filename)
        return Failure(described.kind, described.message, described.where, round=round, of_game=of_game)
    frames = list(traceback.walk_tb(error.__traceback__))
    game_frames = [(frame, line) for frame, line in frames if _is_of_game(frame, own)]
    shown = game_frames or frames
    if not shown:
        return Failure(described.kind, described.message, round=round)
    frame, line = shown[-1]
    where = f"{frame.f_code.co_filename}:{line}"
    return Failure(
        described.kind, described.message, where, frame.f_code.co_name, round=round, of_game=bool(game_frames)
    )


def packages_of(manifest: SwarmGame) -> frozenset[str]:
    """Return the top-level packages of the components that a manifest names by `module:Class`."""
    game = manifest.spec.game
    named = (component.use for component in (game.data, game.rewards, game.trainer))
    return frozenset(use.partition(":")[0].partition(".")[0] for use in named if ":" in use) - {*PROJECT}


def _is_of_game(frame: FrameType, packages: frozenset[str]) -> bool:
    package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return package in packages or _is_own_file(frame.f_code.co_filename)


def _is_own_file(name: str) -> bool:
    return not name.startswith(("<", *_NOT_OF_GAME))


def _folders_not_of_game() -> tuple[str, ...]:
    """Return the folders of this project's packages, of Python, and of installed libraries."""
    found = (importlib.util.find_spec(name) for name in PROJECT)
    packages = [Path(spec.origin).resolve().parent for spec in found if spec is not None and spec.origin]
    libraries = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return tuple(sorted({f"{folder}/" for folder in (*packages, *libraries)}))


_NOT_OF_GAME = _folders_not_of_game()
