"""Functions of all benchmarks: interleaved arms, medians, claims, and one JSON line per run.

A benchmark alternates between its arms on one machine in one run, so that other load affects all arms alike. It is not
a test: figures are recorded with the machine and its load, and a missed claim is recorded as missed. Invariant: a
committed result has the date, versions, processor and load of its measurement.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "trl", "hivemind", "reasoning-gym")
SMOKE_SETTINGS = (
    "model.uri=builtin://tiny?layers=1&hidden=32&accuracy=0",
    "game.data.with.questionsPerRound=2",
    "game.trainer.with.generations=2",
    "game.evaluation.questions=2",
    "game.evaluation.samples=1",
)
"""Settings with which a smoke run plays the quickstart: a model that is not trained before, and little work a round."""


def interleave(arms: Mapping[str, Callable[[], float]], *, repeats: int, warmups: int = 2) -> dict[str, list[float]]:
    """Run the arms A B A B …; each call returns its measurement (usually seconds). Warm-ups are run and dropped."""
    samples: dict[str, list[float]] = {name: [] for name in arms}
    for repeat in range(warmups + repeats):
        for name, arm in arms.items():
            measured = arm()
            if repeat >= warmups:
                samples[name].append(measured)
    return samples


def now() -> float:
    """Return the time after all work of the device is done."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def summary(samples: Sequence[float], *, digits: int = 5) -> dict[str, float | int]:
    """Return median, 95th percentile (nearest rank), extremes and count; NaN without samples."""
    if not samples:
        return {"median": math.nan, "p95": math.nan, "min": math.nan, "max": math.nan, "count": 0}
    ordered = sorted(samples)
    figures = {
        "median": statistics.median(ordered),
        "p95": ordered[math.ceil(0.95 * len(ordered)) - 1],
        "min": ordered[0],
        "max": ordered[-1],
    }
    return {**{name: round(value, digits) for name, value in figures.items()}, "count": len(ordered)}


def claim(what: str, measured: float, *, at_least: float | None = None, at_most: float | None = None) -> dict[str, Any]:
    """Return a figure with its bound and whether it was met. NaN meets no bound."""
    met = (
        measured == measured and (at_least is None or measured >= at_least) and (at_most is None or measured <= at_most)
    )
    bounds = {name: bound for name, bound in (("at_least", at_least), ("at_most", at_most)) if bound is not None}
    return {"what": what, "measured": round(measured, 4), **bounds, "met": met}


def machine() -> dict[str, Any]:
    """Return the processor, its cores, the load of the last minute, and the packages' versions."""
    return {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in PACKAGES if _installed(name)},
        "commit": _commit(),
    }


def publish(name: str, body: Mapping[str, Any], *, began: Mapping[str, Any], smoke: bool = False) -> dict[str, Any]:
    """Print the run as one JSON line, and write it to `results/<name>.json` unless it was a smoke run.

    Args:
        body: claims and figures; NaN becomes null.
        began: `machine()` before the first arm; the load after the last one is added.
    """
    line = {
        "benchmark": name,
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "smoke": smoke,
        **body,
        "machine": {**began, "load_at_end": round(os.getloadavg()[0], 2)},
    }
    text = json.dumps(_finite(line), ensure_ascii=False)
    print(text, flush=True)
    if not smoke:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    return line


def result(name: str) -> dict[str, Any] | None:
    """Return the last written run of a benchmark, or None."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _commit() -> str:
    """Return the checkout's commit, or `GIT_COMMIT` where the code was copied without its history."""
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return os.environ.get("GIT_COMMIT") or done.stdout.strip() or "unknown"
