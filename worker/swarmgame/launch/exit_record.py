"""How a peer's process ended, as it records it itself in `exit.json`.

    {"code": 1, "message": "ValueError: … at game.py:7, in rewards (in round 2)", "restart": true,
     "failure": {"kind": "ValueError", "message": "…", "where": "/…/game.py:7", "round": 2, …}, "log": "/…/output.log"}

The runner and the pod read the record, because torchrun, where a peer has several ranks, ends with 1 however its ranks
ended. Of several ranks the first record counts. The record of the process before is kept: an exception of the game's
own code that comes again at the same line in the same round is the author's to correct (78), and no restart helps.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swarmgame.errors import BadGame, ExitCode, NotWritable, exit_code_of, free_space, writing
from swarmgame.observability.run_directory import PeerDirectory
from swarmgame.runtime.failure import Failure, PeerFailure, failure_of

LAST_LINES = 15
FULL_BYTES = 64 << 10
"""With less free space than this a process that left no record is taken to have ended for want of space."""


@dataclass(frozen=True)
class ExitRecord:
    """What a peer recorded of its end.

    Args:
        code: its exit code; None where it left no record.
        message: why, as one or more sentences; empty without a record.
        restart: whether a restart may help.
        failure: the exception, where no rule foresaw it.
    """

    code: int | None = None
    message: str = ""
    restart: bool = True
    failure: Failure | None = None


@contextmanager
def recording_exit(directory: PeerDirectory) -> Iterator[Callable[[ExitCode], None]]:
    """Record how the block ends: the error that leaves it, or the exit code with which the yielded function is called.

    Raises:
        BadGame: instead of an exception of the game's own code that the process before ended with too.
    """
    with writing(directory.root):
        directory.root.mkdir(parents=True, exist_ok=True)
        if os.environ.get("LOCAL_RANK", "0") == "0":
            keep_previous(directory)

    def record(code: ExitCode, message: str = "", failure: Failure | None = None, *, restart: bool = True) -> None:
        log = directory.output if directory.output.exists() else directory.log
        found = {
            "code": int(code),
            "message": message,
            "restart": restart,
            "failure": None if failure is None else failure.as_json(),
            "log": str(log.absolute()),
        }
        try:
            with directory.exit.open("x", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
        except OSError:
            # Another rank was first, or the disk is full, which the runner finds itself. The error that is being
            # recorded must not be lost.
            return

    def recorded(code: ExitCode) -> None:
        if code is ExitCode.DONE:
            with writing(directory.previous_exit):
                directory.previous_exit.unlink(missing_ok=True)
        else:
            record(code)

    try:
        yield recorded
    except KeyboardInterrupt:
        record(ExitCode.STOPPED)
        raise
    except BaseException as error:
        code = exit_code_of(error)
        if code is not ExitCode.INTERNAL:
            record(code, str(error), restart=not isinstance(error, NotWritable))
            raise
        failure = error.failure if isinstance(error, PeerFailure) else failure_of(error)
        before = _read(directory.previous_exit).failure
        if failure.of_game and before is not None and before.is_same(failure):
            repeated = BadGame(f"the game's own code fails here each time: {failure}")
            record(ExitCode.BAD_CONFIG, str(repeated), failure)
            raise repeated from error
        record(code, str(failure), failure)
        raise


def keep_previous(directory: PeerDirectory) -> None:
    """Make room for the record of a new process. The record of the one before is kept if that one failed."""
    if directory.exit.exists():
        directory.exit.replace(directory.previous_exit)


def exit_record(directory: PeerDirectory) -> ExitRecord:
    """Return the record of a process that has ended; an empty one where it was killed, or where the disk was full."""
    found = _read(directory.exit)
    if found.code is None and _is_full(directory.root):
        free = free_space(directory.root)
        full = f"{directory.root} cannot be written: no space is left on the device{free}; free some, and run again"
        return ExitRecord(int(ExitCode.TEMPORARY), full, restart=False)
    return found


def recorded_exit_code(directory: PeerDirectory) -> int | None:
    """Return the exit code that the peer recorded; None without one."""
    return exit_record(directory).code


def termination_message(directory: PeerDirectory) -> str:
    """Return the message that the peer recorded, or else the last lines of its output."""
    if message := exit_record(directory).message:
        return message
    try:
        with directory.output.open("rb") as output:
            size = output.seek(0, os.SEEK_END)
            output.seek(max(0, size - 16_384))
            lines = output.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-LAST_LINES:])


def _read(path: Path) -> ExitRecord:
    """Return a record; an empty one where there is none, or where it cannot be read."""
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        code, message = found["code"], found.get("message", "")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ExitRecord()
    if not isinstance(code, int):
        return ExitRecord()
    return ExitRecord(code, str(message), bool(found.get("restart", True)), Failure.of_json(found.get("failure")))


def _is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < FULL_BYTES
    except OSError:
        return False
