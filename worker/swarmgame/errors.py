"""Errors and their exit codes.

Three families: errors that the user can correct (`BadUsage`, `InvalidManifest`, `BadGame`, `BadData`), errors that may
pass (`Temporary`), and refusals by the swarm or the chain (`Refused`). Any other exception is a bug, and keeps its
traceback. Only `swarmgame.cli.main` turns errors into exit codes. Invariant: an exit code never changes its meaning,
since a Job's podFailurePolicy reads it.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
    "free_space",
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
    errno.ENOSPC: "no space is left on the device{free}; free some, and run again: a run goes on from its last "
    "checkpoint",
    errno.EDQUOT: "the disk quota is used up{free}; free some space, and run again: a run goes on from its last "
    "checkpoint",
    errno.EROFS: "the file system is read-only; make it writable, or choose another folder",
    errno.EACCES: "permission denied; change the permissions, or choose another folder",
    errno.EPERM: "the operation is not permitted; change the permissions, or choose another folder",
}
_WHILE_WRITING = {
    **_NOT_WRITABLE,
    errno.EIO: "the disk reports an error{free}; check it, and choose another one",
    errno.ESTALE: "the network file system has lost the folder; mount it again, and run again",
    errno.EFBIG: "the file would be larger than a limit of the process or the file system (ulimit -f); raise it",
    errno.EBUSY: "a disk is mounted there; choose a folder inside it",
    errno.EXDEV: "a disk is mounted there; choose a folder inside it",
    errno.ENOENT: "a folder of its path does not exist and cannot be made; choose another folder",
    errno.ENOTDIR: "a part of its path is a file; choose another folder",
    errno.EISDIR: "it is a folder; choose another name",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ELOOP: "its path has links that lead in a circle; choose another folder",
}
"""Errors that mean this only in a block that writes: elsewhere reading may cause them."""


def not_writable(error: BaseException) -> NotWritable | None:
    """Return an error of a file system that is full or read-only as a sentence; None for every other error."""
    reason = _NOT_WRITABLE.get(_error_number(error))
    if reason is None:
        return None
    name = getattr(error, "filename", None)
    free = free_space(Path(name)) if isinstance(name, str) else ""
    return NotWritable(f"{name or 'a file'} cannot be written: {reason.format(free=free)}")


def free_space(path: Path) -> str:
    """Return how much space is free where a path is or would be, in brackets after a space; empty if not known."""
    for folder in (path, *path.absolute().parents):
        with suppress(OSError):
            usage = shutil.disk_usage(folder)
            return f" ({_size(usage.free)} of {_size(usage.total)} are free)"
    return ""


def _size(count: float) -> str:
    units = ("bytes", "KiB", "MiB", "GiB", "TiB")
    power = next((power for power in range(len(units) - 1) if count < 1024 ** (power + 1)), len(units) - 1)
    return f"{count / 1024**power:.{1 if power else 0}f} {units[power]}"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file or folder in errors of a block that writes it. Errors of safetensors count, which are no OSError.

    Raises:
        NotWritable: the disk is full, or the path cannot be written.
    """
    try:
        yield
    except Exception as error:
        reason = _WHILE_WRITING.get(_error_number(error))
        if reason is None:
            raise
        raise NotWritable(f"{path} cannot be written: {reason.format(free=free_space(path))}") from error


def _error_number(error: BaseException) -> int:
    """Return the number of the operating system's error; 0 without one."""
    if isinstance(error, OSError):
        return error.errno or 0
    found = re.search(r"\(os error (\d+)\)", str(error)) if type(error).__name__ == "SafetensorError" else None
    return int(found.group(1)) if found else 0
