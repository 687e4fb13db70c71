"""The batch process: prepares what calls share, and forks once for every call.

It is a restricted fork of the server. A call runs in a fork of it, which inherits the restrictions, gives up what is
left (forks, signals, every descriptor but its own pipe), and sends one result through that pipe. So a call touches one
result, and no change to the interpreter survives it. Several calls run at once; their results are sent in order.
With `trial`, a call is tried here first: where it only reads the answer, its result counts; before it would evaluate
anything, it is given up and gets a fork. Invariant: this process never evaluates an answer, unless the work is
`together`: generating questions from references.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import json
import os
import resource
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from swarmgame.sandbox import landlock, privileges, seccomp
from swarmgame.sandbox.frames import MAX_RESULT, TOO_LONG, Result, checked, first_frame, parsed, write_frame
from swarmgame.sandbox.trial import Trial
from swarmgame.user_code import as_number, describe, kind_of

MAX_BREACHES = 3
"""After so many costly breaches the remaining calls of a batch are not made."""
COSTLY = ("timeout", "memory", "forbidden", "killed", "ended")
WALL_FACTOR = 3
"""Most wall-clock time of a call, in deadlines. The deadline itself counts processor time, so a busy machine causes no
breach.
"""
TICK_SECONDS = 0.02
_MAX_AT_ONCE = 5
_PIPE = 3
_DESCRIPTORS = 256


@dataclass(frozen=True, slots=True)
class Work:
    """A batch of calls, as the server has resolved it.

    Args:
        function: to call.
        calls: the arguments of each.
        deadline: most processor seconds of one call.
        budget: most processor seconds of all calls.
        breaches: costly breaches before these calls.
        before: called here with the first `shared` arguments of a call, where they differ from those of the call
            before it, and before a fork where a trial has used up what it made; its caches are inherited by the forks.
        together: make the calls in this process.
        trial: first try each call in this process.
    """

    function: Callable[..., Any]
    calls: Sequence[list[Any]]
    deadline: float
    budget: float
    breaches: int = 0
    before: Callable[..., Any] | None = None
    shared: int = 0
    together: bool = False
    trial: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """What every process of a batch is restricted to.

    Args:
        packages: paths that it can read.
        memory: most bytes that one call may allocate.
        user: its user; None for the server's own.
        keep_reading: see `privileges.drop`.
    """

    packages: Sequence[str]
    memory: int
    user: int | None
    keep_reading: bool


@dataclass(slots=True)
class _Running:
    """A call in its own process."""

    index: int
    process: int
    reader: int
    started: float
    received: bytearray = field(default_factory=bytearray)
    has_result: bool = False


class BatchProcess:
    """Restricts this process, and makes the calls of some work in it.

    Args:
        results: descriptor of the pipe to the server.
        server: process id of the server.
        used: bytes of its address space.
    """

    def __init__(self, work: Work, limits: Limits, results: int, server: int, used: int) -> None:
        self._work = work
        self._results = results
        self._at_once = min(_MAX_AT_ONCE, len(os.sched_getaffinity(0)) + 1, len(work.calls))
        self._running: dict[int, _Running] = {}
        self._done: dict[int, Result] = {}
        self._next = 0
        self._sent = 0
        self._breaches = work.breaches
        self._used = 0.0
        self._prepared: list[Any] | None = None
        self._is_used_up = False
        self._failure: Result | None = None
        self._trial = Trial()
        restrict(limits, server, seconds=len(work.calls) * work.deadline, used=used)
        self._process = os.getpid()

    def run(self) -> None:
        """Make all calls, and send a result for each."""
        if self._work.together:
            privileges.lower(resource.RLIMIT_NPROC, 0)
            seccomp.install_final()
            for arguments in self._work.calls:
                self._send({"result": call(self._work.function, arguments)})
            return
        seccomp.prepare_final()
        gc.freeze()  # else the collector of a fork touches, and so copies, what was made here
        poll = select.poll()
        while self._sent < len(self._work.calls):
            self._start_calls(poll)
            for reader, _ in poll.poll(TICK_SECONDS * 1000) if self._running else ():
                self._receive(self._running[reader], poll)
            self._end_late_calls()
            self._send_results()
        for running in self._running.values():  # all results are sent; a zombie would stay for the server to find
            os.waitpid(running.process, 0)

    def _start_calls(self, poll: select.poll) -> None:
        while self._next < len(self._work.calls) and len(self._running) < self._at_once:
            if self._used >= self._work.budget:
                self._done[self._next] = _beyond(self._work.budget)
            elif (failure := self._prepare(self._work.calls[self._next])) is not None:
                self._done[self._next] = failure
            elif (result := self._try(self._work.calls[self._next])) is not None:
                self._done[self._next] = result
            elif (failure := self._prepare(self._work.calls[self._next], for_fork=True)) is not None:
                self._done[self._next] = failure
            else:
                running = self._fork(self._next)
                self._running[running.reader] = running
                poll.register(running.reader, select.POLLIN)
            self._next += 1

    def _prepare(self, arguments: list[Any], *, for_fork: bool = False) -> Result | None:
        """Call `before`, unless the call before this one shared the same arguments. Return its breach, if any.

        Args:
            for_fork: call it also where a trial has used up what it made.
        """
        shared = arguments[: self._work.shared]
        if self._work.before is None or (shared == self._prepared and not (for_fork and self._is_used_up)):
            return self._failure
        began = time.process_time()
        self._send({"begin": self._next})
        outcome = call(self._work.before, shared)
        self._send({"end": self._next})
        self._used += time.process_time() - began
        self._prepared, self._failure = shared, outcome if "breach" in outcome else None
        self._is_used_up = False
        return self._failure

    def _try(self, arguments: list[Any]) -> Result | None:
        """Make a call here as long as it evaluates nothing. Return None where it was given up, or needs more memory."""
        if not self._work.trial:
            return None
        began = time.process_time()
        self._send({"begin": self._next, "alone": True})
        self._is_used_up = True
        result: Result | None = self._trial.call(lambda: call(self._work.function, arguments))
        self._send({"end": self._next})
        self._used += time.process_time() - began
        return None if result is None or result.get("breach") == "memory" else result

    def _fork(self, index: int) -> _Running:
        reader, writer = os.pipe()
        started = time.monotonic()
        child = fork_quickly()
        if child == 0:
            self._evaluate(self._work.calls[index], writer)
        os.close(writer)
        return _Running(index, child, reader, started)

    def _evaluate(self, arguments: list[Any], writer: int) -> NoReturn:
        """Restrict this fork further, make one call, and exit without unwinding the stack."""
        try:
            os.dup2(writer, _PIPE)
            os.closerange(_PIPE + 1, _DESCRIPTORS)
            privileges.die_with(self._process)
            resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
            seccomp.install_final()
            write_frame(_PIPE, json.dumps(call(self._work.function, arguments)).encode())
        except BaseException:  # noqa: BLE001 — the fork must not return into this process's code
            os._exit(97)
        os._exit(0)

    def _receive(self, running: _Running, poll: select.poll) -> None:
        """Read what a fork has sent; its first frame is its result, and its end without one is a breach."""
        chunk = os.read(running.reader, 1 << 16)
        if not chunk:
            poll.unregister(running.reader)
            os.close(running.reader)
            del self._running[running.reader]
            _, status, usage = os.wait4(running.process, 0)
            if not running.has_result:
                self._used += usage.ru_utime + usage.ru_stime
                self._finish(running, breach(os.waitstatus_to_exitcode(status)))
            return
        if running.has_result:
            return
        running.received += chunk
        if len(running.received) > MAX_RESULT:
            self._end(running, TOO_LONG)
        elif (frame := first_frame(running.received)) is not None:
            self._end(running, checked(parsed(frame)))

    def _end_late_calls(self) -> None:
        now = time.monotonic()
        for running in self._running.values():
            if running.has_result:
                continue
            used = processor_seconds(running.process)
            if used > self._work.deadline or now - running.started > WALL_FACTOR * self._work.deadline:
                self._end(running, late(self._work.deadline))
            elif self._used + used > self._work.budget:
                self._end(running, _beyond(self._work.budget))

    def _end(self, running: _Running, result: Result) -> None:
        """Take a result, and kill the fork: it has nothing left to do."""
        self._used += processor_seconds(running.process)
        with contextlib.suppress(ProcessLookupError):
            os.kill(running.process, signal.SIGKILL)
        self._finish(running, result)

    def _finish(self, running: _Running, result: Result) -> None:
        running.has_result = True
        self._done[running.index] = result

    def _send_results(self) -> None:
        """Send results in order, so that the call after which none is made does not depend on timing."""
        while self._sent in self._done:
            result = self._done.pop(self._sent)
            # What a fork has sent may be longer as it is sent on: é has two bytes, and as an escape six.
            if len(json.dumps(result)) > MAX_RESULT:
                result = TOO_LONG
            self._send({"result": result, "seconds": round(self._used, 6)})
            self._sent += 1
            self._breaches += result.get("breach") in COSTLY
            if self._breaches >= MAX_BREACHES:
                for running in self._running.values():
                    self._end(running, {})
                for _ in range(self._sent, len(self._work.calls)):
                    self._send({"result": not_run(self._breaches), "seconds": round(self._used, 6)})
                self._sent = len(self._work.calls)

    def _send(self, message: Mapping[str, Any]) -> None:
        write_frame(self._results, json.dumps(message).encode())


def restrict(limits: Limits, server: int, *, seconds: float, used: int) -> None:
    """Restrict this process and its children."""
    privileges.lower(resource.RLIMIT_AS, used + limits.memory)
    privileges.lower(resource.RLIMIT_CPU, int(seconds) + 2)
    privileges.lower(resource.RLIMIT_NOFILE, 64)
    landlock.restrict(limits.packages)
    privileges.drop(limits.user, keep_reading=limits.keep_reading)
    privileges.die_with(server)
    privileges.forbid_tracing()
    seccomp.install()


def call(function: Callable[..., Any], arguments: Sequence[Any]) -> Result:
    """Call a function, and return its value or its breach as JSON has them."""
    try:
        return {"value": _as_json(function(*arguments))}
    except MemoryError:
        return {"breach": "memory", "message": "out of memory"}
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001 — it is the result
        found = describe(error, function)
        return {
            "breach": getattr(type(error), "breach", "exception"),
            "message": _message(error),
            "error": [found.kind, found.message, found.where, found.trace],
        }


def fork_quickly() -> int:
    """Fork without the hooks of `os.fork`, which reseed `random` and renew locks of threads, of which there are none.

    The hooks touch 190 pages: 0.6 of the 2.5 ms of processor time that a fork of the warm process takes.
    """
    return int(_libc().fork())


@functools.cache
def _libc() -> ctypes.PyDLL:
    return ctypes.PyDLL(None)


def breach(status: int) -> Result:
    """Return the result of a call whose process ended without one, given its exit code or negative signal."""
    if status == -signal.SIGSYS:
        return {"breach": "forbidden", "message": "a system call that is not allowed"}
    if status == -signal.SIGXCPU:
        return {"breach": "timeout", "message": "processor time ran out"}
    if status in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, 97):
        return {"breach": "memory", "message": "the process crashed, most likely out of memory"}
    if status < 0:
        return {"breach": "killed", "message": f"ended by signal {-status}"}
    return {"breach": "ended", "message": "the answer ended its process"}


def late(deadline: float) -> Result:
    """Return the result of a call that reached its deadline."""
    return {"breach": "timeout", "message": f"no answer within {deadline:g} seconds of processor time"}


def not_run(breaches: int) -> Result:
    """Return the result of a call that is not made after so many breaches."""
    return {"breach": "not run", "message": f"{breaches} breaches before it in its batch"}


def _beyond(budget: float) -> Result:
    return {"breach": "beyond budget", "message": f"the {budget:.3g} seconds of processor time of its batch are used"}


def processor_seconds(process: int) -> float:
    """Processor time of another process: its clock's id is made of its process id (clock_getcpuclockid(3))."""
    try:
        return time.clock_gettime((~process << 3) | 2)
    except OSError:
        return 0.0


def open_statm() -> int:
    """Open the memory figures of this process; -1 where /proc is hidden."""
    try:
        return os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def virtual_memory(statm: int) -> int:
    """Return the address space of a process in bytes; 8 GiB where /proc is hidden."""
    if statm < 0:
        return 8 * 2**30
    return int(os.pread(statm, 64, 0).split()[0]) * resource.getpagesize()


def _as_json(value: Any) -> Any:
    """Return a value that JSON can express; scalars of numpy and torch become numbers.

    Raises:
        TypeError: JSON cannot express it.
    """
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        number = as_number(value)
        if number is None:
            raise TypeError(f"returned {kind_of(value)}; expected a number, or another JSON value") from None
        return number
    return value


def _message(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:500]
    except Exception:  # noqa: BLE001 — its `__str__` is untrusted code
        return type(error).__name__
