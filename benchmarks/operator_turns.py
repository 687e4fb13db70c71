"""The operator of another commit and this one in turn, on one machine: apply → Job, and processor time a game.

Absolute figures of `operator_scale.py` depend on how fast the machine's API server is. This script shows what a change
of the operator did: each turn starts a new cluster, applies games at a pace, and ends when every game has its Job. The
other commit is checked out beside this clone for the time of the run, and measured by its own `operator_scale.py`.

    python benchmarks/operator_turns.py 51e888f [--games 240] [--pace 8] [--turns 3]
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
from harness import machine, publish, summary

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("crds", "contracts", "worker", "operator", "hack/native-cluster")


def growth(tree: Path, data: Path, options: argparse.Namespace) -> dict[str, float]:
    """Apply games to a new cluster; return the seconds until they have Jobs, and the operator's processor time."""
    path = os.pathsep.join(str(tree / name) for name in PACKAGES)
    script = tree / "benchmarks" / "operator_scale.py"
    command = [sys.executable, str(script), "--smoke", "--keep", str(data)]
    command += ["--games", str(options.games), "--pace", str(options.pace)]
    arm = subprocess.Popen(command, cwd=tree, env=os.environ | {"PYTHONPATH": path}, stderr=subprocess.PIPE, text=True)
    assert arm.stderr is not None
    last = ""
    try:
        for last in arm.stderr:
            if "apply_to_job_seconds" in last:
                found = ast.literal_eval(last[last.index("{") :])["apply_to_job_seconds"]
                return {"median": found["median"], "p99": found["p99"], "processor_ms_a_game": _spent(arm.pid, options)}
    finally:
        arm.terminate()
        arm.wait()
    raise SystemExit(f"{script} ended with {arm.returncode} before every game had its Job: {last.strip()}")


def _spent(pid: int, options: argparse.Namespace) -> float:
    """Return the processor time of the operator under a process, in milliseconds a game."""
    operators = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # one that ends just now
            if "swarmgame_operator.main" in process.cmdline():
                operators.append(process)
    seconds: float = sum(sum(process.cpu_times()[:2]) for process in operators)
    return round(1000 * seconds / options.games, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="the other commit")
    parser.add_argument("--games", type=int, default=240)
    parser.add_argument("--pace", type=float, default=8.0)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    began = machine()
    arms: dict[str, list[dict[str, float]]] = {"other": [], "this": []}
    with tempfile.TemporaryDirectory(prefix="swarmgame-turns-") as folder:
        other = Path(folder) / "other"
        subprocess.run(["git", "worktree", "add", "-q", "--detach", other, options.commit], cwd=ROOT, check=True)
        try:
            for turn in range(options.turns):
                for name, tree in (("other", other), ("this", ROOT)):
                    arms[name].append(growth(tree, Path(folder) / f"{name}-{turn}", options))
                    print(name, arms[name][-1], file=sys.stderr, flush=True)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", other], cwd=ROOT, check=True)
    figures = {
        name: {what: summary([turn[what] for turn in turns], digits=3) for what in turns[0]}
        for name, turns in arms.items()
    }
    ratios = {
        what: round(
            statistics.median(mine[what] / theirs[what] for theirs, mine in zip(*arms.values(), strict=True)), 3
        )
        for what in figures["this"]
    }
    work = {"other": options.commit, "games": options.games, "pace_a_second": options.pace, "turns": options.turns}
    publish("operator_turns", {"claims": [], "work": work, "arms": figures, "this_by_other": ratios}, began=began)


if __name__ == "__main__":
    main()
