"""Real swarms for tests: `swarmgame run` as a process, watched through the files that it writes.

Every process ends with the test's process, also when that is killed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from swarmgame_common.parent_death import VARIABLE

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "examples"
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
    while not condition():
        assert time.monotonic() < deadline, f"waited {TIMEOUT_SECONDS:.0f} s until {what}"
        assert process is None or process.poll() is None, (
            f"the process ended with {process.returncode if process else None} before {what}"
        )
        time.sleep(0.05)


def environment() -> dict[str, str]:
    """Return the environment of a process that ends with its parent."""
    return {**os.environ, VARIABLE: "1"}


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "swarmgame", *map(str, arguments)]


def run_to_end(*arguments: str | Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, which must have the expected exit code."""
    done = subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        cwd=ROOT,
        check=False,
        env=environment(),
    )
    assert done.returncode == expect, (
        f"exit code {done.returncode}, expected {expect}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    )
    return done


@contextmanager
def running(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """Run a command in the background, in a session of its own; kill it with all its children at the end."""
    process = subprocess.Popen(
        command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=environment(),
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for pid in (*descendants(process.pid), process.pid):
            kill(pid)
        process.communicate()


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


def peer_process(runner: int, index: int) -> int:
    """Return the process id of a peer of a local run."""
    for pid in descendants(runner):
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"peer" in arguments and f"--index={index}".encode() in arguments:
            return pid
    raise AssertionError(f"peer {index} has no process")
