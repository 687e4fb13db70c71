"""The sandbox's server: imports modules, restricts itself, and forks once for every batch of calls.

It starts clean, never handles untrusted data, and is the warm process that batches inherit their imports from
(`batch` says what happens in one). It watches the batch process: where that fails while it prepares calls, those calls
get the breach, and the others a new batch process. Started as `python -m swarmgame.sandbox.fork_server`.
Invariant: one answer for every request, and one result for every call in it.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import math
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from swarmgame.sandbox import batch, landlock, privileges, seccomp
from swarmgame.sandbox.batch import COSTLY, MAX_BREACHES, TICK_SECONDS, WALL_FACTOR, Limits, Work
from swarmgame.sandbox.frames import (
    MAX_FRAME,
    MAX_RESULT,
    TOO_LONG,
    Result,
    checked,
    first_frame,
    parsed,
    read_frame,
    write_frame,
)
from swarmgame.sandbox.huge_pages import HugePages
from swarmgame.user_code import as_number, describe

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_MARGIN = 1 << 16
"""Bytes of a message of the batch process besides the result in it."""
_BREACH = 200
"""Bytes that a breach of ours has at most in an answer."""
_NO_ROOM: Result = {
    "breach": "no room",
    "message": f"its result is one too many: those of a request may have {MAX_FRAME >> 20} MiB together",
}


def main() -> None:
    """Answer requests from standard input until it is closed."""
    requests, answers = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    settings = json.loads(read_frame(requests) or b"null")
    if settings is None:
        return
    server = ForkServer(settings, keep=(requests, answers))
    write_frame(answers, json.dumps({"protections": server.protections}).encode())
    while (frame := read_frame(requests)) is not None:
        write_frame(answers, _as_frame(server.answer(json.loads(frame))))
        server.reap()


class ForkServer:
    """Imports modules, restricts itself, and runs batches in forks."""

    def __init__(self, settings: dict[str, Any], keep: Sequence[int]) -> None:
        self._keep = tuple(keep)
        self._statm = batch.open_statm()
        self._pages = HugePages()
        self._functions: dict[str, Callable[..., Any]] = {}
        packages = [str(path) for path in settings["packages"]]
        readable = [str(path) for path in settings["readable"]]
        self._limits = Limits(packages, int(settings["memory"]), None, False)
        self.protections = self._restrict(readable)
        self._freeze()

    def _restrict(self, readable: list[str]) -> list[str]:
        applied = privileges.unshare()
        for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
            resource.setrlimit(limit, (0, 0))
        privileges.lower(resource.RLIMIT_NOFILE, 256)
        applied.append("resource limits")
        folders = [*readable, *self._limits.packages]
        if version := landlock.restrict(folders):
            applied.append(f"landlock {version}")
        imported = [str(path) for path in readable if path in sys.path]
        user = privileges.unprivileged_user(imported)
        without = user is not None or _can_read_without_capabilities(imported)
        self._limits = replace(self._limits, user=user, keep_reading=not without)
        if _in_a_fork(lambda: privileges.drop(user, keep_reading=not without)):
            applied.append("no capabilities" if without else "no capability but to read files")
        if user is not None:
            applied.append("user nobody")
        if _in_a_fork(lambda: seccomp.install() and seccomp.install_final()):
            applied.append("seccomp")
        return applied

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            if request["op"] == "prepare":
                value = self._function(request["function"])(*request["arguments"])
                self._freeze()
                return {"value": value}
            return self._run(request)
        except Exception as error:  # noqa: BLE001 — the client raises it
            return {"error": str(describe(error))}

    def reap(self) -> None:
        """Collect the processes that have ended; those of a batch process that was killed are now this one's."""
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return

    def _function(self, name: str) -> Callable[..., Any]:
        if name not in self._functions:
            self._functions[name] = _import(name)
            self._freeze()
        return self._functions[name]

    def _freeze(self) -> None:
        """Keep the collector of a fork from touching, and so copying, what was imported."""
        gc.collect()
        gc.freeze()
        self._pages.collapse()

    def _run(self, request: dict[str, Any]) -> dict[str, Any]:
        calls: list[list[Any]] = request["calls"]
        budget = math.inf if request["budget"] is None else float(request["budget"])
        work = Work(
            self._function(request["function"]),
            calls,
            float(request["deadline"]),
            budget,
            before=self._function(request["before"]) if request["before"] else None,
            shared=int(request["shared"]),
            together=bool(request["together"]),
            trial=bool(request["trial"]),
        )
        results: dict[int, Result] = {}
        seconds = 0.0
        room = _Room(MAX_FRAME - _MARGIN - _BREACH * len(calls))
        while pending := [index for index in range(len(calls)) if index not in results]:
            breaches = sum(result.get("breach") in COSTLY for result in results.values())
            if breaches >= MAX_BREACHES:
                results |= {index: batch.not_run(breaches) for index in pending}
                break
            rest = replace(work, calls=[calls[index] for index in pending], budget=budget - seconds, breaches=breaches)
            found, more = self._fork(rest, room)
            results |= {pending[position]: result for position, result in found.items()}
            seconds += more
        return {"results": [results[index] for index in range(len(calls))], "seconds": seconds}

    def _fork(self, work: Work, room: _Room) -> tuple[dict[int, Result], float]:
        """Run a batch process. Return its results by position, at least one, and the processor seconds it used."""
        used = batch.virtual_memory(self._statm)
        reader, writer = os.pipe()
        server = os.getpid()
        child = os.fork()
        if child == 0:
            os.close(reader)
            self._become_batch(work, writer, server, used)
        os.close(writer)
        try:
            return _Watch(child, reader, work, room).run()
        finally:
            os.close(reader)

    def _become_batch(self, work: Work, writer: int, server: int, used: int) -> NoReturn:
        """Run in the fork, and exit without unwinding the server's stack."""
        try:
            for descriptor in (*self._keep, self._statm, self._pages.descriptor):
                if descriptor >= 0:
                    os.close(descriptor)
            batch.BatchProcess(work, self._limits, writer, server, used).run()
        except BaseException:  # noqa: BLE001 — the fork must not return into the server's code
            os._exit(97)
        os._exit(0)


class _Room:
    """What the results of a request may have together, in bytes, so that its answer is one frame."""

    def __init__(self, size: int) -> None:
        self._left = size

    def take(self, result: Result, size: int) -> Result:
        """Return a result of that size, or a breach where there is no room for it."""
        if size > self._left:
            return _NO_ROOM
        self._left -= size
        return result


class _Watch:
    """Reads what a batch process sends, with a deadline on what it does itself.

    Args:
        child: its process id.
        reader: descriptor of its pipe.
        room: for the results.
    """

    def __init__(self, child: int, reader: int, work: Work, room: _Room) -> None:
        self._child = child
        self._reader = reader
        self._work = work
        self._room = room
        self._results: dict[int, Result] = {}
        self._seconds = 0.0
        self._busy: int | None = None
        self._alone = False
        self._started, self._used = time.monotonic(), 0.0

    def run(self) -> tuple[dict[int, Result], float]:
        """Return the results by position, and the processor seconds of all calls."""
        failure = self._read()
        if failure is not None and (self._work.together or self._busy is not None or not self._results):
            position = len(self._results) if self._busy is None else self._busy
            calls, shared = self._work.calls, self._work.shared
            alone = self._alone or self._work.together
            for index in range(position, len(calls)):
                if index == position or (not alone and calls[index][:shared] == calls[position][:shared]):
                    self._results.setdefault(index, failure)
        return self._results, self._seconds

    def _read(self) -> Result | None:
        """Read until all results are there; else end the batch process, and return the breach."""
        received = bytearray()
        while len(self._results) < len(self._work.calls):
            if not select.select([self._reader], [], [], TICK_SECONDS)[0]:
                if self._is_late():
                    # The batch process itself counts a call when it has ended.
                    self._seconds += max(0.0, batch.processor_seconds(self._child) - self._used)
                    self._end()
                    return batch.late(self._work.deadline)
                continue
            chunk = os.read(self._reader, 1 << 16)
            received += chunk
            while (frame := first_frame(received)) is not None:
                del received[: 4 + len(frame)]
                self._take(frame)
            if not chunk:
                return batch.breach(os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1]))
            if len(received) > MAX_RESULT + _MARGIN:
                self._end()
                return TOO_LONG
        if self._work.together:
            os.kill(self._child, signal.SIGKILL)  # the other kind ends by itself, after its forks
        return None

    def _take(self, frame: bytes) -> None:
        """Read one message. That of a batch which is made together is untrusted."""
        message = parsed(frame)
        position, result = message.get("begin"), message.get("result")
        if "result" in message:
            if len(self._results) < len(self._work.calls):
                found = checked(result)
                size = len(json.dumps(found)) if self._work.together else len(frame)
                self._results[len(self._results)] = self._room.take(found, size)
            self._seconds = as_number(message.get("seconds")) or 0.0
        elif not self._work.together:
            self._busy = position if isinstance(position, int) else None
            self._alone = bool(message.get("alone"))
        if self._work.together == ("result" in message):
            self._started, self._used = time.monotonic(), batch.processor_seconds(self._child)

    def _is_late(self) -> bool:
        if self._busy is None and not self._work.together:
            return False
        used = batch.processor_seconds(self._child) - self._used
        return used > self._work.deadline or time.monotonic() - self._started > WALL_FACTOR * self._work.deadline

    def _end(self) -> int:
        os.kill(self._child, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1])


def _as_frame(answer: dict[str, Any]) -> bytes:
    """Return an answer as a frame that its reader takes."""
    body = json.dumps(answer).encode()
    if len(body) > MAX_FRAME:
        error = f"a value of {len(body)} bytes; an answer has at most {MAX_FRAME}"
        return json.dumps({"error": error}).encode()
    return body


def _in_a_fork(attempt: Callable[[], bool]) -> bool:
    """Return what a function returns in a fork, which it may restrict."""
    child = os.fork()
    if child == 0:
        os._exit(0 if attempt() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _can_read_without_capabilities(folders: Sequence[str]) -> bool:
    def attempt() -> bool:
        return privileges.drop(None) and all(os.access(folder, os.R_OK) for folder in folders)

    return _in_a_fork(attempt)


def _import(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    if not callable(found):
        raise TypeError(f"{name} is not callable")
    function: Callable[..., Any] = found
    return function


if __name__ == "__main__":
    sys.setrecursionlimit(1000)
    main()
