"""The `text` data: questions and answers from files or the hub.

Reads JSON lines, CSV, Parquet, a folder of .txt files, a folder that `datasets` saved, and `hf://org/name[@revision]`.
A question is a text, or a list of messages (`[{"role": "user", "content": …}]`). It has no scorer: use it with the
`exact` or `function` rewards. docs/reference/rows.md lists what a cell may hold. Invariant: question, answer and the
columns of the template identify a row; other columns are metadata.
"""

from __future__ import annotations

import json
import logging
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, islice
from random import Random
from typing import Annotated

from pydantic import Field

from swarmgame.data.cells import CellProblem, is_conversation, messages_of_cell, question_of_cell, text_of_cell
from swarmgame.data.dataset import HUB, PATH, FiniteConfig, FiniteData, Side, existing, load_from_hub
from swarmgame.data.files import SUFFIXES, PlacedRow, Row, rows_of_file, rows_of_texts
from swarmgame.data.template import Template
from swarmgame.errors import BadData, InvalidManifest
from swarmgame.game.components import ComponentContext
from swarmgame.game.demonstrations import Demonstration, Demonstrations
from swarmgame.game.state import Message, Prompt, Question, QuestionRef
from swarmgame.seeds import derive_seed

_log = logging.getLogger("swarmgame.data")

_SPLIT = "by question"
"""Part of the fingerprint: the rule of the split decides which rows are demonstrations."""


class TextConfig(FiniteConfig):
    """Which rows are used, and how they are phrased."""

    question: str = "question"
    """Column of the question: a text, or a list of messages of which the last is the user's."""
    answer: str = "answer"
    """Column of the answer; empty where rows have none."""
    answer_after: str = ""
    """Only the text after the last such mark in the answer's column counts (`####` for GSM8K)."""
    system_prompt: str = ""
    """Put before every question as a system message."""
    prompt_template: str = "{question}"
    """The user's message; `{question}` stands for the question, and `{NAME}` for the column of that name. `{{NAME}}` is
    the name in braces.
    """
    answer_in_prompt: bool = False
    """Whether `promptTemplate` may use the column of the answer, which the policy then sees."""
    demonstrations: Annotated[float, Field(ge=0, le=0.9)] = 0.1
    """Share of the rows kept for the warm start of a builtin model only; 0 for a model that needs none."""


class TextData(FiniteData, Demonstrations):
    """See the module."""

    Config = TextConfig
    config: TextConfig

    def __init__(self, config: TextConfig, context: ComponentContext | None = None) -> None:
        context = context or ComponentContext()
        placed = list(islice(_read(config, context), config.max_rows + 1))
        if len(placed) > config.max_rows:
            placed.pop()
            _log.warning("only the first %d rows of %s are read: maxRows", config.max_rows, config.source)
        columns = _checked_columns(config, placed)
        template = config.prompt_template
        answer = "" if config.answer_in_prompt else config.answer
        self._template = Template(template, {*columns, "question"}, answer=answer, path=f"{PATH}.promptTemplate")
        self._others = [name for name in self._template.names if name not in ("question", config.question)]
        self._rows = [row for _, row in placed]
        self._pairs = _checked_pairs(config, placed, self._others)
        super().__init__(config, context, self._contents(), config.demonstrations, self._asked())

    def question(self, reference: QuestionRef) -> Question:
        question, answer = self._pairs[reference.index]
        return Question(reference, question, answer, self._rows[reference.index])

    def prompt(self, question: Question) -> Prompt:
        """Return the prompt of a question: the system prompt if there is one, the messages before the question where
        the row has some, and the template.
        """
        columns = {name: text_of_cell(question.metadata.get(name)) for name in self._others}
        user = self._template.fill({**columns, self.config.question: question.text, "question": question.text})
        before = self._before(question.metadata)
        if self.config.system_prompt:
            before = (Message("system", self.config.system_prompt), *before)
        return Prompt(question_id=question.id, messages=(*before, Message("user", user)))

    def place_of_row(self, row: int) -> str:
        """Return the file and line of a row. The source is read again, since places are not kept."""
        found, _ = next(islice(_read(self.config, self.context), row, None), (f"row {row} (from 0)", {}))
        return f"{self.config.source}, {found}"

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
            _SPLIT,
        )
        return f"{derive_seed(self.digest, *shape):016x}"

    def _before(self, row: Row) -> tuple[Message, ...]:
        """Return the messages before the question."""
        cell = row.get(self.config.question)
        return messages_of_cell(cell)[:-1] if is_conversation(cell) else ()

    def _contents(self) -> Iterator[bytes]:
        """Yield question, answer and all else that a prompt contains, for each row."""
        for row, (question, answer) in zip(self._rows, self._pairs, strict=True):
            content = question.encode() + b"\0" + answer.encode()
            context = self._context(row, lambda text: text)
            yield content + b"\0" + context.encode() if context else content

    def _asked(self) -> Iterator[bytes]:
        """Yield the question of each row with all that its prompt contains, but not the answer. Case, spaces and the
        form of accented letters do not make another question.
        """
        for row, (question, _) in zip(self._rows, self._pairs, strict=True):
            yield f"{_folded(question)}\0{self._context(row, _folded)}".encode()

    def _context(self, row: Row, form: Callable[[str], str]) -> str:
        """Return what a prompt contains besides question and answer, as JSON; empty where there is nothing."""
        columns = {name: form(text_of_cell(row[name])) for name in self._others if name != self.config.answer}
        before = [[message.role, form(message.content)] for message in self._before(row)]
        return json.dumps([columns, before], sort_keys=True) if columns or before else ""


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold()).split())


def _checked_columns(config: TextConfig, placed: Sequence[PlacedRow]) -> list[str]:
    """Return the columns of all rows.

    Raises:
        InvalidManifest: there are no rows, or question or answer are none of their columns.
    """
    if not placed:
        raise InvalidManifest(f"{PATH}.source", config.source, "data with at least one row")
    columns = list(dict.fromkeys(str(name) for _, row in placed for name in row))
    for key, column in (("question", config.question), ("answer", config.answer)):
        if column not in columns and (column or key == "question"):
            raise InvalidManifest(f"{PATH}.{key}", column, f"a column of {config.source}: {', '.join(columns)}")
    if config.question == config.answer:
        raise InvalidManifest(f"{PATH}.answer", config.answer, "another column than that of the question")
    return columns


def _checked_pairs(config: TextConfig, placed: Sequence[PlacedRow], others: Sequence[str]) -> list[tuple[str, str]]:
    """Return question and answer of all rows.

    Raises:
        BadData: a cell cannot be used; with the first such row and column, and the number of rows.
    """
    pairs: list[tuple[str, str]] = []
    problems: list[str] = []
    unmarked: list[str] = []
    for place, row in placed:
        column = config.question
        try:
            question = question_of_cell(_cell(row, column))
            _check_system(config, row[column])
            answer = text_of_cell(_cell(row, column := config.answer)) if config.answer else ""
            for column in others:
                text_of_cell(_cell(row, column))
        except CellProblem as problem:
            problems.append(f"{config.source}, {place}, column {column}: {problem}")
            continue
        if config.answer_after:
            if config.answer_after not in answer:
                unmarked.append(place)
            answer = answer.rpartition(config.answer_after)[2].strip()
        pairs.append((question, answer))
    if problems:
        more = f". {len(problems)} of {len(placed)} rows cannot be used" if len(problems) > 1 else ""
        raise BadData(problems[0] + more)
    if unmarked:
        _log.warning(
            "%d of the %d rows of %s have no %r in the column %s, so that its complete text is their answer; the "
            "first: %s",
            len(unmarked),
            len(placed),
            config.source,
            config.answer_after,
            config.answer,
            unmarked[0],
        )
    return pairs


def _cell(row: Row, column: str) -> object:
    if column not in row:
        raise CellProblem(f"this row has no such column, only {', '.join(map(str, row))}")
    return row[column]


def _check_system(config: TextConfig, cell: object) -> None:
    if config.system_prompt and is_conversation(cell) and messages_of_cell(cell)[0].role == "system":
        raise InvalidManifest(
            f"{PATH}.systemPrompt", config.system_prompt, "an empty text: the rows have system messages of their own"
        )


def _read(config: TextConfig, context: ComponentContext) -> Iterator[PlacedRow]:
    if config.source.startswith(HUB):
        return _numbered(config.source, load_from_hub(config, context))
    path = existing(config.source, context.folder)
    if path.is_dir() and (path / "dataset_info.json").exists():
        return _numbered(config.source, load_from_hub(config, context))
    if path.is_dir():
        return rows_of_texts(path, config.question, config.answer)
    if path.suffix.lower() not in SUFFIXES:
        raise InvalidManifest(
            f"{PATH}.source", config.source, f"a .jsonl, .csv, .tsv or .parquet file, a folder, or {HUB}org/name"
        )
    return rows_of_file(path)


def _numbered(source: str, rows: Iterable[Row]) -> Iterator[PlacedRow]:
    """Yield the rows of a dataset, each with its place.

    Raises:
        BadData: a row cannot be read, such as one with a torn picture in a column.
    """
    remaining = iter(rows)
    for number in count():
        place = f"row {number} (from 0)"
        try:
            row = next(remaining, None)
        # A column may hold pictures or sounds, which are decoded here.
        except (OSError, ValueError, RuntimeError, SyntaxError, ImportError) as error:
            raise BadData(f"{source}, {place} cannot be read: {type(error).__name__}: {error}") from error
        if row is None:
            return
        yield place, row
