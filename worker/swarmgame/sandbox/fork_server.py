"""The sandbox's process: a fork server that restricts itself, and forks once for every batch of calls.

The server starts clean, imports modules on request, and never handles untrusted data. Each batch runs in a fork that
can read only the interpreter and its packages, has no network and no other processes, bounded memory, and a deadline
on every call. When a call breaks a limit, the fork is killed, the breach is reported, and the next call gets a new
fork, so no change to the interpreter survives a batch. Started as `python -m swarmgame.sandbox.fork_server`.
Invariant: one answer for every request, and one result for every call in it.
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
from swarmgame.user_code import MAX_TEXT, MAX_TRACE, as_number, describe, kind_of, printable

MAX_FRAME = 64 * 2**20
MAX_RESULT = 4 * 2**20
MAX_BREACHES = 3
"""After so many breaches the remaining calls of a batch are not made."""
WALL_FACTOR = 3
"""Most wall-clock time of a call, in deadlines. The deadline itself counts processor time, so a busy machine causes no
breach.
"""
_TICK_SECONDS = 0.02

_CLONE_NEWUSER, _CLONE_NEWNET, _CLONE_NEWIPC = 0x10000000, 0x40000000, 0x08000000
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4

_Result = dict[str, Any]


def main() -> None:
    """Answer requests from standard input until it is closed."""
    requests, answers = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    settings = json.loads(read_frame(requests) or b"null")
    if settings is None:
        return
    server = ForkServer(settings, keep=(requests, answers))
    write_frame(answers, json.dumps({"protections": server.protections}).encode())
    while (frame := read_frame(requests)) is not None:
        write_frame(answers, json.dumps(server.answer(json.loads(frame))).encode())


class ForkServer:
    """Imports modules, restricts itself, and runs batches in forks."""

    def __init__(self, settings: dict[str, Any], keep: Sequence[int]) -> None:
        self._memory = int(settings["memory"])
        self._packages = [str(path) for path in settings["packages"]]
        self._keep = tuple(keep)
        self._statm = _open_statm()
        self.protections = self._restrict([str(path) for path in settings["readable"]])

    def _restrict(self, readable: list[str]) -> list[str]:
        applied = []
        if _unshare_network():
            applied.append("network namespace")
        for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
            resource.setrlimit(limit, (0, 0))
        _lower(resource.RLIMIT_NOFILE, 256)
        applied.append("resource limits")
        if version := landlock.restrict([*readable, *self._packages]):
            applied.append(f"landlock {version}")
        if self._probe_seccomp():
            applied.append("seccomp")
        return applied

    def _probe_seccomp(self) -> bool:
        child = os.fork()
        if child == 0:
            os._exit(0 if seccomp.install() else 1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            if request["op"] == "prepare":
                return {"value": _function(request["function"])(*request["arguments"])}
            return {"results": self._run(request)}
        except Exception as error:  # noqa: BLE001 — the client raises it
            return {"error": str(describe(error))}

    def _run(self, request: dict[str, Any]) -> list[_Result]:
        function = _function(request["function"])
        calls: list[list[Any]] = request["calls"]
        results: list[_Result] = []
        breaches = 0
        gc.collect()
        gc.freeze()
        while len(results) < len(calls):
            if breaches >= MAX_BREACHES:
                results.append({"breach": "not run", "message": f"{breaches} breaches before it in its batch"})
                continue
            results += self._fork(function, calls[len(results) :], float(request["deadline"]))
            breaches = sum("breach" in result and result["breach"] in _COSTLY for result in results)
        return results

    def _fork(self, function: Callable[..., Any], calls: list[list[Any]], deadline: float) -> list[_Result]:
        """Make calls in one fork until all are made or one breaks a limit."""
        used = _virtual_memory(self._statm)
        reader, writer = os.pipe()
        server = os.getpid()
        child = os.fork()
        if child == 0:
            os.close(reader)
            self._run_child(function, calls, deadline, writer, used, server)
        os.close(writer)
        try:
            return self._watch(child, reader, len(calls), deadline)
        finally:
            os.close(reader)

    def _watch(self, child: int, reader: int, count: int, deadline: float) -> list[_Result]:
        """Read results, with a deadline on each, then reap the fork."""
        results: list[_Result] = []
        pending = b""
        started, used = time.monotonic(), _processor_seconds(child)
        late = ""
        while len(results) < count:
            if select.select([reader], [], [], _TICK_SECONDS)[0]:
                chunk = os.read(reader, 1 << 16)
                pending += chunk
                if not chunk or len(pending) > MAX_RESULT:
                    break
                frames, pending = _complete_frames(pending)
                if frames:
                    results += [_checked(frame) for frame in frames]
                    started, used = time.monotonic(), _processor_seconds(child)
            elif _processor_seconds(child) - used > deadline or time.monotonic() - started > WALL_FACTOR * deadline:
                late = f"no answer within {deadline:g} seconds of processor time"
                break
        del results[count:]
        if len(results) == count:
            _kill(child)
            return results
        if late:
            _kill(child)
            return [*results, {"breach": "timeout", "message": late}]
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if len(pending) <= MAX_RESULT else _kill(child)
        return [*results, _breach(status)]

    def _run_child(
        self,
        function: Callable[..., Any],
        calls: list[list[Any]],
        deadline: float,
        writer: int,
        used: int,
        server: int,
    ) -> NoReturn:
        """Run in the fork: restrict it further, make the calls, and exit without unwinding the server's stack."""
        try:
            _restrict_child(
                self._packages, self._memory + used, len(calls) * deadline, [*self._keep, self._statm], server
            )
            for arguments in calls:
                write_frame(writer, json.dumps(_call(function, arguments)).encode())
        except BaseException:  # noqa: BLE001 — the fork must not return into the server's code
            os._exit(97)
        os._exit(0)


_COSTLY = ("timeout", "memory", "forbidden", "killed", "ended")


def _call(function: Callable[..., Any], arguments: list[Any]) -> _Result:
    try:
        value = function(*arguments)
        return {"value": _as_json(value)}
    except MemoryError:
        return {"breach": "memory", "message": "out of memory"}
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001 — it is the result
        found = describe(error, function)
        return {
            "breach": getattr(type(error), "breach", "exception"),
            "message": _describe(error),
            "error": [found.kind, found.message, found.where, found.trace],
        }


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


def _restrict_child(packages: list[str], memory: int, seconds: float, inherited: list[int], server: int) -> None:
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != server:
        os._exit(98)
    for descriptor in inherited:
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
    """Enter an empty network namespace, inside a new user namespace where the process has no privilege."""
    libc = ctypes.CDLL(None, use_errno=True)
    return any(
        libc.unshare(flags) == 0
        for flags in (_CLONE_NEWNET | _CLONE_NEWIPC, _CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC)
    )


def _breach(status: int) -> _Result:
    if status == -signal.SIGSYS:
        return {"breach": "forbidden", "message": "a system call that is not allowed"}
    if status == -signal.SIGXCPU:
        return {"breach": "timeout", "message": "processor time ran out"}
    if status in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, 97):
        return {"breach": "memory", "message": "the process crashed, most likely out of memory"}
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
    """Return the address space of the server in bytes; 8 GiB where /proc is hidden."""
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
    except Exception:  # noqa: BLE001 — its `__str__` is untrusted code
        return type(error).__name__


def _checked(frame: bytes) -> _Result:
    """Parse a result strictly: untrusted code may control the fork that sent it."""
    try:
        result = json.loads(frame)
        if "breach" in result:
            found = {
                "breach": str(result["breach"])[:20],
                "message": printable(str(result.get("message", "")), MAX_TEXT),
            }
            return {**found, "error": _checked_error(result["error"])} if "error" in result else found
        return {"value": result["value"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {"breach": "killed", "message": "a result that cannot be read"}


def _checked_error(error: Any) -> list[str]:
    """Return class, message, place and traceback of an exception, as `CodeError` has them.

    Raises:
        ValueError: there are not four.
    """
    kind, message, where, trace = (str(part) for part in error)
    return [
        printable(kind, 100),
        printable(message, MAX_TEXT),
        printable(where, MAX_TEXT),
        printable(trace, MAX_TRACE, lines=True),
    ]


def _complete_frames(pending: bytes) -> tuple[list[bytes], bytes]:
    frames = []
    while len(pending) >= 4 and len(pending) >= 4 + (size := struct.unpack_from("<I", pending)[0]):
        frames.append(pending[4 : 4 + size])
        pending = pending[4 + size :]
    return frames, pending


def read_frame(descriptor: int) -> bytes | None:
    """Read a frame: four bytes of length, little-endian, then the body. None at the end of the stream."""
    header = _read_exactly(descriptor, 4)
    if header is None:
        return None
    size = struct.unpack("<I", header)[0]
    if size > MAX_FRAME:
        raise ValueError(f"a frame of {size} bytes; at most {MAX_FRAME}")
    return _read_exactly(descriptor, size)


def write_frame(descriptor: int, body: bytes) -> None:
    """Write a frame completely."""
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
