"""Errors, by who can mend them, and the exit code that each becomes.

Three families: what the user can mend (`BadUsage`, `InvalidManifest`, `BadData`), what may pass by itself
(`Temporary`), and what somebody else refused (`Refused`). Anything else that escapes is our fault, and keeps its
traceback. Only `swarmgame.cli.main` turns one into an exit code. Invariant: the codes are an interface (a Job's
podFailurePolicy reads them) and never change meaning.
"""

from __future__ import annotations

from enum import IntEnum

from swarmgame_api.errors import InvalidManifest

__all__ = [
    "BadData",
    "BadUsage",
    "ExitCode",
    "InvalidManifest",
    "Refused",
    "SwarmGameError",
    "Temporary",
    "exit_code_of",
]


class ExitCode(IntEnum):
    """Exit codes of every `swarmgame` command; the values of sysexits.h where it has one."""

    DONE = 0
    INTERNAL = 1
    BAD_USAGE = 64
    BAD_DATA = 65
    TEMPORARY = 75
    REFUSED = 77
    BAD_CONFIG = 78
    STOPPED = 143


class SwarmGameError(Exception):
    """An error with a message for a person: what was wrong, where, what to do."""

    exit_code = ExitCode.INTERNAL


class BadUsage(SwarmGameError):
    """The command line makes no sense."""

    exit_code = ExitCode.BAD_USAGE


class BadData(SwarmGameError):
    """A file that we were given (a checkpoint, a dataset) cannot be used."""

    exit_code = ExitCode.BAD_DATA


class Temporary(SwarmGameError):
    """It may work if tried again later: a peer is away, a rank died, a port is taken."""

    exit_code = ExitCode.TEMPORARY


class Refused(SwarmGameError):
    """The swarm or the chain does not let us in."""

    exit_code = ExitCode.REFUSED


def exit_code_of(error: BaseException) -> ExitCode:
    """The exit code that stands for an exception."""
    if isinstance(error, InvalidManifest):
        return ExitCode.BAD_CONFIG
    if isinstance(error, SwarmGameError):
        return error.exit_code
    return ExitCode.INTERNAL
