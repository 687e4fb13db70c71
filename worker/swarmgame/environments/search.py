"""A search in the texts of a folder: the passages that fit a query best, each with the name of its file.

The files are read once, when the environment is made; a call reads none. Passages are paragraphs, ranked with BM25.
Scores are rounded before they are compared, and equal ones stand in the order of files, so that every peer with the
same files gives the same answer.

Source: Robertson and Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond (2009), with k1 = 1.5, b = 0.75
and the logarithm that is never negative.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from swarmgame.config import Config
from swarmgame.environments.toolbox import CallsConfig, ToolEnvironment, ToolName, made_at
from swarmgame.errors import InvalidManifest
from swarmgame.game.components import ComponentContext
from swarmgame.game.environment import Tool

MOST_BYTES, MOST_FILES, MOST_PASSAGES = 16 * 2**20, 10_000, 200_000
MOST_PLACES = 32_000
"""Pairs of a term and a passage that a call looks at, so that the calls of a turn end before the deadline."""
_SUFFIXES = (".txt", ".md")
_TERM = re.compile(r"\w+")
_MOST_TERMS, _LONGEST_QUERY = 64, 1000
_SATURATION, _LENGTH = 1.5, 0.75
_DECIMALS = 9


class SearchConfig(Config):
    """Where to search, and how much is shown."""

    folder: str
    """A folder in that of the manifest, with files that end in .txt or .md; those of folders in it count too."""
    results: Annotated[int, Field(ge=1, le=10)] = 3
    """Most passages of a result."""
    passage: Annotated[int, Field(ge=50, le=3000)] = 400
    """Most characters of a passage; a longer paragraph is divided."""


class Passage(NamedTuple):
    """A part of a file."""

    file: str
    text: str


class Search(Tool):
    """Finds the passages of a folder of texts that fit a query best."""

    Config = SearchConfig
    config: SearchConfig
    parameters = {"query": "words to search for"}  # noqa: RUF012 — its type says so

    def __init__(self, config: SearchConfig, context: ComponentContext) -> None:
        super().__init__(config, context)
        self._texts = _texts_in(config.folder, context.folder)
        passages = (each for file, text in self._texts for each in _passages(file, text, config.passage))
        found = list(islice(passages, MOST_PASSAGES + 1))
        if len(found) > MOST_PASSAGES:
            expected = f"texts of at most {MOST_PASSAGES} passages; raise passage, or join short paragraphs"
            raise InvalidManifest("folder", config.folder, expected)
        self._index = Index(found)

    def call(self, arguments: Mapping[str, Any]) -> str:
        query = arguments["query"]
        if not isinstance(query, str) or len(query) > _LONGEST_QUERY:
            return f"error: the query is no text of at most {_LONGEST_QUERY} characters"
        found = self._index.best(query, self.config.results)
        return "\n".join(f"{passage.file}: {passage.text}" for passage in found) or "nothing found"

    def content_digest(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for file, text in self._texts:
            for part in (file, text):
                data = part.encode()
                digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()


class SearchEnvironmentConfig(CallsConfig, SearchConfig):
    """The search, and how it is called."""

    name: ToolName = "search"
    """The name that the policy calls it by."""


class SearchEnvironment(ToolEnvironment):
    """A search in a folder of texts for the policy. A turn without a call is the answer, which `game.rewards` score."""

    Config = SearchEnvironmentConfig
    config: SearchEnvironmentConfig

    def make_tools(self) -> Mapping[str, Tool]:
        config = SearchConfig(**{name: getattr(self.config, name) for name in SearchConfig.model_fields})
        return {self.config.name: made_at("spec.game.environment.with", lambda: Search(config, self.context))}


class Index:
    """Passages by their terms."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._passages = passages
        self._places: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        self._lengths: list[int] = []
        for number, passage in enumerate(passages):
            counts = Counter(_terms(passage.text))
            self._lengths.append(counts.total())
            for term, count in counts.items():
                self._places[term].append((number, count))
        self._average = max(1.0, sum(self._lengths) / max(1, len(passages)))

    def best(self, query: str, count: int) -> list[Passage]:
        """Return the passages that fit best, the best first; fewer where fewer have a term of the query.

        The rarest terms count first, and those beyond `MOST_PLACES` do not.
        """
        scores: defaultdict[int, float] = defaultdict(float)
        terms = dict.fromkeys(_terms(query)[:_MOST_TERMS])
        room = MOST_PLACES
        for places in sorted((self._places[term] for term in terms if term in self._places), key=len):
            if len(places) > room and scores:  # a term of so many passages ranks them hardly
                break
            rarity = math.log(1 + (len(self._passages) - len(places) + 0.5) / (len(places) + 0.5))
            for number, times in places[:room]:
                length = 1 - _LENGTH + _LENGTH * self._lengths[number] / self._average
                scores[number] += rarity * times * (_SATURATION + 1) / (times + _SATURATION * length)
            room -= len(places)
        ranked = sorted(scores, key=lambda number: (-round(scores[number], _DECIMALS), number))
        return [self._passages[number] for number in ranked[:count]]


def _terms(text: str) -> list[str]:
    return _TERM.findall(text.casefold())


def _passages(file: str, text: str, longest: int) -> Iterator[Passage]:
    for paragraph in re.split(r"\n\s*\n", text):
        plain = " ".join(paragraph.split())
        start = 0
        while start < len(plain):
            end = len(plain)
            if end - start > longest:
                space = plain.rfind(" ", start + 1, start + longest + 1)
                end = space if space > 0 else start + longest
            yield Passage(file, plain[start:end])
            start = end + plain.startswith(" ", end)


def _texts_in(name: str, beside: Path | None) -> list[tuple[str, str]]:
    """Return name and text of each file, in the order of names.

    Raises:
        InvalidManifest: there are none, too many, or one cannot be read; its path is that of the option alone.
    """
    if beside is None:
        raise InvalidManifest("folder", name, "a game with a manifest, whose folder it is in")
    top = beside.resolve()
    folder = (top / name).resolve()
    if not folder.is_dir() or not folder.is_relative_to(top):
        raise InvalidManifest("folder", name, f"a folder in that of the manifest, {top}: the sandbox reads no other")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
    if not files:
        raise InvalidManifest("folder", name, f"a folder with files that end in {' or '.join(_SUFFIXES)}")
    size = sum(path.stat().st_size for path in files)
    if len(files) > MOST_FILES or size > MOST_BYTES:
        most = f"at most {MOST_FILES} files and {MOST_BYTES >> 20} MiB"
        raise InvalidManifest("folder", name, f"{most}; it has {len(files)} files and {size / 2**20:.1f} MiB")
    return [(path.relative_to(folder).as_posix(), _read(path, name, top)) for path in files]


def _read(path: Path, name: str, top: Path) -> str:
    if not path.resolve().is_relative_to(top):
        raise InvalidManifest("folder", name, f"files in the manifest's folder; {path} links to another one")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidManifest("folder", name, f"files in UTF-8 that can be read; {path}: {error}") from error
