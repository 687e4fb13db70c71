"""Scoring in the sandbox: a process for every answer, against one process for a batch (another checkout, `--old PATH`).

Both arms score the same answers with the same environments, in turn, each in an interpreter of its own that imports its
own checkout. A batch has 64 answers to 8 questions, as a round of 8 groups of 8 has; a single call has one answer.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import harness

LIGHT = ("products", "spell_backward")
HEAVY = ("countdown", "sudoku", "polynomial_multiplication")
ROOT = Path(__file__).resolve().parents[1]
SERVE = """
import inspect, json, sys, time
from swarmgame.sandbox.client import Sandbox
box = Sandbox()
module = "swarmgame.data.environments"
new = "before" in inspect.signature(box.call_untrusted).parameters
options = {"before": f"{module}:ready", "shared": 3, "trial": True} if new else {}
box.prepare(f"{module}:warm")
for line in sys.stdin:
    name, kind, start = json.loads(line)
    box.prepare(f"{module}:keep", name, {})
    calls = [[name, {}, start + index // 8, str(index)] for index in range(64 if kind == "batch" else 1)]
    began = time.perf_counter()
    results = box.call_untrusted(f"{module}:score", calls, **options)
    seconds = time.perf_counter() - began
    assert all(result.breach in ("", "exception") for result in results), results
    print(json.dumps(1000 * seconds / len(calls)), flush=True)
"""


class Arm:
    """A sandbox of one checkout, which measures milliseconds per answer."""

    def __init__(self, checkout: Path) -> None:
        paths = os.pathsep.join(str(checkout / name) for name in ("crds", "contracts", "worker"))
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": paths},
        )

    def measure(self, name: str, kind: str, start: int) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([name, kind, start]), file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def measure(arms: dict[str, Arm], names: Sequence[str], repeats: int, warmups: int) -> dict[str, dict[str, Any]]:
    """Return a summary in milliseconds per answer, by environment and kind of call, then by arm."""
    figures: dict[str, dict[str, Any]] = {}
    for name in names:
        for kind in ("batch", "single"):
            calls = {arm: functools.partial(measured, one, name, kind, count()) for arm, one in arms.items()}
            samples = harness.interleave(calls, repeats=repeats, warmups=warmups)
            figures[f"{name}, {kind}"] = {arm: harness.summary(values, digits=3) for arm, values in samples.items()}
    return figures


def measured(arm: Arm, name: str, kind: str, starts: Iterator[int]) -> float:
    return arm.measure(name, kind, next(starts))


def claims(figures: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    def medians(names: tuple[str, ...], kind: str, arm: str) -> list[float]:
        return [float(figures[f"{name}, {kind}"][arm]["median"]) for name in names if f"{name}, {kind}" in figures]

    found = [
        harness.claim("ms an answer in a batch of 64, light scorers", max(medians(LIGHT, "batch", "new")), at_most=2.0),
        harness.claim("ms of a single call, light scorers", max(medians(LIGHT, "single", "new")), at_most=15.0),
    ]
    if all("old" in row for row in figures.values()):
        pairs = zip(medians(HEAVY, "batch", "new"), medians(HEAVY, "batch", "old"), strict=True)
        ratio = statistics.median(new / old for new, old in pairs)
        found.append(harness.claim("heavy scorers in a batch, new / old", ratio, at_most=1.2))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--old", type=Path, help="a checkout to compare with")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--smoke", action="store_true", help="two scorers, once each; nothing is written")
    options = parser.parse_args()
    began = harness.machine()
    arms = {"new": Arm(ROOT)} | ({"old": Arm(options.old)} if options.old else {})
    try:
        if options.smoke:
            figures = measure(arms, (LIGHT[0], HEAVY[0]), repeats=1, warmups=0)
        else:
            figures = measure(arms, (*LIGHT, *HEAVY), options.repeats, warmups=2)
    finally:
        for arm in arms.values():
            arm.close()
    harness.publish("sandbox", {"claims": claims(figures), "ms": figures}, began=began, smoke=options.smoke)


if __name__ == "__main__":
    main()
