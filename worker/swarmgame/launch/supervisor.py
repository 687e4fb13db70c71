"""The supervisor: starts the processes of a run, and restarts those that fail.

It knows commands and exit codes, not games, models or swarms. Invariants: a child never outlives the runner (the
kernel kills it), its process group is killed when it ends, an exit that a restart cannot correct ends the run, and
restarts are bounded.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from swarmgame.errors import ExitCode, writing
from swarmgame.launch.exit_record import exit_record, keep_previous, termination_message
from swarmgame.launch.peer_end import PeerEnd, indented, shown_path
from swarmgame.launch.peer_process import ChildProcess, StartProcess, start_command
from swarmgame.observability.run_directory import PeerDirectory

FATAL = frozenset({ExitCode.BAD_USAGE, ExitCode.BAD_DATA, ExitCode.REFUSED, ExitCode.BAD_CONFIG})
"""Exit codes with which the same command would end again."""
POLL_SECONDS = 0.05


class ProcessState(StrEnum):
    """The state of a peer's process."""

    RUNNING = "running"
    RESTARTING = "restarting"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True)
class RestartPolicy:
    """How often peers are restarted, and when the run ends.

    Args:
        restarts: of one peer, before it counts as failed.
        failed_peers: how many may fail before the run ends.
        grace_seconds: from SIGTERM to SIGKILL.
        first_delay_seconds: before the first restart; doubles with each one, up to `longest_delay_seconds`.
    """

    restarts: int = 3
    failed_peers: int = 2
    grace_seconds: float = 120.0
    first_delay_seconds: float = 0.25
    longest_delay_seconds: float = 30.0

    def delay(self, restart: int) -> float:
        """Return the seconds before the n-th restart, counted from 1."""
        return min(self.longest_delay_seconds, self.first_delay_seconds * 2.0 ** (restart - 1))


@dataclass(frozen=True)
class RunOutcome:
    """How the run ended.

    Args:
        code: for the runner's own exit.
        message: what went wrong, with the peer's termination message; empty after success.
        failed: peers that failed while the run went on, with the reason.
        restarts: of all peers together.
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
    process: ChildProcess | None = None
    restarts: int = 0
    start_at: float = 0.0
    last_message: str = ""


class Supervisor:
    """Runs one process per peer until all have finished, one cannot go on, or `stop` is called.

    Args:
        directories: of each peer, by index.
        command: returns the arguments that start a peer, from its index and whether this is a restart.
        environment: returns the environment of a peer, from its index.
        notify: gets each end of a process that did not finish its game.
        start: starts a process.
    """

    def __init__(
        self,
        directories: Mapping[int, PeerDirectory],
        command: Callable[[int, bool], Sequence[str]],
        *,
        environment: Callable[[int], Mapping[str, str]],
        restart_policy: RestartPolicy,
        notify: Callable[[PeerEnd], None] = lambda end: None,
        start: StartProcess = start_command,
    ) -> None:
        self._children = [PeerProcess(index, directory) for index, directory in sorted(directories.items())]
        self._command = command
        self._environment = environment
        self._restart_policy = restart_policy
        self._notify = notify
        self._start_process = start
        self._stops = 0
        self._ending: tuple[ExitCode, str] | None = None
        self._kill_at: float | None = None

    @property
    def states(self) -> dict[int, ProcessState]:
        return {child.index: child.state for child in self._children}

    def stop(self) -> None:
        """Once: let all peers leave. Twice: kill them. Only counts, so a signal handler may call it."""
        self._stops += 1

    def run(self, tick: Callable[[], None] = lambda: None) -> RunOutcome:
        """Start all peers, and return when none is left. `tick` is called several times a second, in this thread."""
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
                self._kill_group(child)
        return self._outcome()

    # ── one child
    def _start(self, child: PeerProcess) -> None:
        with writing(child.directory.root):
            child.directory.root.mkdir(parents=True, exist_ok=True)
            keep_previous(child.directory)
            child.directory.http.unlink(missing_ok=True)
        child.process = self._start_process(
            self._command(child.index, child.restarts > 0), self._environment(child.index), child.directory.output
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
            self._kill_group(child)
            child.process = None  # its number may soon be another process's
            self._handle_exit(child, returned)

    def _handle_exit(self, child: PeerProcess, returned: int) -> None:
        if returned == ExitCode.DONE and not child.directory.exit.exists():
            child.state = ProcessState.FINISHED
            return
        record = exit_record(child.directory)
        # Its own record counts: torchrun returns 1 however its ranks end, and game code may call sys.exit(0).
        code = returned if record.code is None else record.code
        end = PeerEnd(child.index, code, record, child.directory.output)
        if code in FATAL or not record.restart:
            child.state = ProcessState.FAILED
            self._end(ExitCode(code), "\n".join([end.reason, *self._details(child)]))
        elif self._kill_at is not None:
            child.state = ProcessState.STOPPED
        elif child.restarts < self._restart_policy.restarts:
            child.restarts += 1
            child.start_at = time.monotonic() + self._restart_policy.delay(child.restarts)
            child.state = ProcessState.RESTARTING
            self._tell(child, replace(end, restart=child.restarts, restarts=self._restart_policy.restarts))
        else:
            self._give_up(child, end)

    def _tell(self, child: PeerProcess, end: PeerEnd) -> None:
        message = end.record.message
        self._notify(replace(end, is_same=bool(message) and message == child.last_message))
        child.last_message = message

    def _give_up(self, child: PeerProcess, end: PeerEnd) -> None:
        child.state = ProcessState.FAILED
        failed = [each for each in self._children if each.state is ProcessState.FAILED]
        reason = f"{end.reason}, after {child.restarts} restarts"
        if len(failed) > self._restart_policy.failed_peers or len(failed) == len(self._children):
            known = ExitCode.INTERNAL if end.code == ExitCode.INTERNAL else ExitCode.TEMPORARY
            reason = f"{reason}; {len(failed)} of {len(self._children)} peers have failed"
            self._end(known, "\n".join([reason, *self._details(child)]))
        else:
            self._tell(child, replace(end, restarts=child.restarts, given_up=True))

    @staticmethod
    def _details(child: PeerProcess) -> list[str]:
        return indented(termination_message(child.directory), f"log: {shown_path(child.directory.output)}")

    def _kill_group(self, child: PeerProcess) -> None:
        """Kill what is left of a child's process group: processes that it started must not hold its port."""
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
                    self._kill_group(child)

    def _end(self, code: ExitCode, message: str) -> None:
        """Let all peers leave; the first reason counts."""
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
