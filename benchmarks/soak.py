"""A soak: a swarm of two peers plays 1,000 rounds, and the resources of its processes must not grow.

The quickstart by `swarmgame run`: hivemind, sharing, rewards in the sandbox, training, a checkpoint every 50 rounds,
held-out questions every 100. Every ten rounds each peer records its memory (resident and unique, MiB, after a garbage
collection and malloc_trim), descriptors, threads and tracked objects, and the memory of its daemon and its sandbox
(`swarm/soak.py`); on a CUDA device also torch's allocated and reserved memory. A line is fitted over the rounds after
a warm-up, in which the bounded caches fill; growth is its slope times 1,000 rounds, of the peer that grows most.
Claims: per 1,000 rounds at most 1 MiB of unique memory a process and on a device, 1,000 tracked objects, no descriptor
and no thread; the run's folder grows by its metrics and log alone, at most 8 KiB a round and peer. `day` says how many
rounds 24 hours are at the speed measured, and what a peer would have gained by then, with the slope's standard error.
Run as `python benchmarks/soak.py`; `--smoke` plays few rounds and writes nothing; `--overlap` generates ahead.

`--hostile` plays four peers for 45 minutes (`--minutes N`) among strangers that flood them, guests that come and go,
and with one daemon that dies (`swarm/hostile_soak.py`). Claims: no round of the four is lost, and their memory of the
last fifth is at most 1.1 × that of the third.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import SMOKE_SETTINGS, claim, machine, publish
from swarm.hostile_soak import HostileSoak
from swarm.soak import memory

HERE = Path(__file__).parent
GAME = HERE.parent / "examples" / "01-quickstart" / "game.yaml"
PEERS, EVERY = 2, 10
ROUNDS, WARMUP = 1000, 400
MINUTES = 45.0
FLAT = 1.1
DAY_SECONDS = 86_400
BOUNDS = {
    "peer_uss": ("MiB of unique memory, a peer", 1.0),
    "daemon_uss": ("MiB of unique memory, a daemon", 1.0),
    "sandbox_uss": ("MiB of unique memory, a sandbox", 1.0),
    "runner_uss": ("MiB of unique memory, the runner", 1.0),
    "objects": ("Python objects that the collector tracks, a peer", 1000.0),
    "descriptors": ("open descriptors, a peer", 0.5),
    "threads": ("threads, a peer", 0.5),
    "cuda_allocated": ("MiB that torch has allocated on the device", 1.0),
    "cuda_reserved": ("MiB that torch has reserved on the device", 1.0),
}
"""The claims, and how much 1,000 rounds may add. The bound of half a descriptor or thread allows for a slope that is
not exactly 0 where one is opened and closed.
"""
FOLDER_KIB = 8.0


def play(
    peers: int, rounds: int, warmup: int, overlap: bool, folder: Path, *, smoke: bool
) -> tuple[list[list[dict[str, Any]]], dict[str, float]]:
    """Play the run; return each peer's samples, and the size of the run's folder in KiB at the warm-up's end and at
    the end. A smoke run takes a sample in each of its few small rounds.
    """
    every, poll_seconds = (1, 0.05) if smoke else (EVERY, 1.0)
    probe = folder / "probe"
    probe.mkdir()
    settings = [
        "game.rewards.use=soak:ProbedRewards",
        f"game.rewards.with.folder={probe}",
        f"game.rewards.with.every={every}",
        f"game.trainer.with.overlap={str(overlap).lower()}",
        "game.progression.quorum=100%",
        "game.evaluation.everyRounds=100",
        "storage.checkpoints.everyRounds=50",
        *(SMOKE_SETTINGS if smoke else ()),
    ]
    command = [
        sys.executable,
        "-m",
        "swarmgame",
        "run",
        str(GAME),
        f"--peers={peers}",
        f"--rounds={rounds}",
        "--no-report",
    ]
    command += [f"--set={setting}" for setting in settings] + ["--runs", str(folder), "--name", "run", "--fresh"]
    paths = [str(HERE / "swarm"), *filter(None, [os.environ.get("PYTHONPATH")])]
    # A daemon's live heap is 25 MiB. With its usual GOGC of 400 garbage hides that: it grows to 165 MiB over its first
    # 1,500 exchanges, and stays there.
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "GOGC": "50"}
    sizes: dict[str, float] = {}
    runner: list[dict[str, float]] = []
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(command, env=variables, stdout=output, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                number = last_round(probe)
                if number >= warmup and "warm" not in sizes:
                    sizes |= {"warm": size_kib(folder / "run"), "warm_round": float(number)}
                # After the last round the runner reads all metrics for its summary, with libraries that it did not
                # need
                # before.
                if 0 <= number < rounds - every and (now := memory(process.pid)):
                    runner.append({"round": float(number), "runner_uss": now["uss"]})
                time.sleep(poll_seconds)
        finally:
            process.kill()
            process.wait()
    if process.returncode:
        raise SystemExit(f"the run ended with {process.returncode}:\n{(folder / 'output.txt').read_text()[-3000:]}")
    sizes |= {"end": size_kib(folder / "run")}
    held = [[json.loads(line) for line in path.read_text().splitlines()] for path in sorted(probe.glob("*.jsonl"))]
    return [*held, runner], sizes


def last_round(probe: Path) -> int:
    """Return the last round with a sample, -1 before the first."""
    found = [path.read_text().splitlines() for path in probe.glob("*.jsonl")]
    return min((int(json.loads(lines[-1])["round"]) for lines in found if lines), default=-1)


def size_kib(folder: Path) -> float:
    """Return the size of the files below a folder without checkpoints, whose number is bounded."""
    return (
        sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and "checkpoints" not in path.parts)
        / 1024
    )


def growth(samples: Sequence[dict[str, Any]], name: str, warmup: int) -> dict[str, float] | None:
    """Fit a line by least squares; return its slope per 1,000 rounds, the slope's standard error, and the first and
    last value.

    None where there are fewer than three samples behind the warm-up.
    """
    points = [(row["round"] / 1000, float(row[name])) for row in samples if row["round"] >= warmup and name in row]
    if len(points) < 3:
        return None
    xs, ys = zip(*points, strict=True)
    x0, y0 = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - x0) ** 2 for x in xs)
    slope = sum((x - x0) * (y - y0) for x, y in points) / spread if spread else math.nan
    rest = sum((y - y0 - slope * (x - x0)) ** 2 for x, y in points) / max(1, len(points) - 2)
    error = math.sqrt(rest / spread) if spread else math.nan
    return {
        "per_1000_rounds": round(slope, 4),
        "standard_error": round(error, 4),
        "first": round(ys[0], 3),
        "last": round(ys[-1], 3),
    }


def hostile(minutes: float, *, smoke: bool) -> None:
    """Play the hostile soak, and publish it."""
    began = machine()
    with tempfile.TemporaryDirectory() as folder:
        found = HostileSoak(Path(folder), minutes * 60).play()
    claims = [
        claim("rounds of honest peers that were lost", found["rounds_lost"], at_most=0),
        *(
            claim(f"{name} of the last fifth of the time, of that of the third", figures["ratio"], at_most=FLAT)
            for name, figures in found["memory"].items()
        ),
    ]
    publish("soak_hostile", {"claims": claims, "minutes": minutes, **found}, began=began, smoke=smoke)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--smoke", action="store_true", help="one peer, few small rounds, nothing written")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--overlap", action="store_true", help="with trainer.with.overlap; written as soak_overlap")
    parser.add_argument("--hostile", action="store_true", help="among strangers, with churn and a dead daemon")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of the hostile soak; default: 45")
    given = parser.parse_args()
    if given.hostile:
        hostile(given.minutes, smoke=given.smoke)
        return
    peers, rounds, warmup = (1, 5, 2) if given.smoke else (PEERS, given.rounds, min(WARMUP, given.rounds // 2))
    began = machine()
    with tempfile.TemporaryDirectory() as folder:
        samples, sizes = play(peers, rounds, warmup, given.overlap, Path(folder), smoke=given.smoke)
    fits = {
        name: [fit for rows in samples if (fit := growth(rows, name, warmup)) is not None]
        for name in (*BOUNDS, "peer_rss")
    }
    worst = {name: max(found, key=lambda fit: fit["per_1000_rounds"]) for name, found in fits.items() if found}
    claims = [
        claim(f"growth per 1,000 rounds: {what}", worst[name]["per_1000_rounds"], at_most=bound)
        for name, (what, bound) in BOUNDS.items()
        if name in worst
    ]
    folder_kib = (
        (sizes["end"] - sizes["warm"]) / peers / max(1.0, rounds - sizes["warm_round"]) if "warm" in sizes else math.nan
    )
    claims.append(
        claim("growth of the run's folder without checkpoints: KiB a round and peer", folder_kib, at_most=FOLDER_KIB)
    )
    seconds = max(
        (rows[-1]["time"] - rows[0]["time"]) / (rows[-1]["round"] - rows[0]["round"]) for rows in samples[:peers]
    )
    day = DAY_SECONDS / seconds
    gained = {
        key: round(worst["peer_uss"][name] * day / 1000, 1)
        for key, name in (("mib", "per_1000_rounds"), ("error", "standard_error"))
    }
    body = {
        "claims": claims,
        "shape": {"peers": peers, "rounds": rounds, "warmup": warmup, "overlap": given.overlap},
        "growth": worst,
        "day": {"seconds_a_round": round(seconds, 4), "rounds": round(day), "peer_uss_gained": gained},
    }
    publish("soak_overlap" if given.overlap else "soak", body, began=began, smoke=given.smoke)


if __name__ == "__main__":
    main()
