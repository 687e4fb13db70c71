"""The file `metrics.jsonl`: one line for each finished round.

Invariant: after a resume at round r the file holds exactly the rounds below r, each once, at whatever moment the
earlier process was killed.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from swarmgame.game.report import Observer, RoundReport
from swarmgame.game.state import GameState, Rewards


class MetricsFile(Observer):
    """Writes a JSON line for each finished round.

    Args:
        path: made when missing.
        index: the peer's number in the run, written into every line.
        first_round: lines of this and later rounds are removed: they will be played again.
    """

    def __init__(self, path: Path, *, index: int, first_round: int) -> None:
        self._path = path
        self._index = index
        self._truncate(first_round)

    def _truncate(self, first_round: int) -> None:
        if not self._path.exists():
            return
        kept = [line for line in self._path.read_bytes().splitlines() if _round_of(line) < first_round]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_bytes(b"".join(line + b"\n" for line in kept))
        os.replace(temporary, self._path)

    def round_finished(self, report: RoundReport, state: GameState, rewards: Rewards) -> None:
        line = json.dumps({"index": self._index, "time": time.time(), **report.as_json()}, allow_nan=False)
        with self._path.open("a") as file:
            file.write(line + "\n")


def _round_of(line: bytes) -> float:
    """Return the round of a line; infinity for one that a crash cut off."""
    try:
        return int(json.loads(line)["round"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
