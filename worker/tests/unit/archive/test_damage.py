"""A damaged byte is noticed wherever it is, and traced to the column and the author."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archived_games import record
from contributions import make_contribution

from swarmgame.archive.files import HEAD, PAGE_ROWS, RoundFile, digest_of, encode_round
from swarmgame.archive.reader import DamagedRound, damage, load
from swarmgame.archive.rows import SCHEMA, round_rows
from swarmgame.errors import BadData


@pytest.fixture(scope="module")
def data() -> bytes:
    """A round of three contributions of 64 rollouts: each fills a page."""
    contributions = [make_contribution(name, 7, groups=8, rollouts=8) for name in ("me", "left", "right")]
    head, rows = round_rows(record(contributions[0], contributions[1:]))
    assert rows.num_rows == 3 * PAGE_ROWS
    return encode_round({**head, "round": 7}, rows)


def flipped(data: bytes, at: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 0x10
    return bytes(changed)


@pytest.mark.parametrize("column", ["text", "token_ids", "logprobs", "question", "prompt_ids", "announcement"])
def test_a_byte_of_the_last_page_of_a_column_names_the_column_and_the_last_author(data: bytes, column: str) -> None:
    group = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0)
    (chunk,) = [c for c in map(group.column, range(group.num_columns)) if c.path_in_schema.split(".")[0] == column]
    end = chunk.data_page_offset + chunk.total_compressed_size
    (place,) = damage(flipped(data, end - 2))
    assert place.startswith(f"column {column}, rows 128 to 191: author right (round 7, stage 0)")
    assert "left" not in place


def test_every_byte_is_covered(data: bytes) -> None:
    footer = len(data) - 6_000
    for at in (*range(0, footer, 397), *range(footer, len(data), 61)):
        changed = flipped(data, at)
        assert digest_of(changed) != digest_of(data)
        assert damage(changed)


def test_a_damaged_file_is_refused_by_name(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("archive") / "round-00000007.parquet"
    path.write_bytes(flipped(data, len(data) // 2))
    with pytest.raises(DamagedRound, match=r"round 7: .* is damaged: column"):
        load(RoundFile(7, digest_of(data), path))


def test_a_file_that_was_cut_off_is_refused(data: bytes) -> None:
    assert len(damage(data[:-500])) == 1
    assert "footer" in damage(data[:-500])[0]
    assert "footer" in damage(b"")[0]


def test_a_file_of_another_format_is_refused_with_what_to_do(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("archive") / "file"
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, SCHEMA) as writer:
        writer.add_key_value_metadata({HEAD: json.dumps({"format": 99})})
    path.write_bytes(sink.getvalue().to_pybytes())
    with pytest.raises(BadData, match="format version 99"):
        load(RoundFile(1, digest_of(path.read_bytes()), path))
