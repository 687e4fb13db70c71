"""A vLLM server as a child of its peer: found, started, awaited, ended with all its processes.

The peer starts it, so that every way to run a peer has it, and `process_guard` ends its whole process group when the
peer is gone, killed included. What it prints goes to a file of its own. Nothing here knows HTTP but `/health`. Imports
no torch: `swarmgame run` searches for the program before anything is loaded.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from swarmgame.errors import InvalidManifest, Temporary, writing
from swarmgame.inference import process_guard
from swarmgame_api.sampler import SERVER_ENVIRONMENT, VllmOptions

logger = logging.getLogger(__name__)

PATH = "spec.game.trainer.with.sampler"
"""Where the manifest has the options."""
HOST = "127.0.0.1"
POLL_SECONDS = 0.2
DOUBT_SECONDS = 30.0
"""How long a server that failed may be unhealthy before it is started again."""
PROGRESS_SECONDS = 30.0
LAST_BYTES = 4_096


def find_program(options: VllmOptions) -> str:
    """Return the path of the program that starts a server.

    Raises:
        InvalidManifest: there is none.
    """
    found = shutil.which(options.command[0])
    if found is None:
        raise InvalidManifest(
            f"{PATH}.command",
            list(options.command),
            "a program on PATH. vLLM pins its own PyTorch, so install it in an environment of its own "
            "(`uv tool install vllm`, or a virtual "
            "environment whose bin/vllm is named here), or give the url of a server that runs",
        )
    return found


class VllmProcess:
    """One server, started again by `ensure` when it has ended.

    Args:
        options: program, time limits.
        arguments: behind the program's own, from the port.
        log: file that gets what the server prints.
    """

    def __init__(self, options: VllmOptions, arguments: Callable[[int], Sequence[str]], log: Path) -> None:
        self._program = (find_program(options), *options.command[1:])
        self._arguments = arguments
        self._startup_seconds = options.startup_seconds
        self.log = log
        self._guard: subprocess.Popen[bytes] | None = None
        # One port for all starts: the other ranks of the peer know it.
        self._port = _free_port()
        self._ready = self._doubted = False
        self.starts = 0

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self._port}"

    @property
    def alive(self) -> bool:
        """Whether the server's process runs; it may still be loading."""
        return self._guard is not None and self._guard.poll() is None

    def start(self) -> None:
        """Start the server and return at once."""
        self.stop()
        self._ready = False
        self.starts += 1
        with writing(self.log):
            self.log.parent.mkdir(parents=True, exist_ok=True)
            output = self.log.open("ab")
        command = [sys.executable, "-S", process_guard.__file__, *self._program, *self._arguments(self._port)]
        with output:
            self._guard = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=_environment(),
                start_new_session=True,  # Ctrl-C is for the peer, which then ends the server
            )
        logger.info("starting vLLM on port %d: %s", self._port, " ".join(command[3:]))

    def ensure(self) -> None:
        """Return when the server is ready, starting it first where it does not run.

        Raises:
            Temporary: it ended while starting, or took longer than `startupSeconds`.
        """
        if self._doubted and self.alive and not wait_until_healthy(self.url, DOUBT_SECONDS, lambda: self.alive):
            self.stop()
        self._doubted = False
        if not self.alive:
            if self._ready:
                logger.warning("vLLM has ended (%s); starting it again", self._ended())
            self.start()
        if self._ready:
            return
        if not wait_until_healthy(self.url, self._startup_seconds, lambda: self.alive, f"; its log is {self.log}"):
            if not self.alive:
                raise Temporary(f"vLLM {self._ended()} while starting; its log is {self.log}:\n{self._last_lines()}")
            self.stop()
            raise Temporary(
                f"vLLM was not ready after {self._startup_seconds} seconds; its log is {self.log}. "
                f"Raise {PATH}.startupSeconds if it needs longer"
            )
        self._ready = True

    def doubt(self) -> None:
        """Take note that a request failed: `ensure` then checks the server's health too. A server outlives its engine
        for a moment.
        """
        self._doubted = True

    def stop(self) -> None:
        """End the server and all its processes; returns when they are gone."""
        if self._guard is None:
            return
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        try:
            self._guard.wait(process_guard.GRACE_SECONDS + 10)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()
        self._guard = None

    def _ended(self) -> str:
        code = None if self._guard is None else self._guard.poll()
        return "did not start" if code is None else f"ended with exit code {code}"

    def _last_lines(self) -> str:
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_BYTES))
                return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-15:])
        except OSError:
            return ""


def wait_until_healthy(
    url: str, seconds: float, worth_waiting: Callable[[], bool] = lambda: True, where: str = ""
) -> bool:
    """Return whether a server is ready, within that time; logs now and then that it waits."""
    began = logged = time.monotonic()
    while not _healthy(url):
        now = time.monotonic()
        if not worth_waiting() or now - began > seconds:
            return False
        if now - logged >= PROGRESS_SECONDS:
            logged = now
            logger.info("waiting for vLLM at %s, %.0f seconds so far%s", url, now - began, where)
        time.sleep(POLL_SECONDS)
    logger.info("vLLM is ready at %s after %.1f seconds", url, time.monotonic() - began)
    return True


def _environment() -> dict[str, str]:
    """Ours without what is meant for the peer: vLLM has an environment and libraries of its own."""
    ours = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "OMP_NUM_THREADS", "SWARMGAME_")
    distributed = (
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "GROUP_RANK",
        "ROLE_",
        "MASTER_ADDR",
        "MASTER_PORT",
        "TORCHELASTIC_",
    )
    return {name: text for name, text in os.environ.items() if not name.startswith((*ours, *distributed))} | dict(
        SERVER_ENVIRONMENT
    )


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as free:
        free.bind((HOST, 0))
        port: int = free.getsockname()[1]
        return port


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False
