"""Progress: what the peers of a run have written so far, read while they write it.

Reads `metrics.jsonl` and `/status`; shows nothing and writes nothing. Invariants: a half-written line is left for the
next look; of a round that was played twice (before a crash and again after it) the last account counts; a line that is
no JSON is skipped and counted.
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
"""Accounts a peer that a runner holds: the table shows the last one, a line of JSON waits for the slowest peer."""
Line = Mapping[str, Any]


class Tail:
    """A file of JSON lines that grows; each call of `read` gives what is new and whole."""

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
        whole, newline, _ = chunk.rpartition(b"\n")
        if not newline:
            return []
        self._offset += len(whole) + 1
        return [found for line in whole.split(b"\n") if (found := self._parsed(line)) is not None]

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
    """What one peer has said of itself.

    Args:
        index: its number in the run.
        rounds: the account of each finished round, in order; of the last `keep`, where that is not 0.
        status: the last answer of `/status`; empty while there is none.
        state: what the runner knows of the process: running, restarting, finished, failed, …
        keep: how many accounts stay in memory, 0 for all; of earlier rounds only the reward does. An account takes 7
            KiB, and a run may last days.
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

    def refresh(self) -> bool:
        """Reads what is new; says whether there was anything."""
        new = [line for line in self._tail.read() if isinstance(line.get("round"), int)]
        for line in new:
            number = line["round"]
            if number in self.rounds or (self.rounds and number < max(self.rounds)):
                self.rounds = {earlier: account for earlier, account in self.rounds.items() if earlier < number}
                first = bisect_left(self._earlier, number)
                del self._earlier[first:], self._earlier_rewards[first:]
            self.rounds[number] = line
            if self.keep and len(self.rounds) > self.keep:
                self._shorten(next(iter(self.rounds)))
        return bool(new)

    def _shorten(self, played: int) -> None:
        """Keep nothing of the oldest account but its reward."""
        reward = number(self.rounds.pop(played), "reward")
        self._earlier.append(played)
        self._earlier_rewards.append(math.nan if reward is None else reward)

    def fetch_status(self, timeout_seconds: float = 1.0) -> None:
        """Asks `/status`; a peer that does not answer keeps its last answer."""
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
        """Of its endpoints, as it wrote it; None while it has none."""
        try:
            return int(json.loads(self.directory.http.read_text(encoding="utf-8"))["port"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def last(self) -> Line | None:
        return self.rounds[max(self.rounds)] if self.rounds else None

    @property
    def finished(self) -> int:
        """How many rounds are finished."""
        return len(self._earlier) + len(self.rounds)

    @property
    def rewards(self) -> list[float | None]:
        """By finished round, in order."""
        return [reward for _, reward in self.rewards_by_round()]

    def rewards_by_round(self) -> Iterator[tuple[int, float | None]]:
        """Every finished round and its reward, in order."""
        for played, reward in zip(self._earlier, self._earlier_rewards, strict=True):
            yield played, None if math.isnan(reward) else reward
        for played, account in self.rounds.items():
            yield played, number(account, "reward")


def number(account: Mapping[str, Any] | None, *path: str) -> float | None:
    """A number somewhere in an account; None where there is none, or it is not finite."""
    found: Any = account
    for key in path:
        if not isinstance(found, Mapping):
            return None
        found = found.get(key)
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    return finite(float(found))


def numbers(account: Mapping[str, Any] | None, *path: str) -> dict[str, float]:
    """The mapping of names to numbers somewhere in an account, without what is not a number."""
    found: Any = account
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    if not isinstance(found, Mapping):
        return {}
    return {str(key): value for key in found if (value := number(found, key)) is not None}


def mean(values: Iterable[float | None]) -> float | None:
    """Of those that are there; None when none is."""
    there = [value for value in values if value is not None]
    return fmean(there) if there else None


def tokens_per_second(account: Line | None) -> float | None:
    """Sampled ids per second of generation."""
    tokens, seconds = number(account, "tokens"), number(account, "seconds", "generate")
    return tokens / seconds if tokens is not None and seconds else None


def mean_rewards(peers: Iterable[PeerProgress]) -> dict[int, float]:
    """Mean reward over the peers that scored, by round, in order."""
    by_round: dict[int, list[float]] = {}
    for peer in peers:
        for played, reward in peer.rewards_by_round():
            if reward is not None:
                by_round.setdefault(played, []).append(reward)
    return {played: fmean(by_round[played]) for played in sorted(by_round)}
