"""Daemons: programs in the background, each with a log and a file with its process id and start time.

Daemons are not restarted: a control plane that dies during a test is an error. Invariants: a process is signalled only
if its start time is that of the file, and a daemon that dies during `wait` is reported at once with the end of its
log.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_MARK = "SWARMGAME_E2E_DAEMON_OF"
_LIBC = ctypes.CDLL(None, use_errno=True)
_POLL_SECONDS = 0.05


class DaemonFailed(Exception):
    """A daemon died, or was not ready in time. The message has the end of its log."""


@dataclass(frozen=True)
class Daemon:
    """A running program.

    Args:
        name: for messages and file names.
        pid: the process, which leads its own group.
        started: its start time in the kernel's ticks, which distinguishes it from a later process with the same id.
        directory: of its log and its file.
    """

    name: str
    pid: int
    started: int
    directory: Path

    @property
    def alive(self) -> bool:
        return _reap(self.pid) and _start_time(self.pid) == self.started

    @property
    def log(self) -> Path:
        return self.directory / f"{self.name}.log"

    def log_tail(self, lines: int = 15) -> str:
        with contextlib.suppress(FileNotFoundError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        return "(no log)"

    def wait(self, ready: Callable[[], bool], seconds: float = 30.0) -> None:
        """Wait until the daemon is ready.

        Raises:
            DaemonFailed: it ended, or was not ready in time.
        """
        end = time.monotonic() + seconds
        while not ready():
            if not self.alive:
                raise DaemonFailed(f"{self.name} ended before it was ready; its log is {self.log}\n{self.log_tail()}")
            if time.monotonic() > end:
                raise DaemonFailed(
                    f"{self.name} was not ready after {seconds:.0f} s; its log is {self.log}\n{self.log_tail()}"
                )
            time.sleep(_POLL_SECONDS)

    def stop(self, grace_seconds: float = 10.0) -> None:
        """Send SIGTERM to its process group, SIGKILL after the grace period; return when no process of it runs."""
        runs = self.alive
        for number, limit in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, 5.0)):
            if not runs:
                break
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)
            end = time.monotonic() + limit
            while (runs := self.alive or _group_runs(self.pid)) and time.monotonic() < end:
                time.sleep(_POLL_SECONDS)
        _file(self.directory, self.name).unlink(missing_ok=True)


def start(
    name: str,
    command: Sequence[str | Path],
    directory: Path,
    *,
    environment: Mapping[str, str] | None = None,
    with_parent: bool = False,
) -> Daemon:
    """Start a program in the background.

    Args:
        name: of the daemon, unique in its directory.
        command: program and arguments.
        directory: for its log and its file.
        environment: added to this process's environment.
        with_parent: the kernel kills it when this process dies; otherwise it continues, and `running` finds it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [str(each) for each in command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=directory,
            env=os.environ | dict(environment or {}) | {_MARK: str(directory)},
            start_new_session=True,
            preexec_fn=_set_parent_death_signal if with_parent else None,
        )
    daemon = Daemon(name, process.pid, _start_time(process.pid) or 0, directory)
    process.returncode = 0  # silences Popen's warning: the process is managed by its id from here on
    _file(directory, name).write_text(json.dumps({"pid": daemon.pid, "started": daemon.started}))
    return daemon


def running(directory: Path) -> dict[str, Daemon]:
    """Return the running daemons of a directory by name, in the order of their start; remove files of dead ones."""
    found: dict[str, Daemon] = {}
    for file in sorted(directory.glob("*.pid"), key=lambda path: path.stat().st_mtime_ns):
        record = json.loads(file.read_text())
        daemon = Daemon(file.stem, int(record["pid"]), int(record["started"]), directory)
        if daemon.alive:
            found[daemon.name] = daemon
        else:
            file.unlink(missing_ok=True)
    return found


def without_file(directory: Path) -> list[Daemon]:
    """Return the daemons of a directory whose files are lost: each has the directory in its environment."""
    found, mark = [], f"{_MARK}={directory}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            pid = int(process.name)
            started = _start_time(pid)
            if (
                started is not None
                and os.getpgid(pid) == pid
                and mark in (process / "environ").read_bytes().split(b"\0")
            ):
                found.append(Daemon((process / "comm").read_text().strip(), pid, started, directory))
    return found


def _file(directory: Path, name: str) -> Path:
    return directory / f"{name}.pid"


def _start_time(pid: int) -> int | None:
    """Return field 22 of /proc/<pid>/stat; None when there is no such process or it is a zombie."""
    fields = _stat(Path(f"/proc/{pid}"))
    return int(fields[19]) if fields else None


def _group_runs(group: int) -> bool:
    """Return whether any process of a group runs; one that is being killed counts until it is a zombie."""
    stats = (_stat(process) for process in Path("/proc").glob("[0-9]*"))
    return any(fields is not None and int(fields[2]) == group for fields in stats)


def _stat(process: Path) -> list[str] | None:
    """Return the fields of /proc/<pid>/stat from the third (state); None for a zombie or a missing process."""
    try:
        fields = (process / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields


def _reap(pid: int) -> bool:
    """Reap a dead child, which would stay a zombie; return whether it still runs."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == 0
    except ChildProcessError:
        return True  # started by an earlier process, so not a child


def _set_parent_death_signal() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
