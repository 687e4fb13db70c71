"""The sandbox's own side: a nursery process that locks itself, and a locked fork of it for every batch of calls.

The nursery is started clean, imports what is asked for, and never looks at an answer. Each batch runs in a fork with no
files but the interpreter's and its packages', no network, no other processes, bounded memory and a deadline on every
call; when a call breaks a limit the fork is killed, the breach is named, and the next call gets a new fork. Nothing
that a batch does to the interpreter outlives it. Not imported by anybody: `python -m swarmgame.sandbox.fork_server`.
Invariant: one answer for every request, and one outcome for every call in it.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import resource
import select
import signal
import struct
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from swarmgame.sandbox import landlock, seccomp

MAX_FRAME = 64 * 2**20
MAX_RESULT = 4 * 2**20
MAX_BREACHES = 3
"""Breaches that a batch may cost us; the calls after them are not made."""
WALL_FACTOR = 3
"""A call may take its deadline of processor time, and this many times as long by the clock: a busy machine is not a
breach.
"""
_TICK_SECONDS = 0.02

_CLONE_NEWUSER, _CLONE_NEWNET, _CLONE_NEWIPC = 0x10000000, 0x40000000, 0x08000000
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4

CallResult = dict[str, Any]


def main() -> None:
    """Answers requests from standard input until it is closed."""
    requests, answers = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    greeting = json.loads(read_frame(requests) or b"null")
    if greeting is None:
        return
    nursery = ForkServer(greeting, keep=(requests, answers))
    write_frame(answers, json.dumps({"protections": nursery.protections}).encode())
    while (frame := read_frame(requests)) is not None:
        write_frame(answers, json.dumps(nursery.answer(json.loads(frame))).encode())


class ForkServer:
    """Imports, locks, forks, watches."""

    def __init__(self, greeting: dict[str, Any], keep: Sequence[int]) -> None:
        self._memory = int(greeting["memory"])
        self._packages = [str(path) for path in greeting["packages"]]
        self._keep = tuple(keep)
        self._statm = _open_statm()
        self.protections = self._lock([str(path) for path in greeting["readable"]])

    def _lock(self, readable: list[str]) -> list[str]:
        on = []
        if _unshare_network():
            on.append("network namespace")
        for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
            resource.setrlimit(limit, (0, 0))
        _lower(resource.RLIMIT_NOFILE, 256)
        on.append("resource limits")
        if version := landlock.restrict([*readable, *self._packages]):
            on.append(f"landlock {version}")
        if self._probe_seccomp():
            on.append("seccomp")
        return on

    def _probe_seccomp(self) -> bool:
        child = os.fork()
        if child == 0:
            os._exit(0 if seccomp.install() else 1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            if request["op"] == "prepare":
                return {"value": _function(request["function"])(*request["arguments"])}
            return {"outcomes": self._run(request)}
        except Exception as error:  # noqa: BLE001 — it is reported to the asking process, which raises it
            return {"error": _describe(error)}

    def _run(self, request: dict[str, Any]) -> list[CallResult]:
        function = _function(request["function"])
        calls: list[list[Any]] = request["calls"]
        outcomes: list[CallResult] = []
        breaches = 0
        gc.collect()
        gc.freeze()
        while len(outcomes) < len(calls):
            if breaches >= MAX_BREACHES:
                outcomes.append({"breach": "not run", "message": f"{breaches} breaches before it in its batch"})
                continue
            outcomes += self._fork(function, calls[len(outcomes) :], float(request["deadline"]))
            breaches = sum("breach" in outcome and outcome["breach"] in _COSTLY for outcome in outcomes)
        return outcomes

    def _fork(self, function: Callable[..., Any], calls: list[list[Any]], deadline: float) -> list[CallResult]:
        """Makes calls in one fork until all are made or one breaks a limit."""
        used = _virtual_memory(self._statm)
        reader, writer = os.pipe()
        nursery = os.getpid()
        child = os.fork()
        if child == 0:
            os.close(reader)
            self._be_child(function, calls, deadline, writer, used, nursery)
        os.close(writer)
        try:
            return self._watch(child, reader, len(calls), deadline)
        finally:
            os.close(reader)

    def _watch(self, child: int, reader: int, count: int, deadline: float) -> list[CallResult]:
        """Reads outcomes, with a deadline on each, then buries the fork."""
        outcomes: list[CallResult] = []
        pending = b""
        started, used = time.monotonic(), _processor_seconds(child)
        late = ""
        while len(outcomes) < count:
            if select.select([reader], [], [], _TICK_SECONDS)[0]:
                chunk = os.read(reader, 1 << 16)
                pending += chunk
                if not chunk or len(pending) > MAX_RESULT:
                    break
                frames, pending = _whole_frames(pending)
                if frames:
                    outcomes += [_checked(frame) for frame in frames]
                    started, used = time.monotonic(), _processor_seconds(child)
            elif _processor_seconds(child) - used > deadline or time.monotonic() - started > WALL_FACTOR * deadline:
                late = f"no answer within {deadline:g} seconds of processor time"
                break
        del outcomes[count:]
        if len(outcomes) == count:
            _kill(child)
            return outcomes
        if late:
            _kill(child)
            return [*outcomes, {"breach": "timeout", "message": late}]
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if len(pending) <= MAX_RESULT else _kill(child)
        return [*outcomes, _breach(status)]

    def _be_child(
        self,
        function: Callable[..., Any],
        calls: list[list[Any]],
        deadline: float,
        writer: int,
        used: int,
        nursery: int,
    ) -> NoReturn:
        """The fork: locks itself a second time, answers, and ends without unwinding what belongs to the nursery."""
        try:
            _lock_child(self._packages, self._memory + used, len(calls) * deadline, [*self._keep, self._statm], nursery)
            for arguments in calls:
                write_frame(writer, json.dumps(_call(function, arguments)).encode())
        except BaseException:  # noqa: BLE001 — whatever it was, it must not return into the nursery's code
            os._exit(97)
        os._exit(0)


_COSTLY = ("timeout", "memory", "forbidden", "killed", "ended")


def _call(function: Callable[..., Any], arguments: list[Any]) -> CallResult:
    try:
        value = function(*arguments)
        json.dumps(value)
        return {"value": value}
    except MemoryError:
        return {"breach": "memory", "message": "out of memory"}
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001 — it is the outcome
        return {"breach": getattr(type(error), "breach", "exception"), "message": _describe(error)}


def _lock_child(packages: list[str], memory: int, seconds: float, foreign: list[int], nursery: int) -> None:
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != nursery:
        os._exit(98)
    for descriptor in foreign:
        if descriptor >= 0:
            os.close(descriptor)
    _lower(resource.RLIMIT_AS, memory)
    _lower(resource.RLIMIT_CPU, int(seconds) + 2)
    _lower(resource.RLIMIT_NOFILE, 64)
    _lower(resource.RLIMIT_NPROC, 0)
    landlock.restrict(packages)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    seccomp.install()


def _lower(limit: int, value: int) -> None:
    hard = resource.getrlimit(limit)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, value))


def _unshare_network() -> bool:
    """A network of our own, with nothing in it; in a user namespace of our own where we have no privilege."""
    libc = ctypes.CDLL(None, use_errno=True)
    return any(
        libc.unshare(flags) == 0
        for flags in (_CLONE_NEWNET | _CLONE_NEWIPC, _CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC)
    )


def _breach(status: int) -> CallResult:
    if status == -signal.SIGSYS:
        return {"breach": "forbidden", "message": "a system call that is not allowed"}
    if status == -signal.SIGXCPU:
        return {"breach": "timeout", "message": "processor time ran out"}
    if status in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, 97):
        return {"breach": "memory", "message": "the process fell over, most likely out of memory"}
    if status < 0:
        return {"breach": "killed", "message": f"ended by signal {-status}"}
    return {"breach": "ended", "message": "the answer ended its process"}


def _kill(child: int) -> int:
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _processor_seconds(process: int) -> float:
    """Processor time of another process: its clock's id is made of its process id (clock_getcpuclockid(3))."""
    try:
        return time.clock_gettime((~process << 3) | 2)
    except OSError:
        return 0.0


def _open_statm() -> int:
    try:
        return os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def _virtual_memory(statm: int) -> int:
    """Bytes of address space of the nursery; a generous guess where /proc is hidden."""
    if statm < 0:
        return 8 * 2**30
    return int(os.pread(statm, 64, 0).split()[0]) * resource.getpagesize()


def _function(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    if not callable(found):
        raise TypeError(f"{name} is not callable")
    function: Callable[..., Any] = found
    return function


def _describe(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:500]
    except Exception:  # noqa: BLE001 — its text is the stranger's code too
        return type(error).__name__


def _checked(frame: bytes) -> CallResult:
    """An outcome in our own words: the fork that sent it may have been taken over."""
    try:
        outcome = json.loads(frame)
        if "breach" in outcome:
            return {"breach": str(outcome["breach"])[:20], "message": str(outcome.get("message", ""))[:500]}
        return {"value": outcome["value"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {"breach": "killed", "message": "an outcome that cannot be read"}


def _whole_frames(pending: bytes) -> tuple[list[bytes], bytes]:
    frames = []
    while len(pending) >= 4 and len(pending) >= 4 + (size := struct.unpack_from("<I", pending)[0]):
        frames.append(pending[4 : 4 + size])
        pending = pending[4 + size :]
    return frames, pending


def read_frame(descriptor: int) -> bytes | None:
    """One frame: four bytes of length, little-endian, and that many bytes. None at the end of the stream."""
    header = _read_exactly(descriptor, 4)
    if header is None:
        return None
    size = struct.unpack("<I", header)[0]
    if size > MAX_FRAME:
        raise ValueError(f"a frame of {size} bytes; at most {MAX_FRAME}")
    return _read_exactly(descriptor, size)


def write_frame(descriptor: int, body: bytes) -> None:
    """Writes a frame whole."""
    view = memoryview(struct.pack("<I", len(body)) + body)
    while view:
        view = view[os.write(descriptor, view) :]


def _read_exactly(descriptor: int, size: int) -> bytes | None:
    chunks = []
    while size:
        chunk = os.read(descriptor, min(size, 1 << 20))
        if not chunk:
            return None
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)


if __name__ == "__main__":
    sys.setrecursionlimit(1000)
    main()
