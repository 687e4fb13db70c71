"""JSON lines between a benchmark and the processes of its arms, with a deadline on every answer.

A peer may hang, crash or print: its output goes to its log, every answer has a deadline, and at the end of a crew all
its process groups are killed, daemons included. Only the standard library is used, because both environments import
it.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any


class NoAnswer(Exception):
    """A peer did not answer in time, or ended without an answer. The message has the end of its log."""


class Peer:
    """A child process that leads its own process group."""

    def __init__(self, command: Sequence[str], *, environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        self._answers: queue.Queue[dict[str, Any] | None] = queue.Queue()
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        threading.Thread(target=self._read, daemon=True).start()

    def send(self, request: Mapping[str, Any]) -> None:
        """Send a request. A dead peer is reported by `receive`."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(dict(request)).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._answers.put(None)

    def receive(self, seconds: float) -> dict[str, Any]:
        """Return the next answer.

        Raises:
            NoAnswer: none came within `seconds`, or the process ended.
        """
        try:
            answer = self._answers.get(timeout=max(seconds, 0.0))
        except queue.Empty:
            raise NoAnswer(f"no answer within {seconds:.0f} s: {self._tail()}") from None
        if answer is None:
            raise NoAnswer(f"ended without an answer: {self._tail()}")
        return answer

    def kill(self) -> None:
        """Kill the process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(json.loads(line))
        self._answers.put(None)

    def _tail(self) -> str:
        return self.log.read_bytes()[-600:].decode(errors="replace").strip() or "nothing in its log"


class Crew:
    """The peers of one arm. As a context manager it kills all of them at the end."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = environment
        self.peers: list[Peer] = []
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        for peer in self.peers:
            peer.kill()

    def start(self, command: Sequence[str]) -> Peer:
        """Start a process with its own log."""
        peer = Peer(command, environment=self._environment, log=self._folder / f"peer-{len(self.peers)}.log")
        self.peers.append(peer)
        return peer

    def assemble(self, command: Sequence[str], count: int, seconds: float) -> None:
        """Start `count` peers (their index is appended to the command) as one swarm.

        Each receives the addresses of peer 0, answers with its own when it has joined, and then that it is ready.

        Raises:
            NoAnswer: a peer was not ready in time.
        """
        for index in range(count):
            self.start([*command, str(index)])
        first, *others = self.peers
        deadline = time.monotonic() + seconds
        first.send({"addresses": [], "peers": count})
        addresses = first.receive(seconds)["addresses"]
        for peer in others:
            peer.send({"addresses": addresses, "peers": count})
        for peer in others:
            peer.receive(deadline - time.monotonic())
        for peer in self.peers:
            peer.receive(deadline - time.monotonic())

    def request(self, request: Mapping[str, Any], seconds: float) -> list[dict[str, Any] | None]:
        """Send one request to all, and return all answers by a common deadline. None stands for a missing answer."""
        for peer in self.peers:
            peer.send(request)
        return self.answers(seconds)

    def answers(self, seconds: float) -> list[dict[str, Any] | None]:
        """Return one answer of each peer, or None."""
        deadline = time.monotonic() + seconds
        collected: list[dict[str, Any] | None] = []
        for peer in self.peers:
            try:
                collected.append(peer.receive(deadline - time.monotonic()))
            except NoAnswer:
                collected.append(None)
        return collected


class Parent:
    """The end inside a peer: it receives requests and sends answers; everything printed goes to the log."""

    def __init__(self) -> None:
        self._out: IO[bytes] = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)

    def requests(self) -> Iterator[dict[str, Any]]:
        """Yield requests until the parent closes the pipe or sends `{"leave": true}`."""
        with os.fdopen(os.dup(0), "rb") as lines:
            for line in lines:
                request = json.loads(line)
                if request.get("leave"):
                    return
                yield request

    def answer(self, **fields: Any) -> None:
        self._out.write(json.dumps(fields).encode() + b"\n")
        self._out.flush()
