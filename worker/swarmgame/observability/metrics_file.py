"""The file `metrics.jsonl`: one line for each finished round; and `skipped.jsonl`: one for each time that rounds were
left out.

Invariant: after a resume at round r the files hold exactly the rounds below r, each once, at whatever moment the
earlier process was killed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swarmgame.errors import writing
from swarmgame.game.report import Observer, RoundReport, SkipCause
from swarmgame.game.state import GameState, Rewards
from swarmgame.observability.run_directory import write_atomically


class MetricsFile(Observer):
    """Writes a JSON line for each finished round.

    Args:
        path: made when missing.
        index: the peer's number in the run, written into every line.
        first_round: lines of this and later rounds are removed: they will be played again.
        skipped: made when missing; where rounds that were left out are written, if given.
    """

    def __init__(self, path: Path, *, index: int, first_round: int, skipped: Path | None = None) -> None:
        self._path = path
        self._index = index
        self._skipped = skipped
        for each in (path, skipped):
            if each is not None and each.exists():
                _truncate(each, first_round)

    def rounds_skipped(self, first: int, count: int, cause: SkipCause) -> None:
        if self._skipped is not None:
            _append(self._skipped, {"round": first, "count": count, "cause": str(cause)})

    def round_finished(self, report: RoundReport, state: GameState, rewards: Rewards) -> None:
        _append(self._path, {"index": self._index, "time": time.time(), **report.as_json()})


def _append(path: Path, line: Mapping[str, Any]) -> None:
    """Append a line.

    Raises:
        NotWritable: the disk is full or read-only.
    """
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, allow_nan=False) + "\n")


def _truncate(path: Path, first_round: int) -> None:
    """Keep the lines of earlier rounds."""
    kept = [
        line
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
        if _round_of(line) < first_round
    ]
    write_atomically(path, "".join(f"{line}\n" for line in kept))


def _round_of(line: str) -> float:
    """Return the round of a line; infinity for one that a crash cut off."""
    try:
        return int(json.loads(line)["round"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
