"""Real swarms for tests: `swarmgame run` with its peers as processes, watched through the files that they write.

A command that is run to its end is called in the test's process, which has made its imports, and its peers fork from
one server for all tests of this process; one that is stopped or killed is a process of its own. Every process ends with
the test's process, also when that is killed.
"""

from __future__ import annotations

import io
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import IO, Any

import pytest
from safetensors.torch import load_file

from swarmgame.cli.main import run_command
from swarmgame.launch.fork_server import PeerForkServer
from swarmgame_common.parent_death import VARIABLE

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "examples"
CALLED = {"run", "validate", "report", "export", "rollouts", "replay", "new", "env", "components"}
"""Commands that leave nothing behind in their process."""
PACKAGES = ("crds", "contracts", "worker")
TIMEOUT_SECONDS = 240.0


def lines(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a metrics file; one that is being written is left for later."""
    complete = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in complete]


def metrics(run: Path, index: int) -> list[dict[str, Any]]:
    """Return the finished rounds of a peer of a local run."""
    return lines(run / "peers" / str(index) / "metrics.jsonl")


def reproducible(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the metrics that must not depend on time: all but clocks, bytes, and the outcomes of messages."""
    return [
        {
            k: v
            for k, v in row.items()
            if k not in {"time", "seconds", "outcomes", "bytes_sent", "bytes_received", "counters"}
        }
        for row in rows
    ]


def newest_weights(run: Path, index: int) -> dict[str, Any]:
    """Return the tensors of a peer's newest checkpoint."""
    return dict(load_file(newest_checkpoint(run, index) / "tensors.safetensors"))


def newest_checkpoint(run: Path, index: int) -> Path:
    """Return the folder of a peer's newest checkpoint."""
    return max((run / "peers" / str(index) / "checkpoints").glob("round-*"))


def wait_until(condition: Callable[[], bool], what: str, process: subprocess.Popen[str] | None = None) -> None:
    """Wait until a condition holds; fail with its name after a time, or at once when the process that should bring it
    about has ended.
    """
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while True:
        code = process.poll() if process else None  # before the condition, which its last act may bring about
        if condition():
            return
        assert time.monotonic() < deadline, f"waited {TIMEOUT_SECONDS:.0f} s until {what}"
        assert code is None, f"the process ended with {code} before {what}"
        time.sleep(0.05)


def environment() -> dict[str, str]:
    """Return the environment of a process that ends with its parent."""
    return {**os.environ, VARIABLE: "1"}


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "swarmgame", *map(str, arguments)]


def run_to_end(
    *arguments: str | Path, expect: int = 0, folder: Path = ROOT, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Call a command in this process, to its end. It must have the expected exit code, and raise nothing. A peer, which
    sets up logs and signals of its process, gets one of its own.

    Args:
        folder: the current folder of the command.
        variables: of its environment, besides those of this process.
    """
    if arguments[0] not in CALLED:
        return process_to_end(*arguments, expect=expect, folder=folder, **variables)
    output, errors = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, _modules_removed(), _threads_restored():
        patch.chdir(folder)
        patch.setenv(VARIABLE, "1")
        for name, value in variables.items():
            patch.setenv(name, value)
        patch.setattr("swarmgame.launch.local.PeerForkServer", lambda modules, notify: nullcontext(fork_server()))
        with redirect_stdout(output), redirect_stderr(errors):
            code = run_command([*map(str, arguments)])
    done = subprocess.CompletedProcess(arguments, code, output.getvalue(), errors.getvalue())
    _assert_code(done, expect)
    return done


@cache
def fork_server() -> PeerForkServer:
    """Start the server of all peers of this process's tests. The kernel ends it with this process."""
    modules = (
        "swarmgame.cli.main",
        "swarmgame.runtime.peer",
        "swarmgame.swarm.transports.libp2p",
        "swarmgame.trainer.grpo.trainer",
        "swarmgame.trainer.policy_gradient",
        "transformers.models.auto.modeling_auto",
        "transformers.models.llama.modeling_llama",
    )
    return PeerForkServer(modules, notify=pytest.fail)


@contextmanager
def _modules_removed() -> Iterator[None]:
    """Forget the modules of games that the block imports: another test has others of the same names."""
    before = {*sys.modules}
    yield
    packages = tuple(map(str, (sys.prefix, sys.base_prefix, *(ROOT / each for each in PACKAGES))))
    for name in {*sys.modules} - before:
        if not (getattr(sys.modules[name], "__file__", None) or sys.prefix).startswith(packages):
            del sys.modules[name]


@contextmanager
def _threads_restored() -> Iterator[None]:
    """Give torch the number of threads again that it had: a replay uses that of the run."""
    import torch

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def process_to_end(
    *arguments: str | Path, expect: int = 0, folder: Path = ROOT, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command as a process of its own, to its end; as `run_to_end` else."""
    done = subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        cwd=folder,
        check=False,
        env={**environment(), **variables},
    )
    _assert_code(done, expect)
    return done


def output_of(code: str, folder: Path) -> str:
    """Run the code of a page of the documentation in a folder, in this process; return its output."""
    output = io.StringIO()
    file = folder / "code_of_a_page.py"
    file.write_text(code)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output):
        patch.chdir(folder)
        runpy.run_path(str(file), run_name="__main__")
    return output.getvalue()


def _assert_code(done: subprocess.CompletedProcess[str], expect: int) -> None:
    assert done.returncode == expect, (
        f"exit code {done.returncode}, expected {expect}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    )


class BackgroundCommand(subprocess.Popen[str]):
    """A command in a session of its own, whose output goes to a file: a pipe that nobody reads would stop it."""

    def __init__(self, arguments: Sequence[str | Path], output: IO[bytes]) -> None:
        self._output = output
        super().__init__(
            command(*arguments),
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env=environment(),
            start_new_session=True,
        )

    def shown(self) -> str:
        """Return all that it and its children have written so far."""
        number = self._output.fileno()
        return os.pread(number, os.fstat(number).st_size, 0).decode(errors="replace")


@contextmanager
def running(*arguments: str | Path) -> Iterator[BackgroundCommand]:
    """Run a command in the background; kill it with all its children at the end, and print the end of its output, which
    pytest shows with a failure.
    """
    with tempfile.TemporaryFile() as output:
        process = BackgroundCommand(arguments, output)
        try:
            yield process
        finally:
            for pid in (*descendants(process.pid), process.pid):
                kill(pid)
            process.wait()
            print(process.shown()[-3000:])


def reachable(process: BackgroundCommand) -> dict[str, Any]:
    """Return the event with the addresses and the command to join, as soon as the process has written it."""

    def events() -> list[str]:
        complete = process.shown().split("\n")[:-1]
        return [line for line in complete if line.startswith('{"event": "reachable"')]

    wait_until(lambda: bool(events()), "the command has shown its addresses", process)
    return dict(json.loads(events()[0]))


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Kill a process, if it still exists."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def descendants(pid: int) -> list[int]:
    """Return all descendants of a process, the youngest generation last."""
    found: list[int] = []
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            parent = int(stat.rsplit(")", 1)[1].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    left = [pid]
    while left:
        below = children.get(left.pop(), [])
        found += below
        left += below
    return found


def environment_of(pid: int) -> bytes:
    """Return the variables of a process, each between zero bytes; empty where it has ended."""
    try:
        return b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def peer_process(runner: int, index: int) -> int:
    """Return the process id of a peer of a local run: a fork of this name, or a command with this index."""
    for pid in descendants(runner):
        try:
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if name == f"peer-{index}" or (b"peer" in arguments and f"--index={index}".encode() in arguments):
            return pid
    raise AssertionError(f"peer {index} has no process")
