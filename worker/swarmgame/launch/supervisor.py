"""The supervisor: keeps the processes of a run alive, and knows when to give up.

It starts commands and judges how they end; it knows nothing of games, models or swarms. Invariants: a child never
outlives the runner (the kernel kills it), its descendants are swept when it ends, an exit that a restart cannot mend
ends the run, and restarts are bounded.
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
from dataclasses import dataclass, field
from enum import StrEnum

from swarmgame.errors import ExitCode
from swarmgame.observability.run_directory import PeerDirectory

FATAL = frozenset({ExitCode.BAD_USAGE, ExitCode.BAD_DATA, ExitCode.REFUSED, ExitCode.BAD_CONFIG})
"""Codes that the same command would end with again."""
POLL_SECONDS = 0.05
LAST_LINES = 15
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


class ProcessState(StrEnum):
    """What became of a peer's process."""

    RUNNING = "running"
    RESTARTING = "restarting"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True)
class RestartPolicy:
    """How much the run bears.

    Args:
        restarts: of one peer, before it has failed for good.
        failed_peers: that may be given up before the run is.
        grace_seconds: from SIGTERM to SIGKILL.
        first_delay_seconds: before the first restart; doubles with each one, up to `longest_delay_seconds`.
    """

    restarts: int = 3
    failed_peers: int = 2
    grace_seconds: float = 120.0
    first_delay_seconds: float = 0.25
    longest_delay_seconds: float = 30.0

    def delay(self, restart: int) -> float:
        """Seconds before the n-th restart, counted from 1."""
        return min(self.longest_delay_seconds, self.first_delay_seconds * 2.0 ** (restart - 1))


@dataclass(frozen=True)
class RunOutcome:
    """How the run ended.

    Args:
        code: for the runner's own exit.
        message: what went wrong, with the peer's last words; empty when nothing did.
        failed: peers that were given up, though the run went on, with the reason.
        restarts: how often peers were started again, in all.
    """

    code: ExitCode
    message: str = ""
    failed: Mapping[int, str] = field(default_factory=dict)
    restarts: int = 0


@dataclass
class PeerProcess:
    index: int
    directory: PeerDirectory
    state: ProcessState = ProcessState.RUNNING
    process: subprocess.Popen[bytes] | None = None
    restarts: int = 0
    start_at: float = 0.0


class Supervisor:
    """Runs one process per peer until all are done, one cannot go on, or somebody says stop.

    Args:
        directories: of each peer, by index.
        command: the arguments that start a peer; told whether this is a restart.
        environment: of the children.
        say: is told of restarts and failures.
    """

    def __init__(
        self,
        directories: Mapping[int, PeerDirectory],
        command: Callable[[int, bool], Sequence[str]],
        *,
        environment: Mapping[str, str],
        restart_policy: RestartPolicy,
        notify: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._children = [PeerProcess(index, directory) for index, directory in sorted(directories.items())]
        self._command = command
        self._environment = dict(environment)
        self._restart_policy = restart_policy
        self._notify = notify
        self._stops = 0
        self._ending: tuple[ExitCode, str] | None = None
        self._kill_at: float | None = None

    @property
    def states(self) -> dict[int, ProcessState]:
        return {child.index: child.state for child in self._children}

    def stop(self) -> None:
        """Once: everyone is asked to leave. Twice: everyone is killed. Only counts, so a signal handler may call it."""
        self._stops += 1

    def run(self, tick: Callable[[], None] = lambda: None) -> RunOutcome:
        """Starts all, and returns when none is left; `tick` is called several times a second, in this thread."""
        try:
            for child in self._children:
                self._start(child)
            while any(child.state in {ProcessState.RUNNING, ProcessState.RESTARTING} for child in self._children):
                self._handle_stops()
                for child in self._children:
                    self._check(child)
                tick()
                time.sleep(POLL_SECONDS)
        finally:
            for child in self._children:
                self._sweep(child)
        return self._outcome()

    # ── one child
    def _start(self, child: PeerProcess) -> None:
        child.directory.root.mkdir(parents=True, exist_ok=True)
        child.directory.exit.unlink(missing_ok=True)
        child.directory.http.unlink(missing_ok=True)
        with child.directory.output.open("ab") as output:
            child.process = subprocess.Popen(
                self._command(child.index, child.restarts > 0),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment,
                start_new_session=True,  # Ctrl-C reaches us alone; and the whole group can be swept
                preexec_fn=set_parent_death_signal,
            )
        child.state = ProcessState.RUNNING

    def _check(self, child: PeerProcess) -> None:
        if child.state is ProcessState.RESTARTING:
            if self._kill_at is not None:
                child.state = ProcessState.STOPPED
            elif time.monotonic() >= child.start_at:
                self._start(child)
        elif (
            child.state is ProcessState.RUNNING
            and child.process is not None
            and (returned := child.process.poll()) is not None
        ):
            self._sweep(child)
            self._handle_exit(child, returned)

    def _handle_exit(self, child: PeerProcess, returned: int) -> None:
        code = (
            recorded_exit_code(child.directory)
            if returned not in set(ExitCode) or returned == ExitCode.INTERNAL
            else returned
        )
        if code is None:
            code = returned
        if code == ExitCode.DONE:
            child.state = ProcessState.FINISHED
        elif code in FATAL:
            child.state = ProcessState.FAILED
            self._end(
                ExitCode(code),
                f"peer {child.index} ended with exit code {code}\n{termination_message(child.directory)}",
            )
        elif self._kill_at is not None:
            child.state = ProcessState.STOPPED
        elif child.restarts < self._restart_policy.restarts:
            child.restarts += 1
            child.start_at = time.monotonic() + self._restart_policy.delay(child.restarts)
            child.state = ProcessState.RESTARTING
            self._notify(
                f"peer {child.index} {_describe_exit(code)}; restart {child.restarts} of at most {self._restart_policy.restarts}"
            )
        else:
            self._give_up(child, code)

    def _give_up(self, child: PeerProcess, code: int) -> None:
        child.state = ProcessState.FAILED
        reason = f"peer {child.index} {_describe_exit(code)}, after {child.restarts} restarts"
        self._notify(f"{reason}; it is given up")
        failed = [each for each in self._children if each.state is ProcessState.FAILED]
        if len(failed) > self._restart_policy.failed_peers or len(failed) == len(self._children):
            known = ExitCode.INTERNAL if code == ExitCode.INTERNAL else ExitCode.TEMPORARY
            self._end(
                known,
                f"{reason}; {len(failed)} of {len(self._children)} peers have failed\n{termination_message(child.directory)}",
            )

    def _sweep(self, child: PeerProcess) -> None:
        """Kills what is left of a child's process group: helpers that it started must not hold its port."""
        if child.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.process.pid, signal.SIGKILL)
        child.process.wait()

    # ── the end
    def _handle_stops(self) -> None:
        if self._stops >= 1:
            self._end(ExitCode.STOPPED, "")
        killing = self._kill_at is not None and (self._stops >= 2 or time.monotonic() >= self._kill_at)
        if killing:
            for child in self._children:
                if child.state is ProcessState.RUNNING:
                    self._sweep(child)

    def _end(self, code: ExitCode, message: str) -> None:
        """Asks all to leave; the first reason counts."""
        if self._ending is None:
            self._ending = (code, message)
        if self._kill_at is None:
            self._kill_at = time.monotonic() + self._restart_policy.grace_seconds
            for child in self._children:
                if child.state is ProcessState.RUNNING and child.process is not None:
                    child.process.terminate()

    def _outcome(self) -> RunOutcome:
        restarts = sum(child.restarts for child in self._children)
        failed = {
            child.index: termination_message(child.directory)
            for child in self._children
            if child.state is ProcessState.FAILED
        }
        all_finished = all(child.state is ProcessState.FINISHED for child in self._children)
        if self._ending is not None and not all_finished:
            return RunOutcome(*self._ending, failed=failed, restarts=restarts)
        return RunOutcome(ExitCode.DONE, failed=failed, restarts=restarts)


def set_parent_death_signal() -> None:
    """From now on the kernel kills this process when the thread that started it dies. Safe between fork and exec."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def termination_message(directory: PeerDirectory) -> str:
    """What a peer said of its end: its own message, or else the last lines that it printed."""
    try:
        message = json.loads(directory.exit.read_text(encoding="utf-8")).get("message", "")
    except (OSError, ValueError, AttributeError):
        message = ""
    if message:
        return str(message)
    try:
        with directory.output.open("rb") as output:
            size = output.seek(0, os.SEEK_END)
            output.seek(max(0, size - 16_384))
            lines = output.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-LAST_LINES:])


def recorded_exit_code(directory: PeerDirectory) -> int | None:
    """The exit code that the peer noted itself: torchrun, which stands between us and its ranks, always ends with 1."""
    try:
        code = json.loads(directory.exit.read_text(encoding="utf-8"))["code"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return code if isinstance(code, int) else None


def _describe_exit(code: int) -> str:
    if code < 0:
        return (
            f"was killed by {signal.Signals(-code).name}"
            if -code in set(signal.Signals)
            else f"was killed by signal {-code}"
        )
    return f"ended with exit code {code}"
