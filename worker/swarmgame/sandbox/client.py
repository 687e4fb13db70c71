"""The sandbox: functions called by name, in a process that can do nothing but compute.

Used for whatever reads a stranger's words: making a question again from a reference, scoring an answer, a game author's
reward function. Arguments and results are JSON; nothing is pickled. A call that breaks a limit is an outcome, not an
exception; only our own faults raise. The process is started on first use, with a fixed hash seed (five of
reasoning-gym's datasets depend on it), started again when it dies, and ends with us. What the kernel lets us lock is in
`protections`, and logged once. See `sandbox_child` for the other side. Invariant: `run` returns one outcome a call, in
order, whatever the calls do.
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from select import select
from typing import Any

from swarmgame.errors import SwarmGameError, Temporary

_log = logging.getLogger("swarmgame.sandbox")

_MAX_FRAME = 64 * 2**20
_START_SECONDS = 120.0
_PATIENCE = 4.0
"""Times the deadline of every call that we wait before we give the whole process up; its own watch (3 times) comes
first.
"""


class SandboxBroken(Temporary):
    """The sandbox's process could not be started, or died twice over the same request."""


class CallFailed(SwarmGameError):
    """A function that we asked the sandbox to prepare is missing or raised: our fault or the author's, not a
    stranger's.
    """


@dataclass(frozen=True, slots=True)
class CallResult:
    """What came of one call.

    Args:
        value: what the function returned; None after a breach.
        breach: empty, or its kind: program, timeout, memory, forbidden, killed, ended, exception, "not run".
        message: about the breach, for people.
    """

    value: Any = None
    breach: str = ""
    message: str = ""


class Sandbox:
    """One sandbox process, shared by the threads of a peer.

    Args:
        deadline: seconds of processor time that one call may take; three times that by the clock.
        memory: bytes that a batch of calls may allocate beyond what the imports hold.
        readable: more paths that `prepare` may read (a dataset's folder); calls may not.

    Raises:
        SandboxBroken: by every method, when no process can be had.
    """

    def __init__(self, *, deadline: float = 2.0, memory: int = 512 * 2**20, readable: Sequence[Path] = ()) -> None:
        self._deadline = deadline
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
        self, function: str, calls: Sequence[Sequence[Any]], *, deadline: float | None = None
    ) -> list[CallResult]:
        """Calls `package.module:function` once for each list of arguments, all in one locked fork.

        A batch should hold one author's words only: after three breaches the rest of it is not run.

        Args:
            function: its name; the module is imported in the sandbox.
            calls: JSON-like arguments.
        deadline: another one than the sandbox's.

        Raises:
            CallFailed: the function cannot be imported.
        """
        if not calls:
            return []
        limit = self._deadline if deadline is None else deadline
        request = {"op": "run", "function": function, "calls": [list(call) for call in calls], "deadline": limit}
        answer = self._ask(request, _START_SECONDS + len(calls) * limit * _PATIENCE)
        if "error" in answer:
            raise CallFailed(f"{function}: {answer['error']}")
        outcomes = [
            CallResult(raw.get("value"), raw.get("breach", ""), raw.get("message", "")) for raw in answer["outcomes"]
        ]
        with self._lock:
            self._breaches.update(outcome.breach for outcome in outcomes if outcome.breach)
        return outcomes

    def call_trusted(self, function: str, *arguments: Any) -> Any:
        """Calls a function of ours in the nursery itself, unguarded by a deadline. Never for a stranger's words.

        Raises:
            CallFailed: the function raised.
        """
        answer = self._ask({"op": "prepare", "function": function, "arguments": list(arguments)}, _START_SECONDS)
        if "error" in answer:
            raise CallFailed(str(answer["error"]))
        return answer["value"]

    def prepare(self, function: str, *arguments: Any) -> None:
        """The same, for what it leaves behind: imports and caches that later batches find, also when the process had to
        be started again.

        Raises:
            CallFailed: the function raised.
        """
        with self._lock:
            self.call_trusted(function, *arguments)
            self._prepared[json.dumps([function, arguments])] = (function, list(arguments))

    @property
    def protections(self) -> tuple[str, ...]:
        """What is locked besides what is always so (a clean process, a deadline): landlock, seccomp, …; starts the
        process.
        """
        with self._lock:
            self._running()
            return self._protections

    @property
    def process_id(self) -> int:
        """Of the sandbox's process; starts it."""
        with self._lock:
            return self._running().pid

    def counters(self) -> Mapping[str, int]:
        """Breaches by kind, and restarts, since the beginning."""
        with self._lock:
            counts = {f"sandbox_{kind.replace(' ', '_')}": count for kind, count in sorted(self._breaches.items())}
            return counts | ({"sandbox_restarts": self._restarts} if self._restarts else {})

    def close(self) -> None:
        """Ends the process."""
        with self._lock:
            self._end()

    def _ask(self, request: Mapping[str, Any], patience: float) -> dict[str, Any]:
        body = json.dumps(request).encode()
        if len(body) > _MAX_FRAME:
            raise ValueError(f"a request of {len(body)} bytes; the sandbox takes {_MAX_FRAME}")
        with self._lock:
            for _ in range(2):
                process = self._running()
                answer = _exchange(process, body, patience)
                if answer is not None:
                    return answer
                _log.warning("the sandbox died; starting it again")
                self._restarts += 1
                self._end()
        raise SandboxBroken("the sandbox's process died twice over one request; is there enough memory?")

    def _running(self) -> subprocess.Popen[bytes]:
        # A module beside a manifest may have become importable since the start, and what the process may read was fixed
        # then.
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
            # Some environments import matplotlib, which refuses to be imported without a folder; this one exists, and
            # stays unwritable inside.
            "MPLCONFIGDIR": tempfile.gettempdir(),
            **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
        }
        process = subprocess.Popen(
            [sys.executable, "-s", "-P", "-W", "ignore", "-m", "swarmgame.sandbox.fork_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=environment,
            cwd="/",
            start_new_session=True,
        )
        packages = _package_folders()
        greeting = {
            "memory": self._memory,
            "packages": packages,
            "readable": [*paths, *self._readable],
        }
        answer = _exchange(process, json.dumps(greeting).encode(), _START_SECONDS)
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
                    "this kernel lets the sandbox lock little: answers of strangers run with your user's rights, guarded only by limits"
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
    """The one sandbox that the parts of a peer share: the last to let go ends it."""

    _lock = threading.Lock()
    _sandbox: Sandbox | None = None
    _holders = 0

    @classmethod
    def hold(cls) -> Sandbox:
        """The sandbox; every call must be matched by a `release`."""
        with cls._lock:
            cls._holders += 1
            if cls._sandbox is None:
                cls._sandbox = Sandbox()
            return cls._sandbox

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
    """Where the interpreter and installed packages lie, and this package: all that a locked fork may still read."""
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


def _exchange(process: subprocess.Popen[bytes], body: bytes, patience: float) -> dict[str, Any] | None:
    """Sends a frame and waits for its answer; None when the process died, fell silent or talked nonsense."""
    assert process.stdin is not None
    assert process.stdout is not None
    until = time.monotonic() + patience
    try:
        view = memoryview(struct.pack("<I", len(body)) + body)
        while view:
            view = view[os.write(process.stdin.fileno(), view) :]
        header = _read(process.stdout.fileno(), 4, until)
        size = struct.unpack("<I", header)[0]
        if size > _MAX_FRAME:
            return None
        answer = json.loads(_read(process.stdout.fileno(), size, until))
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
