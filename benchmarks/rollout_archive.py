"""The cost of the archive of rollouts, as a share of the round, and its size.

`swarmgame run` plays the quickstart as it is, four peers on this machine. Each peer logs how long its archive kept a
processor or made the round wait, and its files have a size; metrics.jsonl has the seconds of the rounds. Both are of
one run, so the share does not depend on other load as a comparison of two runs would. The hash of the weights is
measured apart, on a model of the same size. Claims: at most 3 % of the rounds' seconds, with the hash; at most 200 MB
are kept after an hour (older rounds are removed).
Run as `python benchmarks/rollout_archive.py`; `--smoke` is quick and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import SMOKE_SETTINGS, claim, machine, publish, summary

from swarmgame.archive.files import round_files
from swarmgame.archive.reader import load
from swarmgame_api.observability import RolloutsSpec

GAME = Path(__file__).parent.parent / "examples" / "01-quickstart" / "game.yaml"
DROPPED = 4
"""Rounds at the beginning of a run that do not count."""
PARAMETERS = 135_000


def play(rounds: int, dropped: int, peers: int, settings: Sequence[str], folder: Path) -> list[dict[str, Any]]:
    """Play one run; return the figures of each peer, without those of its first `dropped` rounds."""
    command = [
        sys.executable, "-m", "swarmgame", "run", str(GAME), f"--peers={peers}", f"--rounds={rounds + dropped}",
        "--no-report", "--runs", str(folder), "--name", "run", *(f"--set={each}" for each in settings),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=3_600)
    return [figures(folder / "run" / "peers" / str(peer), dropped) for peer in range(peers)]


def figures(peer: Path, dropped: int) -> dict[str, Any]:
    lines = [json.loads(line) for line in (peer / "metrics.jsonl").read_text().splitlines()][dropped:]
    logged = re.findall(r"archived (\d+) rounds in ([\d.]+) s", (peer / "log.jsonl").read_text())
    files = round_files(peer / "rollouts")[dropped:]
    (rounds, seconds), *_ = logged
    return {
        "archive_seconds": float(seconds) / int(rounds),
        "round_seconds": statistics.median(line["seconds"]["round"] for line in lines),
        "bytes": statistics.mean(file.path.stat().st_size for file in files),
        "rollouts": statistics.mean(load(file).rows.num_rows for file in files),
        "interval": (lines[-1]["time"] - lines[0]["time"]) / (len(lines) - 1),
    }


def hash_seconds(repeats: int) -> list[float]:
    """Return the seconds of the hash of a model as large as the quickstart's."""
    import torch

    from swarmgame.runtime.weights import weights_hash

    class Weights:
        def __init__(self) -> None:
            self.tensors = {f"layer {layer}": torch.randn(PARAMETERS // 30) for layer in range(30)}

        def weights(self) -> dict[str, torch.Tensor]:
            return self.tensors

    trainer = Weights()
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        weights_hash(trainer)  # type: ignore[arg-type]
        found.append(time.perf_counter() - began)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--smoke", action="store_true", help="one peer, three small rounds, nothing written")
    parser.add_argument("--rounds", type=int, default=60, help="rounds that count")
    given = parser.parse_args()
    peers, dropped, rounds = (1, 1, 2) if given.smoke else (4, DROPPED, given.rounds)
    began = machine()
    with tempfile.TemporaryDirectory() as folder:
        found = play(rounds, dropped, peers, SMOKE_SETTINGS if given.smoke else (), Path(folder))
    hashed = summary(hash_seconds(50))
    shares = [(each["archive_seconds"] + hashed["median"]) / each["round_seconds"] for each in found]
    hourly = sum(each["bytes"] * 3600 / each["interval"] for each in found) / 1e6
    claims = [
        claim("share of the round, archive and hash of the weights", statistics.mean(shares), at_most=0.03),
        claim("MB kept after an hour, all peers", min(hourly, peers * RolloutsSpec().max_bytes / 1e6), at_most=200),
    ]
    shape = {"peers": peers, "rounds": rounds, "game": "01-quickstart"}
    body = {
        "claims": claims,
        "mb_written_an_hour": round(hourly, 1),
        "shape": shape,
        "peers": found,
        "hash_seconds": hashed,
    }
    publish("rollout_archive", body, began=began, smoke=given.smoke)


if __name__ == "__main__":
    main()
