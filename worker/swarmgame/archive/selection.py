"""Chooses rollouts of a run's archives: by round, peer and environment, the best, the worst or the longest."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swarmgame.archive.files import RoundFile, round_files
from swarmgame.archive.reader import load
from swarmgame.errors import BadData

Row = Mapping[str, Any]
"""One rollout: the archive's columns, and `archive`, the index of the peer whose archive holds it."""


@dataclass(frozen=True)
class Filter:
    """Which rollouts.

    Args:
        round: None: every round.
        environment: empty: every one.
        own_only: only what the archive's peer generated itself.
    """

    round: int | None = None
    environment: str = ""
    own_only: bool = True


def rows_of(archives: Mapping[int, Path], wanted: Filter, damaged: Callable[[str], None]) -> Iterator[Row]:
    """Yield the rollouts of some archives, peer by peer, in the order of rounds.

    Args:
        archives: folders by the peer's index.
        damaged: gets a sentence about each file that cannot be read; its rollouts are left out.
    """
    for index, folder in archives.items():
        for file in round_files(folder):
            if wanted.round is None or file.round == wanted.round:
                yield from _rows(index, file, wanted, damaged)


def _rows(index: int, file: RoundFile, wanted: Filter, damaged: Callable[[str], None]) -> Iterator[Row]:
    try:
        stored = load(file)
    except BadData as error:
        damaged(str(error))
        return
    for row in stored.rows.to_pylist():
        if (row["own"] or not wanted.own_only) and wanted.environment in ("", row["environment"]):
            yield {"archive": index, **row}


def best(rows: Iterable[Row], count: int) -> list[Row]:
    """Return the rollouts with the highest rewards; of equal ones the newest."""
    return sorted(_scored(rows), key=lambda row: (-row["reward"], -row["round"]))[:count]


def worst(rows: Iterable[Row], count: int) -> list[Row]:
    """Return the rollouts with the lowest rewards; of equal ones the newest."""
    return sorted(_scored(rows), key=lambda row: (row["reward"], -row["round"]))[:count]


def longest(rows: Iterable[Row], count: int) -> list[Row]:
    """Return the rollouts with the most tokens; of equal ones the newest."""
    return sorted(rows, key=lambda row: (-len(row["token_ids"]), -row["round"]))[:count]


def _scored(rows: Iterable[Row]) -> Sequence[Row]:
    return [row for row in rows if row["reward"] is not None and not math.isnan(row["reward"])]
