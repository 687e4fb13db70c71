"""Datasets: a fixed list of rows, from a path or the hub (`hf://`), drawn without replacement.

The base of `text` and `images`. A hash of what a row asks assigns it to rounds, evaluation or demonstrations, so equal
questions are always on the same side, whatever their answers, and every peer with the same rows splits them alike.
Invariant: a reference contains the digest of all rows and the row's number. A peer with different rows cannot resolve
it, and no peer resolves a held-out row.
"""

from __future__ import annotations

import hashlib
import logging
from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from enum import IntEnum
from pathlib import Path
from random import Random
from typing import Annotated, Any

from pydantic import Field

from swarmgame.config import Config
from swarmgame.errors import BadData, InvalidManifest, Temporary, not_writable
from swarmgame.game.components import ComponentContext, DataManager
from swarmgame.game.state import GameState, Prompt, Question, QuestionRef, Round
from swarmgame.models.hub import connection_errors, offline_unless_reachable, quiet_retries, unreachable_errors
from swarmgame.models.uri import read_token
from swarmgame.seeds import derive_seed
from swarmgame.user_code import printable

_log = logging.getLogger("swarmgame.data")

PATH = "spec.game.data.with"
HUB = "hf://"


class Side(IntEnum):
    """The side of the split that a row is on."""

    ROUND = 0
    EVALUATION = 1
    DEMONSTRATION = 2


class FiniteConfig(Config):
    """How rows are drawn."""

    source: Annotated[str, Field(min_length=1)]
    """Where the rows are: a path or an address. A relative path begins at the manifest's folder, or else at the
    current one."""
    split: str = "train"
    """Split of a dataset on the hub."""
    subset: str = ""
    """Configuration of a dataset on the hub; its default when empty."""
    questions_per_round: Annotated[int, Field(ge=1, le=65_536)] = 8
    """Rows that this peer draws in a round, without replacement."""
    shared: bool = False
    """Whether all peers draw the same rows in a round."""
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the rows that is kept for evaluation; rows with equal questions are kept together."""
    max_rows: Annotated[int, Field(ge=1)] = 1_000_000
    """Most rows that are read."""


class FiniteData(DataManager):
    """Rows by number. A subclass reads them, and turns a row into a question.

    Args:
        contents: question and answer of every row, as bytes; part of the digest.
        demonstrations: share of the rows kept for demonstrations.
        asked: the question alone of every row, as bytes; decides its side. The contents where it is not given.
    """

    config: FiniteConfig
    # The place of the rows may differ; `content_digest` compares the rows themselves.
    own_options = DataManager.own_options | {"source", "split", "subset", "max_rows"}

    def __init__(
        self,
        config: FiniteConfig,
        context: ComponentContext,
        contents: Iterable[bytes],
        demonstrations: float = 0.0,
        asked: Iterable[bytes] | None = None,
    ) -> None:
        super().__init__(config, context)
        digest_of_all = hashlib.blake2b(digest_size=8, person=b"swarmgame-rows")
        self.rows: dict[Side, list[int]] = {side: [] for side in Side}
        answers: dict[bytes, set[bytes]] = {}
        count = 0
        for row, (content, question) in enumerate(_pairs(contents, asked)):
            digest = hashlib.blake2b(content, digest_size=8, person=b"swarmgame-split").digest()
            digest_of_all.update(digest)
            key = hashlib.blake2b(question, digest_size=8, person=b"swarmgame-split").digest()
            answers.setdefault(key, set()).add(digest)
            place = int.from_bytes(key, "little") / 2**64
            evaluation = place < config.held_out
            side = Side.EVALUATION if evaluation else Side.DEMONSTRATION if place > 1 - demonstrations else Side.ROUND
            self.rows[side].append(row)
            count = row + 1
        self.digest = digest_of_all.hexdigest()
        self._name = config.source.rpartition("/")[2] or config.source
        self._resolvable = frozenset(self.rows[Side.ROUND])
        _report_duplicates(config.source, count, list(answers.values()))
        if len(self.rows[Side.ROUND]) < config.questions_per_round:
            free, held, kept = (len(self.rows[side]) for side in Side)
            expected = (
                f"at most the {free} rows that {config.source} has for rounds: of {count}, {held} are held out for "
                f"evaluation, and {kept} are kept for demonstrations"
            )
            raise InvalidManifest(f"{PATH}.questionsPerRound", config.questions_per_round, expected)

    @abstractmethod
    def question(self, reference: QuestionRef) -> Question:
        """Return the question of the row `reference.index`."""

    def round_data(self, round: Round) -> Sequence[Question]:
        seed = derive_seed("rows", round.seed if self.config.shared else round.peer_seed, round.number)
        return [
            self._question(row) for row in Random(seed).sample(self.rows[Side.ROUND], self.config.questions_per_round)
        ]

    def stage_inputs(self, state: GameState, stage: int) -> Sequence[Prompt]:
        """Return the same prompts for every stage."""
        return [self.prompt(state.questions[question]) for question in state.question_ids]

    def prompt(self, question: Question) -> Prompt:
        """Return the prompt of a question."""
        return Prompt.from_question(question)

    def resolve(self, reference: QuestionRef) -> Question | None:
        ours = (reference.environment, reference.config, reference.seed) == (self._name, self.digest, 0)
        return self.question(reference) if ours and reference.index in self._resolvable else None

    def content_digest(self) -> str:
        return f"{self._name} {self.digest}"

    def place_of_row(self, row: int) -> str:
        """Return where a row is, for messages."""
        return f"row {row} (from 0) of {self.config.source}"

    def evaluation_data(self, count: int) -> Sequence[Question]:
        """Return the same questions on every peer; fewer than `count` where fewer are held out."""
        held_out = self.rows[Side.EVALUATION]
        chosen = Random(derive_seed("evaluation", self.context.seed)).sample(held_out, min(count, len(held_out)))
        return [self._question(row) for row in chosen]

    def _question(self, row: int) -> Question:
        return self.question(QuestionRef(self._name, self.digest, 0, row))


def _pairs(contents: Iterable[bytes], asked: Iterable[bytes] | None) -> Iterator[tuple[bytes, bytes]]:
    if asked is None:
        return ((content, content) for content in contents)
    return zip(contents, asked, strict=True)


def _report_duplicates(source: str, rows: int, answers: Sequence[Collection[bytes]]) -> None:
    """Log how many rows repeat a question, and how many questions have several answers, of which one is wrong."""
    repeated, ambiguous = rows - len(answers), sum(len(found) > 1 for found in answers)
    if repeated:
        several = f" {ambiguous} of these questions have several answers." if ambiguous else ""
        _log.warning(
            "%d of the %d rows of %s repeat the question of another row; equal questions are on the same side of the "
            "split.%s",
            repeated,
            rows,
            source,
            several,
        )


def existing(source: str, folder: Path | None) -> Path:
    """Return the path that a source names.

    Args:
        folder: of the manifest, where a relative path is searched first; None searches the current folder only.

    Raises:
        InvalidManifest: it does not exist.
    """
    named = Path(source.removeprefix("file://")).expanduser()
    places = list(dict.fromkeys([(folder or Path()).absolute() / named, named.absolute()]))
    for path in places:
        if path.exists():
            return path
    searched = " and ".join(str(path.parent) for path in places)
    raise InvalidManifest(
        f"{PATH}.source", source, f"a file or folder that exists (searched {searched}), or {HUB}org/name"
    )


def load_from_hub(config: FiniteConfig, context: ComponentContext) -> Any:
    """Load a `datasets.Dataset` from the hub (or its cache), or from a folder of `save_to_disk`.

    Raises:
        InvalidManifest: there is no such dataset, revision, subset or split, or `datasets` cannot build it.
        BadData: the folder is damaged.
        Temporary: the hub cannot be reached.
    """
    import datasets

    if not config.source.startswith(HUB):
        return _saved(existing(config.source, context.folder))
    name, _, revision = config.source.removeprefix(HUB).partition("@")
    token = read_token(context.model_token)
    try:
        with quiet_retries(), offline_unless_reachable():
            return datasets.load_dataset(
                name,
                config.subset or None,
                split=config.split,
                revision=revision or None,
                cache_dir=str(context.cache / "datasets"),
                token=token,
            )
    except ConnectionError as error:
        raise Temporary(
            f"the hub cannot be reached for {config.source}, and {context.cache / 'datasets'} has no copy of it: check "
            "the network, HF_ENDPOINT and HF_HUB_OFFLINE, or load it once where the hub can be reached"
        ) from error
    except (datasets.exceptions.DatasetNotFoundError, ValueError, FileNotFoundError) as error:
        raise InvalidManifest(
            f"{PATH}.source", config.source, f"a dataset on the hub with this subset and split ({error})"
        ) from error
    except (datasets.exceptions.DatasetsError, RuntimeError, ImportError) as error:
        raise _unbuilt(config.source, error) from error
    except unreachable_errors() as error:
        raise not_writable(error) or Temporary(f"the hub cannot be reached for {config.source}: {error}") from error


def _saved(folder: Path) -> Any:
    """Load a dataset from a folder of `save_to_disk`."""
    import datasets

    try:
        return datasets.load_from_disk(str(folder))
    # What `datasets` and Arrow raise for files that are torn, missing or of another shape; it checks none of them.
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RuntimeError, ImportError) as error:
        raise BadData(
            f"{folder} cannot be read as a dataset that was saved with save_to_disk ({_reason(error)}): save it again"
        ) from error


def _unbuilt(source: str, error: Exception) -> Exception:
    """Return the error of a dataset that was found but cannot be built: one with a script, or whose files differ."""
    cause = error.__cause__
    if cause is not None and (full := not_writable(cause)) is not None:
        return full
    if isinstance(cause, connection_errors()):
        return Temporary(f"the hub cannot be reached for {source}: {_reason(cause)}")
    expected = (
        f"a dataset that the library datasets can build ({_reason(error)}); take another subset, or the Parquet files "
        f"that the hub makes of most datasets: {source.partition('@')[0]}@refs/convert/parquet"
    )
    return InvalidManifest(f"{PATH}.source", source, expected)


def _reason(error: BaseException) -> str:
    """Return an error as one line, with its cause where it names one."""
    parts = [each for each in (error, error.__cause__) if each is not None]
    return "; ".join(f"{type(each).__name__}: {printable(' '.join(str(each).split()), 300)}" for each in parts)
