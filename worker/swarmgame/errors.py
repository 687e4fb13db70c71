"""Errors and their exit codes.

Three families: errors that the user can correct (`BadUsage`, `InvalidManifest`, `BadGame`, `BadData`), errors that may
pass (`Temporary`), and refusals by the swarm or the chain (`Refused`). Any other exception is a bug, and keeps its
traceback. Only `swarmgame.cli.main` turns errors into exit codes. Invariant: an exit code never changes its meaning,
since a Job's podFailurePolicy reads it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path

from swarmgame_api.errors import InvalidManifest

__all__ = [
    "BadData",
    "BadGame",
    "BadUsage",
    "ExitCode",
    "InvalidManifest",
    "NotWritable",
    "Refused",
    "SwarmGameError",
    "Temporary",
    "exit_code_of",
    "not_writable",
    "writing",
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
    """The same command may work later: a peer is away, a rank died, a port is taken, a disk is full."""

    exit_code = ExitCode.TEMPORARY


class NotWritable(Temporary):
    """A file cannot be written: the disk is full, or the folder is read-only. A restart does not help by itself."""


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


_NOT_WRITABLE = {
    errno.ENOSPC: "no space is left on the device; free some, and run again: a run goes on from its last checkpoint",
    errno.EDQUOT: "the disk quota is used up; free some space, and run again: a run goes on from its last checkpoint",
    errno.EROFS: "the file system is read-only; make it writable, or choose another folder",
    errno.EACCES: "permission denied; change the permissions, or choose another folder",
    errno.EPERM: "the operation is not permitted; change the permissions, or choose another folder",
}


def not_writable(error: BaseException, path: Path | str = "") -> NotWritable | None:
    """Return an error of a file system that is full or read-only as a sentence; None for every other error.

    Args:
        path: the file, where the error does not name it.
    """
    if not isinstance(error, OSError) or error.errno not in _NOT_WRITABLE:
        return None
    return NotWritable(f"{error.filename or path or 'a file'} cannot be written: {_NOT_WRITABLE[error.errno]}")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file in errors of a block that writes it.

    Raises:
        NotWritable: the disk is full, or the folder is read-only.
    """
    try:
        yield
    except OSError as error:
        known = not_writable(error, path)
        if known is None:
            raise
        raise known from error
