"""Reads an archive: rounds with their heads, and the place of a damaged byte.

Invariant: `load` returns only bytes that match the digest in the file's name, so what it returns was written so.

Arrow reads without threads here: a process that ends shortly after its pool of threads began may abort instead
(apache/arrow#34314), and a round is small.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from swarmgame import bounded_json
from swarmgame.archive.files import FORMAT_VERSION, HEAD, PAGE_ROWS, RoundFile
from swarmgame.archive.rows import Head
from swarmgame.errors import BadData


@dataclass(frozen=True)
class StoredRound:
    """A round of an archive: its head, its rows, and the file that holds it."""

    file: RoundFile
    head: Head
    rows: pa.Table


class DamagedRound(BadData):
    """A file whose bytes are not those that were written."""


def check(file: RoundFile) -> bytes:
    """Return the bytes of a file.

    Raises:
        DamagedRound: they have changed; names the column and the rollouts that they hold.
        BadData: it cannot be read.
    """
    try:
        data = file.path.read_bytes()
    except OSError as error:
        raise BadData(f"{file.path} cannot be read: {error}") from error
    if not file.intact(data):
        raise DamagedRound(f"round {file.round}: {file.path} is damaged: {'; '.join(damage(data))}")
    return data


def load(file: RoundFile) -> StoredRound:
    """Read one round.

    Raises:
        DamagedRound: see `check`.
        BadData: another release wrote it, or it cannot be read.
    """
    parquet = pq.ParquetFile(pa.BufferReader(check(file)))
    head = _head(parquet)
    if head.get("format") != FORMAT_VERSION:
        raise BadData(
            f"{file.path} is of format version {head.get('format')}; this release reads version {FORMAT_VERSION}: use "
            "the release that wrote it"
        )
    return StoredRound(file, head, parquet.read(use_threads=False))


def _head(parquet: pq.ParquetFile) -> Mapping[str, Any]:
    found = bounded_json.loads((parquet.metadata.metadata or {})[HEAD.encode()])
    if not isinstance(found, Mapping):
        raise ValueError("the head is not a mapping")
    return found


# ── damage


def damage(data: bytes) -> list[str]:
    """Return the places where a file's bytes have changed, as phrases: column, author, stage and questions."""
    try:
        parquet = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        head, questions = _head(parquet), _questions(parquet)
        found = []
        for column in parquet.schema_arrow.names:
            row = _first_damaged_row(parquet, column)
            if row is not None:
                found.append(_place(column, row, head, questions))
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, MemoryError) as error:
        return [f"its footer, which names the columns, cannot be read ({_first_line(error)})"]
    return found or ["its footer or its first bytes have changed; all rows can be read"]


def _first_damaged_row(parquet: pq.ParquetFile, column: str) -> int | None:
    """Return the first row of the first page of a column that cannot be read."""
    read = 0
    try:
        for batch in parquet.iter_batches(batch_size=1, columns=[column], use_threads=False):
            read += batch.num_rows
    except (pa.ArrowException, OSError):
        # The end of a page's last list is known from the page after it: that one is damaged.
        return -(-read // PAGE_ROWS) * PAGE_ROWS
    return None


def _questions(parquet: pq.ParquetFile) -> list[str]:
    """Return the question of each row; none where that column itself is damaged."""
    try:
        found: list[str] = parquet.read(columns=["question"], use_threads=False)["question"].to_pylist()
        return found
    except (pa.ArrowException, OSError):
        return []


def _place(column: str, row: int, head: Head, questions: list[str]) -> str:
    start = 0
    authors = []
    for each in head["contributions"]:
        if start < row + PAGE_ROWS and row < start + each["rows"]:
            authors.append(f"{each['author']} (round {each['author_round']}, stage {each['stage']})")
        start += each["rows"]
    end = min(row + PAGE_ROWS, start)
    groups = ", ".join(dict.fromkeys(questions[row:end])) or "unknown"
    return f"column {column}, rows {row} to {end - 1}: author {', '.join(authors)}, groups {groups}"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
