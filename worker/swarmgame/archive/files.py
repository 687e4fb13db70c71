"""The files of an archive: `rollouts/round-00000012-5f2a….parquet`, one a round, named with the SHA-256 of its bytes.

A file appears under its name only when it is complete. Invariant: a file whose bytes do not match its name is damaged.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from swarmgame.archive.rows import SCHEMA, Head

FORMAT_VERSION = 1
HEAD = "swarmgame"
"""Key of the file's metadata: the round, its members, the contributions by row group."""
_NAME = re.compile(r"round-(\d{8,})-([0-9a-f]{16})\.parquet")
PAGE_ROWS = 64


@dataclass(frozen=True, slots=True)
class RoundFile:
    """One file of an archive.

    Args:
        digest: the first 16 hexadecimal digits of the SHA-256 of its bytes, from its name.
    """

    round: int
    digest: str
    path: Path

    def intact(self, data: bytes) -> bool:
        """Return whether these bytes are those that were written."""
        return digest_of(data) == self.digest


def digest_of(data: bytes) -> str:
    """Return the digest that a file's name carries."""
    return sha256(data).hexdigest()[:16]


def round_files(folder: Path) -> list[RoundFile]:
    """Return the complete files of an archive, by round; none where the folder is missing."""
    found = [(match, path) for path in folder.glob("round-*.parquet") if (match := _NAME.fullmatch(path.name))]
    return sorted(
        (RoundFile(int(match[1]), match[2], path) for match, path in found), key=lambda file: (file.round, file.digest)
    )


def encode_round(head: Head, rows: pa.Table) -> bytes:
    """Return a file of a round, with the head as metadata."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        SCHEMA,
        compression="zstd",
        # One row group, because each costs 0.1 ms and 0.1 KiB a column; pages of few rows and no dictionaries, so that
        # a damaged byte is traced to the rows of its page.
        max_rows_per_page=PAGE_ROWS,
        use_dictionary=False,
        column_encoding={"logprobs.list.element": "BYTE_STREAM_SPLIT"},
        write_statistics=False,
        write_page_checksum=True,
        store_schema=False,
    ) as writer:
        writer.write_table(rows, row_group_size=max(1, rows.num_rows))
        writer.add_key_value_metadata({HEAD: json.dumps({"format": FORMAT_VERSION, **head})})
    data: bytes = sink.getvalue().to_pybytes()
    return data


def write_round(folder: Path, number: int, data: bytes) -> RoundFile:
    """Write a file, and remove any other of that round.

    Raises:
        OSError: the disk is full or gone; nothing is left of the new file.
    """
    digest = digest_of(data)
    final = folder / f"round-{number:08d}-{digest}.parquet"
    temporary = folder / f".{final.name}.{os.getpid()}"
    try:
        temporary.write_bytes(data)
        temporary.replace(final)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    for other in folder.glob(f"round-{number:08d}-*.parquet"):
        if other != final:
            other.unlink()
    return RoundFile(number, digest, final)


def remove_from(folder: Path, first_round: int) -> None:
    """Remove the rounds that will be played again, and what a crash left half written."""
    for file in round_files(folder):
        if file.round >= first_round:
            file.path.unlink()
    for leftover in folder.glob(".round-*"):
        leftover.unlink()
