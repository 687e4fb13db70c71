"""A fork server for the peers of a local run: the large imports happen once, and each peer is a fork.

A peer imports torch, transformers and hivemind, which takes seconds of a processor; four peers on two cores would do it
four times. The server imports them while the runner checks the game, and then forks a process for each peer, which runs
`python -m swarmgame peer …` as a command would: same arguments, environment, output and exit code, a process group of
its own. The server computes nothing and has one thread, so a fork is safe; it is not used on machines with an
accelerator, whose drivers do not survive a fork, nor over torch.distributed. When the server ends, its peers end, and
the runner starts them as commands.

The runner and the server exchange JSON in packets of a socket pair:

    {"arguments": ["peer", …], "environment": {…}, "output": "/…/output.log", "name": "peer-0"} →
    ← {"started": 4711}, and later {"ended": 4711, "code": 0}
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from swarmgame.errors import writing
from swarmgame.launch.peer_process import ChildProcess, start_command
from swarmgame.launch.pod import peer_program
from swarmgame_api.manifest import SwarmGame
from swarmgame_common.parent_death import set_parent_death_signal

ACCELERATORS = (Path("/dev/nvidiactl"), Path("/dev/dxg"), Path("/dev/kfd"))
"""Devices of the drivers of CUDA, of CUDA under Windows, and of ROCm."""
_PACKET = 1 << 20
_ENTRY_POINTS = {"data": "swarmgame.data", "rewards": "swarmgame.rewards", "trainer": "swarmgame.trainers"}


def can_fork(manifest: SwarmGame) -> bool:
    """Return whether the peers of a game can be forks, on this machine, of a process that has imported torch.

    A closed world restarts all its peers together. A fork that restarts at once would join the group that is ending.
    """
    if manifest.spec.peers.processes_per_peer not in ("auto", 1) or manifest.spec.communication.backend != "Hivemind":
        return False
    return sys.platform == "linux" and not any(device.exists() for device in ACCELERATORS)


def modules_of(manifest: SwarmGame) -> list[str]:
    """Return the modules that every peer of a game imports. Modules of the game's author are not among them."""
    game, model = manifest.spec.game, manifest.spec.model
    found = ["swarmgame.cli.main", "swarmgame.runtime.peer", "swarmgame.swarm.transports.libp2p"]
    for kind, group in _ENTRY_POINTS.items():
        own = entry_points(group=group, name=getattr(game, kind).use)
        found += [entry.module for entry in own if entry.module.startswith("swarmgame.")]
    if game.trainer.use == "trl":
        found.append("swarmgame.trainer.trl.learner")  # it imports TRL, which takes seconds
    if model is not None:
        found += ["transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto"]
        builtin = model.uri.startswith("builtin://")
        found += ["transformers.models.llama.modeling_llama" if builtin else "transformers.modeling_utils"]
    if manifest.spec.coordination.mode != "None":
        found += ["swarmgame.chain.reporter", "swarmgame_chain.contract", "swarmgame_chain.providers"]
    return found


# ── the runner's side


class ForkedProcess:
    """A peer that the server has forked. Its exit code comes from the server, which is its parent."""

    def __init__(self, pid: int, receive: Callable[[bool], None]) -> None:
        self.pid = pid
        self.code: int | None = None
        self._receive = receive

    def poll(self) -> int | None:
        self._receive(False)
        return self.code

    def wait(self) -> int:
        while self.code is None:
            self._receive(True)
        return self.code

    def terminate(self) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)


class PeerForkServer:
    """Starts the server, and requests peers of it. Use it in one thread.

    Args:
        modules: imported before the first fork.
        notify: gets a sentence when the server has ended and peers are started as commands.
    """

    def __init__(self, modules: Sequence[str], notify: Callable[[str], None]) -> None:
        self._notify = notify
        self._peers: dict[int, ForkedProcess] = {}
        self._started: ForkedProcess | None = None
        self._lost = False
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno()), *modules],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # a module that cannot be imported is reported by the peers, as commands
                # More threads would start with the libraries, before the fork; each peer sets its own number.
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
                preexec_fn=set_parent_death_signal,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self, command: Sequence[str], environment: Mapping[str, str], output: Path) -> ChildProcess:
        """Start a peer of one process as a fork, and anything else as a command; returns when the fork runs."""
        program = [*peer_program(1)]
        if list(command[: len(program)]) != program:
            return start_command(command, environment, output)
        with writing(output):
            output.open("ab").close()  # a fork that could not open it would end without a word
        request = {
            "arguments": list(command[program.index("swarmgame") + 1 :]),
            "environment": dict(environment),
            "output": str(output.absolute()),
            "name": f"peer-{output.parent.name}",
        }
        try:
            self._connection.send(json.dumps(request).encode())
        except OSError:  # the server has ended, which `_receive` finds, or the environment is too large for a packet
            self._receive(False)
            return start_command(command, environment, output)
        return self._started_peer() or start_command(command, environment, output)

    def close(self) -> None:
        """End the server, and with it all peers that still run."""
        self._process.kill()
        self._process.wait()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _started_peer(self) -> ForkedProcess | None:
        """Wait for the fork that was requested; None when the server has ended instead."""
        while self._started is None and not self._lost:
            self._receive(True)
        peer, self._started = self._started, None
        return peer

    def _receive(self, wait: bool) -> None:
        """Take note of what the server reports; with `wait` of one report at least."""
        while not self._lost and (wait or select.select([self._connection], [], [], 0)[0]):
            wait = False
            try:
                packet = self._connection.recv(_PACKET)
            except ConnectionError:
                packet = b""
            if not packet:
                self._lose()
                return
            report = json.loads(packet)
            if "started" in report:
                self._started = self._peers[report["started"]] = ForkedProcess(report["started"], self._receive)
            else:
                self._peers.pop(report["ended"]).code = report["code"]

    def _lose(self) -> None:
        self._lost = True
        code = self._process.wait()
        self._notify(f"the fork server of the peers ended with code {code}; peers are started as commands from now on")
        for peer in self._peers.values():
            peer.code = -signal.SIGKILL  # by the kernel, as their parent has ended
        self._peers.clear()


# ── the server's side


def main() -> None:
    """Import the modules, and fork peers until the runner closes the connection. A fork goes on as the peer."""
    descriptor, *modules = sys.argv[1:]
    connection = socket.socket(fileno=int(descriptor))
    for module in modules:
        importlib.import_module(module)
    # The forks share the memory of all objects that exist now, unless a garbage collection writes to them.
    gc.collect()
    gc.freeze()
    server = os.getpid()
    request = _serve(connection)
    if request is not None:
        _become_peer(request, server)


def _serve(connection: socket.socket) -> dict[str, Any] | None:
    """Answer requests. Return a request in the fork that is its peer, and None when the runner is gone."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(writing)
    requests = connection.fileno()
    while True:
        ready, _, _ = select.select([requests, reading], [], [])
        if reading in ready:
            os.read(reading, _PACKET)
            for pid, code in _ended():
                connection.send(json.dumps({"ended": pid, "code": code}).encode())
        if requests in ready:
            packet = connection.recv(_PACKET)
            if not packet:
                return None
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for descriptor in (reading, writing):
                    os.close(descriptor)
                connection.close()
                return dict(json.loads(packet))
            os.setpgid(pid, pid)  # here, so that the runner can kill the group as soon as it knows its id
            connection.send(json.dumps({"started": pid}).encode())


def _ended() -> list[tuple[int, int]]:
    """Return pid and exit code of each child that has ended."""
    found = []
    with suppress(ChildProcessError):
        while (waited := os.waitpid(-1, os.WNOHANG))[0]:
            found.append((waited[0], os.waitstatus_to_exitcode(waited[1])))
    return found


def _become_peer(request: Mapping[str, Any], server: int) -> NoReturn:
    """Turn this fork into what the command would start, run it, and end with its exit code."""
    os.setpgid(0, 0)
    set_parent_death_signal()
    if os.getppid() != server:  # it ended before the signal was set
        os._exit(1)
    Path("/proc/self/comm").write_text(request["name"])  # all forks have the server's command line in `ps`
    output = os.open(request["output"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.environ.clear()
    os.environ.update(request["environment"])
    if "numpy" in sys.modules:  # Python seeds its own generator again in a fork, numpy does not
        sys.modules["numpy"].random.seed()
    sys.argv = ["swarmgame", *request["arguments"]]
    code = 0
    try:
        runpy.run_module("swarmgame", run_name="__main__", alter_sys=True)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # noqa: BLE001 — as the interpreter ends on it
        traceback.print_exc()
        code = 1
    # The interpreter's own end would visit, and so copy, every object of the imports: two seconds of a processor.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with suppress(OSError):  # the disk of its output is full: the exit code says it
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
