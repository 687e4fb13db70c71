"""Daemons: programs that run until they are told to stop, each with a log and a file that says which process it is.

No restarts here: a control plane that dies during a test is a finding. Invariants: a process is only ever signalled if
it is the one that was started (its start time is kept beside its id), and a daemon that dies while it is waited for is
reported with its last words at once.
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
    """A daemon died, or was not ready in time. Holds its last words."""


@dataclass(frozen=True)
class Daemon:
    """A running program.

    Args:
        name: for messages and file names.
        pid: of the process, which leads a group of its own.
        started: its start time in the kernel's ticks, which tells it from a later process with the same id.
        directory: where its log and its file lie.
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

    def last_words(self, lines: int = 15) -> str:
        with contextlib.suppress(FileNotFoundError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        return "(it wrote nothing)"

    def wait(self, ready: Callable[[], bool], seconds: float = 30.0) -> None:
        """Returns when it is ready.

        Raises:
            DaemonFailed: it ended, or the time is up.
        """
        end = time.monotonic() + seconds
        while not ready():
            if not self.alive:
                raise DaemonFailed(f"{self.name} ended before it was ready; its log is {self.log}\n{self.last_words()}")
            if time.monotonic() > end:
                raise DaemonFailed(
                    f"{self.name} was not ready after {seconds:.0f} s; its log is {self.log}\n{self.last_words()}"
                )
            time.sleep(_POLL_SECONDS)

    def stop(self, grace_seconds: float = 10.0) -> None:
        """Asks it and its group to end, and kills what has not: returns when none of them runs."""
        left = self.alive
        for number, patience in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, 5.0)):
            if not left:
                break
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)
            end = time.monotonic() + patience
            while (left := self.alive or _group_runs(self.pid)) and time.monotonic() < end:
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
    """Starts a program in the background.

    Args:
        name: of the daemon; one of a name runs in a directory.
        command: program and arguments.
        directory: for its log and its file.
        environment: beyond our own.
        with_parent: the kernel kills it when we die; otherwise it outlives us, and `running` finds it again.
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
            preexec_fn=_die_with_parent if with_parent else None,
        )
    daemon = Daemon(name, process.pid, _start_time(process.pid) or 0, directory)
    process.returncode = 0  # it is looked after by its id from here on, like one that another process started
    _file(directory, name).write_text(json.dumps({"pid": daemon.pid, "started": daemon.started}))
    return daemon


def running(directory: Path) -> dict[str, Daemon]:
    """Those of a directory that still run, by name, in the order in which they were started; files of dead ones are
    removed.
    """
    found: dict[str, Daemon] = {}
    for file in sorted(directory.glob("*.pid"), key=lambda path: path.stat().st_mtime_ns):
        record = json.loads(file.read_text())
        daemon = Daemon(file.stem, int(record["pid"]), int(record["started"]), directory)
        if daemon.alive:
            found[daemon.name] = daemon
        else:
            file.unlink(missing_ok=True)
    return found


def strays(directory: Path) -> list[Daemon]:
    """Daemons of a directory whose files are lost: each carries in its environment where it belongs."""
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
    """Field 22 of /proc/<pid>/stat; None when there is no such process or it is a zombie."""
    fields = _stat(Path(f"/proc/{pid}"))
    return int(fields[19]) if fields else None


def _group_runs(group: int) -> bool:
    """Whether any process of a group runs; a dead one counts until the kernel has let go of it."""
    stats = (_stat(process) for process in Path("/proc").glob("[0-9]*"))
    return any(fields is not None and int(fields[2]) == group for fields in stats)


def _stat(process: Path) -> list[str] | None:
    """Fields of /proc/<pid>/stat from the third, the state, on; None when there is no such process or it is a zombie."""
    try:
        fields = (process / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields


def _reap(pid: int) -> bool:
    """Collects our own dead child, which would stay a zombie; true unless it has ended."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == 0
    except ChildProcessError:
        return True  # not our child: started by an earlier process


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
