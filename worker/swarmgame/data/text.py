"""The `text` data: questions and answers from files or the hub.

Reads JSON lines, CSV, Parquet, a folder of .txt files, a folder that `datasets` saved, and `hf://org/name[@revision]`.
It has no scorer: use it with the `exact` or `function` rewards. Invariant: only question and answer identify a row;
other columns are metadata.
"""

from __future__ import annotations

import csv
import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import Annotated, Any

from pydantic import Field

from swarmgame.data.dataset import HUB, PATH, FiniteConfig, FiniteData, Side, existing, load_from_hub
from swarmgame.errors import BadData, InvalidManifest
from swarmgame.game.components import ComponentContext, Demonstration, Demonstrations
from swarmgame.game.state import Message, Prompt, Question, QuestionRef
from swarmgame.seeds import derive_seed

SEPARATOR = "\n---\n"
"""Separates question and answer in a .txt file; a file without it has no answer."""

Row = Mapping[str, Any]


class TextConfig(FiniteConfig):
    """Which rows are used, and how they are phrased."""

    question: str = "question"
    """Column of the question."""
    answer: str = "answer"
    """Column of the answer; empty where rows have none."""
    answer_after: str = ""
    """Only the text after the last such mark in the answer's column counts (`####` for GSM8K)."""
    system_prompt: str = ""
    """Put before every question as a system message."""
    prompt_template: str = "{question}"
    """The user's message; `{question}` stands for the question, and `{NAME}` for the column of that name."""
    demonstrations: Annotated[float, Field(ge=0, le=0.9)] = 0.1
    """Share of the rows kept for the warm start of a builtin model only; 0 for a model that needs none."""


class TextData(FiniteData, Demonstrations):
    """See the module."""

    Config = TextConfig
    config: TextConfig

    def __init__(self, config: TextConfig, context: ComponentContext | None = None) -> None:
        context = context or ComponentContext()
        self._rows = list(islice(_read(config, context), config.max_rows))
        self._check(config)
        self._pairs = [self._pair(config, row) for row in self._rows]
        contents = (question.encode() + b"\0" + answer.encode() for question, answer in self._pairs)
        super().__init__(config, context, contents, config.demonstrations)

    def question(self, reference: QuestionRef) -> Question:
        question, answer = self._pairs[reference.index]
        return Question(reference, question, answer, self._rows[reference.index])

    def prompt(self, question: Question) -> Prompt:
        text = self.config.prompt_template
        for column, value in {**question.metadata, "question": question.text}.items():
            text = text.replace(f"{{{column}}}", str(value))
        user, system = Message("user", text), self.config.system_prompt
        return Prompt(question_id=question.id, messages=(Message("system", system), user) if system else (user,))

    def demonstrate(self, seed: int, count: int) -> Sequence[Demonstration]:
        """Return rows of the demonstrations' share that have an answer, repeated when there are fewer than `count`."""
        rows = [row for row in self.rows[Side.DEMONSTRATION] if self._pairs[row][1]]
        if not rows:
            return []
        chosen = Random(derive_seed("demonstrations", seed)).choices(rows, k=count)
        return [Demonstration(self.prompt(question), question.answer) for question in map(self._question, chosen)]

    @property
    def fingerprint(self) -> str:
        shape = (
            self.config.system_prompt,
            self.config.prompt_template,
            str(self.config.demonstrations),
            str(self.config.held_out),
        )
        return f"{derive_seed(self.digest, *shape):016x}"

    def _check(self, config: TextConfig) -> None:
        if not self._rows:
            raise InvalidManifest(f"{PATH}.source", config.source, "data with at least one row")
        for key, column in (("question", config.question), ("answer", config.answer)):
            if column and column not in self._rows[0]:
                raise InvalidManifest(
                    f"{PATH}.{key}", column, f"a column of {config.source}: {', '.join(map(str, self._rows[0]))}"
                )

    @staticmethod
    def _pair(config: TextConfig, row: Row) -> tuple[str, str]:
        question, answer = row.get(config.question), row.get(config.answer) if config.answer else ""
        if question is None or answer is None:
            raise BadData(
                f"{config.source}: a row without {config.question} or {config.answer}: {str(dict(row))[:200]}"
            )
        answer = str(answer).rpartition(config.answer_after)[2].strip() if config.answer_after else str(answer)
        return str(question), answer


def _read(config: TextConfig, context: ComponentContext) -> Iterator[Row]:
    if config.source.startswith(HUB):
        yield from load_from_hub(config, context)
        return
    path = existing(config.source)
    if path.is_dir():
        yield from load_from_hub(config, context) if (path / "dataset_info.json").exists() else _texts(path, config)
        return
    match path.suffix.lower():
        case ".jsonl" | ".ndjson":
            yield from _json_lines(path)
        case ".csv" | ".tsv":
            with path.open(newline="", encoding="utf-8") as file:
                yield from csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        case ".parquet":
            parquet = importlib.import_module("pyarrow.parquet")
            for batch in parquet.ParquetFile(path).iter_batches():
                yield from batch.to_pylist()
        case _:
            raise InvalidManifest(
                f"{PATH}.source", config.source, f"a .jsonl, .csv, .tsv or .parquet file, a folder, or {HUB}org/name"
            )


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise BadData(f"{path}, line {number}: {error}") from error
            if not isinstance(row, dict):
                raise BadData(f"{path}, line {number}: expected an object with columns as keys")
            yield row


def _texts(folder: Path, config: TextConfig) -> Iterator[Row]:
    for path in sorted(folder.rglob("*.txt")):
        question, _, answer = path.read_text(encoding="utf-8").partition(SEPARATOR)
        yield {config.question: question.strip(), config.answer: answer.strip(), "file": str(path.relative_to(folder))}
