"""`warnings.jsonl`: one line for each warning of a peer, written when it is found first and when its count has grown.

A line of the same code and subject replaces the one before. Invariant: a half-written line is read once it is
complete, and a line that cannot be read is skipped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from swarmgame.errors import writing
from swarmgame.observability.diagnostics.rules import SCORING_FAILED, Diagnostic
from swarmgame.observability.peer_progress import Tail


@dataclass(frozen=True, slots=True)
class RunWarning:
    """A warning of a run.

    Args:
        peers: numbers of the peers that have it.
        diagnostic: of the peer that had it first; the count is that of all peers together.
    """

    peers: tuple[int, ...]
    diagnostic: Diagnostic

    @property
    def who(self) -> str:
        """The peers, as the start of a sentence."""
        numbers = ", ".join(map(str, self.peers))
        return f"peer {numbers}" if len(self.peers) == 1 else f"peers {numbers}"

    def __str__(self) -> str:
        return f"warning: {self.who}, round {self.diagnostic.round}: {self.diagnostic}"


def append(path: Path, index: int, diagnostic: Diagnostic) -> None:
    """Append a diagnostic to a peer's file.

    Raises:
        NotWritable: the disk is full, or the folder is read-only.
    """
    line = json.dumps({"index": index, "time": time.time(), **asdict(diagnostic)})
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


class NewWarnings:
    """The warnings that the peers of a run write, each returned once, whichever peer has it first.

    Args:
        paths: the files of the peers, by index. What they hold already is left out.
    """

    def __init__(self, paths: Mapping[int, Path]) -> None:
        self._tails = {index: Tail(path) for index, path in paths.items()}
        self._shown: dict[tuple[str, str], int] = {}
        self._latest: dict[int, dict[tuple[str, str], Diagnostic]] = {index: {} for index in paths}
        for tail in self._tails.values():
            tail.read()

    def read(self) -> list[RunWarning]:
        """Return the warnings that no peer had before."""
        found = {index: _parsed(tail.read()) for index, tail in self._tails.items()}
        for index, diagnostics in found.items():
            self._latest[index].update({diagnostic.key: diagnostic for diagnostic in diagnostics})
        new = [warning for warning in _merged(found) if warning.diagnostic.key not in self._shown]
        self._shown.update({warning.diagnostic.key: warning.diagnostic.count for warning in new})
        return new

    def totals(self) -> list[str]:
        """Return a sentence for each kind of failed call that has come more often than was shown."""
        merged = _merged({index: latest.values() for index, latest in self._latest.items()})
        return [
            f"{warning.diagnostic.count} times in all: {warning.diagnostic.text}"
            for warning in merged
            if warning.diagnostic.code == SCORING_FAILED
            and warning.diagnostic.count > self._shown[warning.diagnostic.key]
        ]


def read_all(paths: Mapping[int, Path]) -> list[RunWarning]:
    """Return all warnings of a run, in the order of rounds."""
    return sorted(
        _merged({index: _parsed(Tail(path).read()) for index, path in paths.items()}),
        key=lambda warning: warning.diagnostic.round,
    )


def _parsed(lines: Iterable[Mapping[str, Any]]) -> list[Diagnostic]:
    latest: dict[tuple[str, str], Diagnostic] = {}
    for line in lines:
        try:
            values = {field.name: line[field.name] for field in fields(Diagnostic)}
        except KeyError:
            continue
        found = Diagnostic(**values)
        latest[found.key] = found
    return list(latest.values())


def _merged(found: Mapping[int, Iterable[Diagnostic]]) -> list[RunWarning]:
    """Return one warning for each code and subject."""
    peers: dict[tuple[str, str], list[int]] = {}
    first: dict[tuple[str, str], Diagnostic] = {}
    counts: dict[tuple[str, str], int] = {}
    for index, diagnostics in found.items():
        for diagnostic in diagnostics:
            key = diagnostic.key
            peers.setdefault(key, []).append(index)
            counts[key] = counts.get(key, 0) + diagnostic.count
            if key not in first or diagnostic.round < first[key].round:
                first[key] = diagnostic
    return [RunWarning(tuple(peers[key]), _with_count(diagnostic, counts[key])) for key, diagnostic in first.items()]


def _with_count(diagnostic: Diagnostic, count: int) -> Diagnostic:
    return Diagnostic(**{**asdict(diagnostic), "count": count})
