"""The progress of the peers of a run, read from their files while they write them.

Reads `metrics.jsonl` and `/status`; shows and writes nothing. Invariants: a half-written line is read once it is
complete; of a round that was played twice (before a crash and again after it) the last line counts; a line that is not
JSON is skipped and counted.
"""

from __future__ import annotations

import json
import math
import urllib.request
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from swarmgame.observability.run_directory import PeerDirectory
from swarmgame.observability.status import finite

MAX_LINE_BYTES = 4 << 20
KEEP_ROUNDS = 256
"""Lines a peer that a runner keeps: the table shows the last one, the JSON lines wait for the slowest peer."""
Line = Mapping[str, Any]
"""A finished round of a peer: a line of `metrics.jsonl`."""
LOST = "lost"
"""Key of a line whose round changed weights that were lost in a crash; see `metrics_file`."""


class Tail:
    """A file of JSON lines that grows; each call of `read` returns the complete lines that are new."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.skipped = 0
        self._offset = 0
        self._inode = -1

    def read(self) -> list[dict[str, Any]]:
        try:
            with self.path.open("rb") as file:
                file.seek(0, 2)
                size, inode = file.tell(), self.path.stat().st_ino
                if size < self._offset or inode != self._inode:
                    self._offset, self._inode = 0, inode
                file.seek(self._offset)
                chunk = file.read()
        except FileNotFoundError:
            return []
        complete, newline, _ = chunk.rpartition(b"\n")
        if not newline:
            return []
        self._offset += len(complete) + 1
        return [found for line in complete.split(b"\n") if (found := self._parsed(line)) is not None]

    def _parsed(self, line: bytes) -> dict[str, Any] | None:
        if not line.strip():
            return None
        try:
            found = json.loads(line) if len(line) <= MAX_LINE_BYTES else None
        except ValueError:
            found = None
        if not isinstance(found, dict):
            self.skipped += 1
            return None
        return found


@dataclass
class PeerProgress:
    """The rounds and the status of one peer.

    Args:
        index: its number in the run.
        rounds: the line of each finished round, in order; of the last `keep`, where that is not 0.
        status: the last answer of `/status`; empty while there is none.
        state: of the process, as the runner knows it: running, restarting, finished, failed, …
        keep: how many lines stay in memory, 0 for all; of earlier rounds only the reward does. A line takes 7 KiB, and
            a run may last days.
    """

    index: int
    directory: PeerDirectory
    rounds: dict[int, Line] = field(default_factory=dict)
    status: Mapping[str, Any] = field(default_factory=dict)
    state: str = ""
    keep: int = 0

    def __post_init__(self) -> None:
        self._tail = Tail(self.directory.metrics)
        self._earlier, self._earlier_rewards = array("q"), array("d")
        self._held_out: float | None = None

    def refresh(self) -> bool:
        """Read what is new, and return whether there was anything."""
        new = [line for line in self._tail.read() if isinstance(line.get("round"), int)]
        for line in new:
            number = line["round"]
            if number in self.rounds or (self.rounds and number < max(self.rounds)):
                self.rounds = {earlier: row for earlier, row in self.rounds.items() if earlier < number}
                first = bisect_left(self._earlier, number)
                del self._earlier[first:], self._earlier_rewards[first:]
            self.rounds[number] = line
            self._held_out = held_out_reward(line, self._held_out)
            if self.keep and len(self.rounds) > self.keep:
                self._shorten(next(iter(self.rounds)))
        return bool(new)

    def _shorten(self, played: int) -> None:
        """Drop all of the oldest line but its reward."""
        reward = number(self.rounds.pop(played), "reward")
        self._earlier.append(played)
        self._earlier_rewards.append(math.nan if reward is None else reward)

    def fetch_status(self, timeout_seconds: float = 1.0) -> None:
        """Request `/status`. When the peer does not answer, the last answer stays."""
        port = self.port
        if port is None:
            return
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=timeout_seconds) as answer:
                found = json.loads(answer.read(1 << 20))
        except (OSError, ValueError):
            return
        if isinstance(found, dict):
            self.status = found

    @property
    def port(self) -> int | None:
        """The port of its endpoints, from its file; None while there is none."""
        try:
            return int(json.loads(self.directory.http.read_text(encoding="utf-8"))["port"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def last(self) -> Line | None:
        return self.rounds[max(self.rounds)] if self.rounds else None

    @property
    def peer_id(self) -> str:
        """The peer's id, from its last line; empty before the first."""
        return str((self.last or {}).get("peer") or "")

    @property
    def held_out(self) -> float | None:
        """The mean reward of the newest evaluation; None before the first."""
        return self._held_out

    @property
    def finished(self) -> int:
        """Number of finished rounds."""
        return len(self._earlier) + len(self.rounds)

    @property
    def rewards(self) -> list[float | None]:
        """Of every finished round, in order."""
        return [reward for _, reward in self.rewards_by_round()]

    def rewards_by_round(self) -> Iterator[tuple[int, float | None]]:
        """Yield every finished round and its reward, in order."""
        for played, reward in zip(self._earlier, self._earlier_rewards, strict=True):
            yield played, None if math.isnan(reward) else reward
        for played, line in self.rounds.items():
            yield played, number(line, "reward")


def is_lost(line: Line) -> bool:
    """Return whether the policy has not learned from a finished round, since its weights were lost."""
    return line.get(LOST) is True


def held_out_reward(line: Line, otherwise: float | None = None) -> float | None:
    """Return the mean reward of the newest evaluation in a line; `otherwise` where it has none."""
    after, before = (number(line, key, "average", "all") for key in ("evaluation", "first_evaluation"))
    return after if after is not None else before if before is not None else otherwise


def number(line: Line | None, *path: str) -> float | None:
    """Return a number at a path in a line; None where there is none, or it is not finite."""
    found: Any = line
    for key in path:
        if not isinstance(found, Mapping):
            return None
        found = found.get(key)
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    return finite(float(found))


def numbers(line: Line | None, *path: str) -> dict[str, float]:
    """Return the mapping of names to numbers at a path in a line, without values that are no number."""
    found: Any = line
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    if not isinstance(found, Mapping):
        return {}
    return {str(key): value for key in found if (value := number(found, key)) is not None}


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are present; None without any."""
    present = [value for value in values if value is not None]
    return fmean(present) if present else None


def tokens_per_second(line: Line | None) -> float | None:
    """Return the sampled tokens per second of generation."""
    tokens, seconds = number(line, "tokens"), number(line, "seconds", "generate")
    return tokens / seconds if tokens is not None and seconds else None


def mean_rewards(peers: Iterable[PeerProgress]) -> dict[int, float]:
    """Return the mean reward over the peers that scored, by round, in order."""
    by_round: dict[int, list[float]] = {}
    for peer in peers:
        for played, reward in peer.rewards_by_round():
            if reward is not None:
                by_round.setdefault(played, []).append(reward)
    return {played: fmean(by_round[played]) for played in sorted(by_round)}
