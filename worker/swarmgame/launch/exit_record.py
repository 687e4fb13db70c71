"""How a peer's process ended, as it records it itself in `exit.json`.

The runner and the pod read the record, because torchrun, where a peer has several ranks, ends with 1 however its ranks
ended. Of several ranks the first record counts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from swarmgame.errors import ExitCode, exit_code_of
from swarmgame.observability.run_directory import PeerDirectory

LAST_LINES = 15


@contextmanager
def recording_exit(directory: PeerDirectory) -> Iterator[Callable[[ExitCode], None]]:
    """Record how the block ends: the error that leaves it, or the exit code with which the yielded function is called.

    An error of ours has a traceback in the output, so its record has no message.
    """
    directory.root.mkdir(parents=True, exist_ok=True)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        directory.exit.unlink(missing_ok=True)

    def record(code: ExitCode, message: str = "") -> None:
        try:
            with directory.exit.open("x", encoding="utf-8") as file:
                file.write(json.dumps({"code": int(code), "message": message}) + "\n")
        except FileExistsError:
            return

    try:
        yield lambda code: None if code is ExitCode.DONE else record(code)
    except BaseException as error:
        code = ExitCode.STOPPED if isinstance(error, KeyboardInterrupt) else exit_code_of(error)
        record(code, "" if code in {ExitCode.INTERNAL, ExitCode.STOPPED} else str(error))
        raise


def recorded_exit_code(directory: PeerDirectory) -> int | None:
    """Return the exit code that the peer recorded; None without one."""
    code = _record(directory).get("code")
    return code if isinstance(code, int) else None


def termination_message(directory: PeerDirectory) -> str:
    """Return the message that the peer recorded, or else the last lines of its output."""
    if message := _record(directory).get("message"):
        return str(message)
    try:
        with directory.output.open("rb") as output:
            size = output.seek(0, os.SEEK_END)
            output.seek(max(0, size - 16_384))
            lines = output.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-LAST_LINES:])


def _record(directory: PeerDirectory) -> dict[str, Any]:
    """Return the peer's record; empty without one, or where it cannot be read."""
    try:
        record = json.loads(directory.exit.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
