"""Files of rows: JSON lines, CSV, TSV, Parquet, and folders of .txt files.

Every row comes with its place, for messages: the line of a text file, or the number of the row. A file that would be
read only in part is refused: rows that are longer or shorter than the header, names that appear twice, an open
quotation mark, a wrong encoding. A byte-order mark and the line ends of Windows do not matter.
"""

from __future__ import annotations

import csv
import importlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from swarmgame import bounded_json
from swarmgame.errors import BadData

SEPARATOR = "\n---\n"
"""Separates question and answer in a .txt file; a file without it has no answer."""
SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")

Row = Mapping[str, Any]
PlacedRow = tuple[str, Row]
"""The place of a row in its source, for messages, and the row."""


def rows_of_file(path: Path) -> Iterator[PlacedRow]:
    """Yield the rows of a file with one of `SUFFIXES`.

    Raises:
        BadData: it cannot be read completely; with the line.
    """
    match path.suffix.lower():
        case ".jsonl" | ".ndjson":
            return _json_lines(path)
        case ".csv":
            return _separated(path, ",")
        case ".tsv":
            return _separated(path, "\t")
        case ".parquet":
            return _parquet(path)
    raise ValueError(f"{path} has none of the suffixes {', '.join(SUFFIXES)}")


def rows_of_texts(folder: Path, question: str, answer: str) -> Iterator[PlacedRow]:
    """Yield a row for each .txt file of a folder: the question, the answer, and the file's name.

    Args:
        question, answer: names of the columns; no answer where that is empty.

    Raises:
        BadData: a file is not in UTF-8.
    """
    for path in sorted(folder.rglob("*.txt")):
        asked, _, known = _decoded(path.read_bytes(), str(path)).replace("\r\n", "\n").partition(SEPARATOR)
        name = str(path.relative_to(folder))
        yield name, {"file": name, **({answer: known.strip()} if answer else {}), question: asked.strip()}


def _json_lines(path: Path) -> Iterator[PlacedRow]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            place = f"line {number}"
            text = _decoded(line, f"{path}, {place}")
            if not text.strip():
                continue
            try:
                row = bounded_json.loads(text, object_pairs_hook=_object)
            except ValueError as error:
                raise BadData(f"{path}, {place}: {error}; expected one JSON object a line") from error
            if not isinstance(row, dict):
                raise BadData(f"{path}, {place}: expected an object with columns as keys")
            yield place, row


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"the key {_repeated([key for key, _ in pairs])} appears twice in an object")
    return found


def _separated(path: Path, delimiter: str) -> Iterator[PlacedRow]:
    header: list[str] = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            for cells in reader:
                place = f"line {reader.line_num}"
                if not cells:
                    continue
                if not header:
                    header = cells
                    if len(set(header)) < len(header):
                        raise BadData(f"{path}, {place}: the column {_repeated(header)} appears twice in the header")
                    continue
                if len(cells) != len(header):
                    raise BadData(
                        f"{path}, {place}: {len(cells)} cells, but the header has {len(header)}; expected one a "
                        'column, and "quotation marks" around a cell that contains the separator'
                    )
                yield place, dict(zip(header, (cell.replace("\r\n", "\n") for cell in cells), strict=True))
        except csv.Error as error:
            raise BadData(f"{path}, line {reader.line_num}: {error}") from error
        except UnicodeDecodeError as error:
            raise BadData(f"{path}, after line {reader.line_num}: {_ENCODING} ({error.reason})") from error


def _parquet(path: Path) -> Iterator[PlacedRow]:
    arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    number = 0
    try:
        file = parquet.ParquetFile(path)
        names = file.schema_arrow.names
        if len(set(names)) < len(names):
            raise BadData(f"{path}: the column {_repeated(names)} appears twice")
        # Without threads: a process that ends shortly after Arrow began its pool may abort (apache/arrow#34314).
        for batch in file.iter_batches(use_threads=False):
            for row in batch.to_pylist():
                yield f"row {number} (from 0)", row
                number += 1
    except (arrow.ArrowException, OSError) as error:
        raise BadData(f"{path} cannot be read as Parquet: {error}") from error


_ENCODING = "the text is not in UTF-8; save it in this encoding"


def _decoded(content: bytes, place: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadData(f"{place}: {_ENCODING} ({error.reason})") from error


def _repeated(names: Sequence[str]) -> str:
    return repr(Counter(names).most_common(1)[0][0])
