"""Errors and their exit codes.

Three families: errors that the user can correct (`BadUsage`, `InvalidManifest`, `BadGame`, `BadData`), errors that may
pass (`Temporary`), and refusals by the swarm or the chain (`Refused`). Any other exception is a bug, and keeps its
traceback. Only `swarmgame.cli.main` turns errors into exit codes. Invariant: an exit code never changes its meaning,
since a Job's podFailurePolicy reads it.
"""

from __future__ import annotations

from enum import IntEnum

from swarmgame_api.errors import InvalidManifest

__all__ = [
    "BadData",
    "BadGame",
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
    """An error with a message for the user: what is wrong, where, and what to do."""

    exit_code = ExitCode.INTERNAL


class BadUsage(SwarmGameError):
    """The command line is wrong."""

    exit_code = ExitCode.BAD_USAGE


class BadData(SwarmGameError):
    """An input file (a checkpoint, a dataset) cannot be used."""

    exit_code = ExitCode.BAD_DATA


class BadGame(SwarmGameError):
    """The code that the manifest names (a reward function, a manager) cannot be used: it fails, or returns values that
    it must not return.
    """

    exit_code = ExitCode.BAD_CONFIG


class Temporary(SwarmGameError):
    """The same command may work later: a peer is away, a rank died, a port is taken."""

    exit_code = ExitCode.TEMPORARY


class Refused(SwarmGameError):
    """The swarm or the chain refuses this peer."""

    exit_code = ExitCode.REFUSED


def exit_code_of(error: BaseException) -> ExitCode:
    """Return the exit code of an exception."""
    if isinstance(error, InvalidManifest):
        return ExitCode.BAD_CONFIG
    if isinstance(error, SwarmGameError):
        return error.exit_code
    return ExitCode.INTERNAL
