"""The library `datasets` reads an archive as it is."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
from archived_games import play

from swarmgame.archive.files import round_files
from swarmgame.archive.reader import load
from swarmgame.archive.rows import SCHEMA

pytestmark = pytest.mark.oracle


def test_load_dataset_returns_the_rows_of_all_rounds(tmp_path: Path) -> None:
    play(tmp_path)
    archive = tmp_path / "rollouts"
    found = datasets.load_dataset(
        "parquet", data_files=str(archive / "*.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert found.column_names == SCHEMA.names
    expected = [row for file in round_files(archive) for row in load(file).rows.to_pylist()]
    assert len(found) == len(expected) == 6 * 24
    for row, wanted in zip(found, expected, strict=True):
        assert row == wanted
