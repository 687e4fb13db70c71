"""The file `metrics.jsonl`: one line for each finished round; and `skipped.jsonl`: one for each time that rounds were
left out.

A round whose weights were lost in a crash, since no checkpoint came after it, is marked with `"lost": true`. It is
played again, and then replaced, or the swarm has gone on without it, and then it stays: it was played, but the policy
has not learned from it. Invariant: after a resume at round r the files hold exactly the rounds below r without a mark,
each once, at whatever moment the earlier process was killed.
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
from swarmgame.observability.peer_progress import LOST, is_lost
from swarmgame.observability.run_directory import write_atomically


class MetricsFile(Observer):
    """Writes a JSON line for each finished round.

    Args:
        path: made when missing.
        index: the peer's number in the run, written into every line.
        first_round: lines of this and later rounds are marked as lost, until they are played again.
        skipped: made when missing; where rounds that were left out are written, if given.
    """

    def __init__(self, path: Path, *, index: int, first_round: int, skipped: Path | None = None) -> None:
        self._path = path
        self._index = index
        self._skipped = skipped
        self._lost = _mark_lost(path, first_round) if path.exists() else set()
        if skipped is not None and skipped.exists():
            _truncate(skipped, first_round)

    def rounds_skipped(self, first: int, count: int, cause: SkipCause) -> None:
        """Write how many rounds were left out. Those that an earlier process played are not among them."""
        played = {number for number in self._lost if first <= number < first + count}
        while first in played:
            first += 1
            count -= 1
            played.discard(first - 1)
        if self._skipped is not None and count > len(played):
            _append(self._skipped, {"round": first, "count": count - len(played), "cause": str(cause)})

    def round_finished(self, report: RoundReport, state: GameState, rewards: Rewards) -> None:
        if any(number >= report.round for number in self._lost):
            _truncate(self._path, report.round)
            self._lost = {number for number in self._lost if number < report.round}
        _append(self._path, {"index": self._index, "time": time.time(), **report.as_json()})


def _mark_lost(path: Path, first_round: int) -> set[int]:
    """Mark the lines of this and later rounds, and remove one that a crash cut off. Return all marked rounds."""
    text = path.read_text(encoding="utf-8", errors="replace")
    kept: list[str] = []
    lost: set[int] = set()
    for line in text.splitlines():
        found = _parsed(line)
        if found is None:
            continue
        if found["round"] >= first_round or is_lost(found):
            lost.add(found["round"])
            line = json.dumps({**found, LOST: True})
        kept.append(line)
    marked = "".join(f"{line}\n" for line in kept)
    if marked != text:
        write_atomically(path, marked)
    return lost


def _append(path: Path, line: Mapping[str, Any]) -> None:
    """Append a line.

    Raises:
        NotWritable: the disk is full or read-only.
    """
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, allow_nan=False) + "\n")


def _truncate(path: Path, first_round: int) -> None:
    """Keep the lines of earlier rounds."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    kept = [line for line in lines if (found := _parsed(line)) is not None and found["round"] < first_round]
    write_atomically(path, "".join(f"{line}\n" for line in kept))


def _parsed(line: str) -> dict[str, Any] | None:
    """Return a line with a round; None for one that a crash cut off."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("round"), int) else None
