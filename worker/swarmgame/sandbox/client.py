"""The sandbox: calls functions by name, in a process that can only compute.

It is used for all code that reads untrusted data: regenerating a question from a reference, scoring an answer, a game
author's reward function. A call that evaluates anything has a process of its own, so an answer can touch no other
score. Arguments and results are JSON; nothing is pickled. The process (`fork_server`) starts on first use, with a fixed
hash seed (five of reasoning-gym's datasets depend on it), restarts when it dies, and ends with its parent.
`protections` lists what the kernel supports, and is logged once. Invariant: `call_untrusted` returns one result a call,
in order; a call that breaks a limit gives a result with a breach, not an exception.
"""

from __future__ import annotations

import json
import logging
import os
import site
import struct
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from select import select
from typing import Any, ClassVar

from swarmgame import bounded_json
from swarmgame.errors import SwarmGameError, Temporary
from swarmgame.sandbox.frames import MAX_FRAME, write_frame
from swarmgame.user_code import CodeError

_log = logging.getLogger("swarmgame.sandbox")

_START_SECONDS = 120.0
_DEEPEST = 2 * bounded_json.DEEPEST
"""Of an answer, which holds results of `DEEPEST`."""
_TIMEOUT_FACTOR = 4.0
"""The process is killed after this many deadlines a call without an answer; its own limit (3 deadlines) comes first."""


class SandboxBroken(Temporary):
    """The sandbox's process could not be started, or died twice during the same request."""


class _TooLong(ValueError):
    """A request of more than `MAX_FRAME` bytes."""


class CallFailed(SwarmGameError):
    """A function cannot be imported, or a trusted call raised: an error of ours or of the game's author."""


@dataclass(frozen=True, slots=True)
class CallResult:
    """The result of one call.

    Args:
        value: the return value; None after a breach.
        breach: empty, or its kind: program, timeout, memory, forbidden, killed, ended, exception, "not run",
            "beyond budget", "no room": the results of its request fill an answer.
        message: explains the breach.
        error: the exception, where the breach is one.
    """

    value: Any = None
    breach: str = ""
    message: str = ""
    error: CodeError | None = None


@dataclass(slots=True)
class Budget:
    """Processor time that calls may use together.

    Args:
        seconds: what is left; every batch reduces it, by a little more than there was where a call is cut off.
    """

    seconds: float


class Sandbox:
    """One sandbox process, shared by the threads of a peer.

    Args:
        deadline: most processor seconds of one call; its most wall-clock time is three times that.
        memory: most bytes that a call may allocate, beyond those of the imports.
        readable: additional paths for trusted calls (a dataset's folder); untrusted calls cannot read them.

    Raises:
        SandboxBroken: by every method, when no process can be started.
    """

    _server: ClassVar[Sequence[str]] = ("swarmgame.sandbox.fork_server",)
    """Module of the process, and its arguments."""

    def __init__(self, *, deadline: float = 2.0, memory: int = 512 * 2**20, readable: Sequence[Path] = ()) -> None:
        self.deadline = deadline
        self._memory = memory
        self._readable = tuple(str(path) for path in readable)
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._paths: frozenset[str] = frozenset()
        self._prepared: dict[str, tuple[str, list[Any]]] = {}
        self._breaches: Counter[str] = Counter()
        self._restarts = 0
        self._protections: tuple[str, ...] = ()

    def call_untrusted(
        self,
        function: str,
        calls: Sequence[Sequence[Any]],
        *,
        deadline: float | None = None,
        budget: Budget | None = None,
        before: str = "",
        shared: int = 0,
        together: bool = False,
        trial: bool = False,
    ) -> list[CallResult]:
        """Call `package.module:function` once for each list of arguments, each in a restricted process of its own.

        Put the data of one author only in a batch: after three costly breaches the rest of it is not run.

        Args:
            function: its name; the module is imported in the sandbox.
            calls: JSON-like arguments.
            deadline: instead of the sandbox's.
            budget: processor time of all calls; those beyond it have the breach "beyond budget".
            before: name of a function that is called with the first `shared` arguments of a call, once for adjacent
                calls where these are equal, and again before a process whose trial has used up what it made. The
                processes of the calls inherit what it caches. Its breach is theirs.
            together: make all calls in one restricted process, where one may change what a later one returns: for
                arguments that are never evaluated.
            trial: first try all calls in one restricted process: a call that would evaluate, import or open anything is
                given up, and made in a process of its own. For functions that keep nothing between calls.

        Raises:
            CallFailed: the function cannot be imported.
        """
        if not calls:
            return []
        limit = self.deadline if deadline is None else deadline
        request = {
            "op": "run",
            "function": function,
            "calls": [list(call) for call in calls],
            "deadline": limit,
            "budget": None if budget is None else budget.seconds,
            "before": before,
            "shared": shared,
            "together": together,
            "trial": trial,
        }
        try:
            answer = self._request(request, _START_SECONDS + 2 * len(calls) * limit * _TIMEOUT_FACTOR)
        except _TooLong as error:
            answer = {"results": [{"breach": "memory", "message": str(error)}] * len(calls), "seconds": 0.0}
        if "error" in answer:
            raise CallFailed(f"{function}: {answer['error']}")
        if budget is not None:
            budget.seconds -= answer["seconds"]
        results = [
            CallResult(
                raw.get("value"),
                raw.get("breach", ""),
                raw.get("message", ""),
                CodeError(*raw["error"]) if "error" in raw else None,
            )
            for raw in answer["results"]
        ]
        with self._lock:
            self._breaches.update(result.breach for result in results if result.breach)
        return results

    def call_trusted(self, function: str, *arguments: Any) -> Any:
        """Call a function in the fork server itself, without a deadline. Never pass untrusted data.

        Raises:
            CallFailed: the function raised.
        """
        answer = self._request({"op": "prepare", "function": function, "arguments": list(arguments)}, _START_SECONDS)
        if "error" in answer:
            raise CallFailed(str(answer["error"]))
        return answer["value"]

    def prepare(self, function: str, *arguments: Any) -> Any:
        """Make a trusted call for its side effects: imports and caches that later batches use. It is repeated after a
        restart of the process. Return what the function returns.

        Raises:
            CallFailed: the function raised.
        """
        with self._lock:
            value = self.call_trusted(function, *arguments)
            self._prepared[json.dumps([function, arguments])] = (function, list(arguments))
            return value

    @property
    def protections(self) -> tuple[str, ...]:
        """Restrictions in force, besides a clean process and a deadline: landlock, seccomp, …; starts the process."""
        with self._lock:
            self._running()
            return self._protections

    @property
    def process_id(self) -> int:
        """Id of the sandbox's process; starts it."""
        with self._lock:
            return self._running().pid

    def counters(self) -> Mapping[str, int]:
        """Return the total of breaches by kind, and of restarts."""
        with self._lock:
            counts = {f"sandbox_{kind.replace(' ', '_')}": count for kind, count in sorted(self._breaches.items())}
            return counts | ({"sandbox_restarts": self._restarts} if self._restarts else {})

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _request(self, request: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        body = json.dumps(request).encode()
        if len(body) > MAX_FRAME:
            raise _TooLong(f"a request of {len(body)} bytes; the sandbox takes {MAX_FRAME}")
        with self._lock:
            for _ in range(2):
                process = self._running()
                answer = _exchange(process, body, timeout)
                if answer is not None:
                    return answer
                _log.warning("the sandbox died; starting it again")
                self._restarts += 1
                self._end()
        raise SandboxBroken("the sandbox's process died twice during one request; is there enough memory?")

    def _running(self) -> subprocess.Popen[bytes]:
        # The readable paths are fixed when the process starts; a module beside a manifest may have become importable
        # since.
        if self._process is None or self._process.poll() is not None or not set(_import_paths()) <= self._paths:
            self._end()
            self._start()
        assert self._process is not None
        return self._process

    def _start(self) -> None:
        paths = _import_paths()
        environment = {
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
            "LANG": "C.UTF-8",
            # Some environments import matplotlib, which needs an existing folder; inside it is not writable.
            "MPLCONFIGDIR": tempfile.gettempdir(),
            **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
        }
        process = subprocess.Popen(
            [sys.executable, "-s", "-P", "-W", "ignore", "-m", *self._server],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=environment,
            cwd="/",
            start_new_session=True,
        )
        packages = _package_folders()
        settings = {
            "memory": self._memory,
            "packages": packages,
            "readable": [*paths, *self._readable],
        }
        answer = _exchange(process, json.dumps(settings).encode(), _START_SECONDS)
        if answer is None:
            process.kill()
            process.wait()
            raise SandboxBroken(
                "the sandbox's process did not start; is there enough memory, and may this user start processes?"
            )
        self._process, self._paths = process, frozenset(paths)
        if not self._protections:
            _log.info("sandbox: %s", ", ".join(answer["protections"]))
            if not {"seccomp"} & set(answer["protections"]):
                _log.warning(
                    "this kernel restricts the sandbox little: untrusted answers run with your user's rights, "
                    "under resource limits only"
                )
        self._protections = tuple(answer["protections"])
        for function, arguments in list(self._prepared.values()):
            _exchange(
                process,
                json.dumps({"op": "prepare", "function": function, "arguments": arguments}).encode(),
                _START_SECONDS,
            )

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


class SharedSandbox:
    """The sandbox that the components of a process share; the last `release` ends it."""

    _lock = threading.Lock()
    _sandbox: Sandbox | None = None
    _holders = 0

    @classmethod
    def hold(cls) -> Sandbox:
        """Return the sandbox; match every call with a `release`."""
        with cls._lock:
            cls._holders += 1
            if cls._sandbox is None:
                cls._sandbox = Sandbox()
            return cls._sandbox

    @classmethod
    @contextmanager
    def held(cls) -> Iterator[None]:
        """Keep it in the block, so that components which follow each other use one process; starts none itself."""
        cls.hold()
        try:
            yield
        finally:
            cls.release()

    @classmethod
    def release(cls) -> None:
        with cls._lock:
            cls._holders -= 1
            if cls._holders == 0 and cls._sandbox is not None:
                cls._sandbox.close()
                cls._sandbox = None


def _import_paths() -> list[str]:
    return [str(Path(entry).resolve()) for entry in sys.path if Path(entry or ".").exists()]


def _package_folders() -> list[str]:
    """Return the folders that a restricted fork can read: the interpreter, installed packages and this package."""
    folders = {sys.prefix, sys.base_prefix, sys.exec_prefix, *sysconfig.get_paths().values(), *site.getsitepackages()}
    folders |= {
        "/usr/lib",
        "/usr/lib64",
        "/lib",
        "/lib64",
        "/usr/local/lib",
        "/usr/share/zoneinfo",
        "/etc/ld.so.cache",
        "/etc/localtime",
    }
    folders |= {"/dev/null", "/dev/urandom", "/sys/devices/system/cpu", str(Path(__file__).resolve().parents[1])}
    return sorted(folder for folder in folders if folder not in ("", "/", "/usr", "/usr/local", str(Path.home())))


def _exchange(process: subprocess.Popen[bytes], body: bytes, timeout: float) -> dict[str, Any] | None:
    """Send a frame and return its answer; None when the process died, timed out or sent invalid data."""
    assert process.stdin is not None
    assert process.stdout is not None
    until = time.monotonic() + timeout
    try:
        write_frame(process.stdin.fileno(), body)
        header = _read(process.stdout.fileno(), 4, until)
        size = struct.unpack("<I", header)[0]
        if size > MAX_FRAME:
            return None
        answer = bounded_json.loads(_read(process.stdout.fileno(), size, until), deepest=_DEEPEST)
    except (OSError, EOFError, ValueError):
        return None
    return answer if isinstance(answer, dict) else None


def _read(descriptor: int, size: int, until: float) -> bytes:
    chunks = bytearray()
    while len(chunks) < size:
        if not select([descriptor], [], [], max(0.0, until - time.monotonic()))[0]:
            raise EOFError("no answer in time")
        chunk = os.read(descriptor, min(size - len(chunks), 1 << 20))
        if not chunk:
            raise EOFError("closed")
        chunks += chunk
    return bytes(chunks)
