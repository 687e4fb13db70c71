"""Real swarms for tests: `swarmgame run` as a process of its own, watched through the files that it writes."""

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

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "examples"
PATIENCE_SECONDS = 240.0


def lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file; one that is being written is left for later."""
    whole = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in whole]


def metrics(run: Path, index: int) -> list[dict[str, Any]]:
    """What a peer of a local run has finished."""
    return lines(run / "peers" / str(index) / "metrics.jsonl")


def learnt(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What of the metrics must not depend on time: everything but clocks, bytes, and how messages came in."""
    return [
        {
            k: v
            for k, v in row.items()
            if k not in {"time", "seconds", "outcomes", "bytes_sent", "bytes_received", "counters"}
        }
        for row in rows
    ]


def newest_weights(run: Path, index: int) -> dict[str, Any]:
    """The tensors of a peer's newest checkpoint."""
    newest = max((run / "peers" / str(index) / "checkpoints").glob("round-*"))
    return dict(load_file(newest / "tensors.safetensors"))


def wait_until(condition: Callable[[], bool], what: str, process: subprocess.Popen[str] | None = None) -> None:
    """Polls until something is so; fails with its name, and at once when the process that should bring it about has
    ended.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE_SECONDS:.0f} s in vain until {what}"
        assert process is None or process.poll() is None, (
            f"the process ended with {process.returncode if process else None} before {what}"
        )
        time.sleep(0.05)


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "swarmgame", *map(str, arguments)]


def run_to_end(*arguments: str | Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """A command, to its end and with the exit code that is expected."""
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=PATIENCE_SECONDS, cwd=ROOT, check=False
    )
    assert done.returncode == expect, (
        f"exit code {done.returncode}, expected {expect}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    )
    return done


@contextmanager
def running(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A command in the background, in a session of its own; killed with all its children at the end."""
    process = subprocess.Popen(
        command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for pid in (*descendants(process.pid), process.pid):
            kill(pid)
        process.communicate()


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Kills one process, if it is still there."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def descendants(pid: int) -> list[int]:
    """All processes below one, the youngest generation last."""
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
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def peer_process(runner: int, index: int) -> int:
    """The process id of a peer of a local run."""
    for pid in descendants(runner):
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"peer" in arguments and f"--index={index}".encode() in arguments:
            return pid
    raise AssertionError(f"peer {index} has no process")
