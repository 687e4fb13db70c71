"""The time from `swarmgame run` to the first finished round of the quickstart, four peers on this machine.

The caches are warm: a first run, which does not count, makes the model and reads the packages from the disk. Each run
is a new process. What it had done when is read from its output and from the files of its peers, so a profile costs the
run nothing: the checks (until it prints "preparing"), the model and the start of the peers (until the first output
file), the peers' imports (until all answer over HTTP), their components and joining the swarm (until all have begun
round 0), and round 0, which begins with an evaluation of the model that no update has changed. Claim: at most 15 s.
Run as `python benchmarks/time_to_first_round.py`; `--smoke` is quick and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

from harness import SMOKE_SETTINGS, claim, machine, publish, summary

GAME = Path(__file__).parent.parent / "examples" / "01-quickstart" / "game.yaml"
PHASES = ("checks", "start of the peers", "imports", "components and joining", "round 0")


def play(peers: int, settings: Sequence[str], runs: Path, name: str) -> dict[str, Any]:
    """Play one round; return the seconds to its end, those of each phase, and the processor seconds of all processes.

    The processor seconds include the end of the run, without a report.
    """
    command = [
        sys.executable, "-m", "swarmgame", "run", str(GAME), f"--peers={peers}", "--rounds=1", "--no-report",
        "--runs", str(runs), "--name", name, *(f"--set={each}" for each in settings),
    ]  # fmt: skip
    directories = [runs / name / "peers" / str(index) for index in range(peers)]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    seen: dict[str, float] = {}
    shown: list[str] = []
    errors = iter(process.stderr.readline, "")
    watchers = [
        Thread(target=_read, args=(errors, shown, lambda line: line.startswith("preparing"), seen, "checks")),
        Thread(target=_wait_for, args=(directories, process, seen)),
    ]
    for watcher in watchers:
        watcher.start()
    for line in process.stdout:
        if line.startswith('{"round": 0,'):  # other events come before it
            seen.setdefault("round 0", time.time())
    code = process.wait()
    for watcher in watchers:
        watcher.join()
    if code != 0:
        raise RuntimeError("".join(shown))
    rows = [json.loads((directory / "metrics.jsonl").read_text().splitlines()[0]) for directory in directories]
    seen["components and joining"] = max(row["time"] - row["seconds"]["round"] for row in rows)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    ends = [began, *(seen[phase] for phase in PHASES)]
    return {
        "seconds": seen["round 0"] - began,
        "phases": {phase: round(end - start, 3) for phase, start, end in zip(PHASES, ends, ends[1:], strict=False)},
        "processor_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }


def _read(lines: Any, shown: list[str], wanted: Callable[[str], bool], seen: dict[str, float], phase: str) -> None:
    """Keep the lines, and note when the first one that is wanted came."""
    for line in lines:
        shown.append(line)
        if wanted(line):
            seen.setdefault(phase, time.time())


def _wait_for(directories: list[Path], process: subprocess.Popen[str], seen: dict[str, float]) -> None:
    """Note when the first peer has been started, and when all serve their status."""
    for phase, file, enough in (
        ("start of the peers", "output.log", any),
        ("imports", "http.json", all),
    ):
        while process.poll() is None and not enough((directory / file).exists() for directory in directories):
            time.sleep(0.01)
        seen[phase] = time.time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--smoke", action="store_true", help="one peer, one small round, nothing written")
    parser.add_argument("--repeats", type=int, default=7, help="runs that count")
    given = parser.parse_args()
    peers, repeats, warmups = (1, 1, 0) if given.smoke else (4, given.repeats, 1)
    settings = SMOKE_SETTINGS if given.smoke else ()
    began = machine()
    with tempfile.TemporaryDirectory() as folder:
        played = [play(peers, settings, Path(folder), f"run-{number}") for number in range(warmups + repeats)]
    found = played[warmups:]
    seconds = summary([each["seconds"] for each in found], digits=3)
    body = {
        "claims": [claim("seconds to the first round, quickstart, warm caches", seconds["median"], at_most=15.0)],
        "shape": {"peers": peers, "repeats": repeats, "game": "01-quickstart"},
        "seconds": seconds,
        "phases": {phase: statistics.median(each["phases"][phase] for each in found) for phase in PHASES},
        "processor_seconds": summary([each["processor_seconds"] for each in found], digits=2),
    }
    publish("time_to_first_round", body, began=began, smoke=given.smoke)


if __name__ == "__main__":
    main()
