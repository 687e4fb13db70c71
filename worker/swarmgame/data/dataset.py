"""Datasets: a fixed list of rows, from a path or the hub (`hf://`), drawn without replacement.

The base of `text` and `images`. A hash of its content assigns a row to rounds, evaluation or demonstrations, so
duplicates are always on the same side, and every peer with the same rows splits them alike. Invariant: a reference
contains the digest of all rows and the row's number. A peer with different rows cannot resolve it, and no peer
resolves a held-out row.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from enum import IntEnum
from pathlib import Path
from random import Random
from typing import Annotated, Any

from pydantic import Field

from swarmgame.config import Config
from swarmgame.errors import InvalidManifest, Temporary, not_writable
from swarmgame.game.components import ComponentContext, DataManager
from swarmgame.game.state import GameState, Prompt, Question, QuestionRef, Round
from swarmgame.models.hub import quiet_retries, unreachable_errors
from swarmgame.seeds import derive_seed

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
    """Where the rows are: a path or an address."""
    split: str = "train"
    """Split of a dataset on the hub."""
    subset: str = ""
    """Configuration of a dataset on the hub; its default when empty."""
    questions_per_round: Annotated[int, Field(ge=1, le=65_536)] = 8
    """Rows that this peer draws in a round, without replacement."""
    shared: bool = False
    """Whether all peers draw the same rows in a round."""
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the rows that is kept for evaluation."""
    max_rows: Annotated[int, Field(ge=1)] = 1_000_000
    """Most rows that are read."""


class FiniteData(DataManager):
    """Rows by number. A subclass reads them, and turns a row into a question.

    Args:
        contents: the content of every row, as bytes; decides its side and is part of the digest.
        demonstrations: share of the rows kept for demonstrations.
    """

    config: FiniteConfig

    def __init__(
        self, config: FiniteConfig, context: ComponentContext, contents: Iterable[bytes], demonstrations: float = 0.0
    ) -> None:
        super().__init__(config, context)
        digest_of_all = hashlib.blake2b(digest_size=8, person=b"swarmgame-rows")
        self.rows: dict[Side, list[int]] = {side: [] for side in Side}
        for row, content in enumerate(contents):
            digest = hashlib.blake2b(content, digest_size=8, person=b"swarmgame-split").digest()
            digest_of_all.update(digest)
            place = int.from_bytes(digest, "little") / 2**64
            evaluation = place < config.held_out
            side = Side.EVALUATION if evaluation else Side.DEMONSTRATION if place > 1 - demonstrations else Side.ROUND
            self.rows[side].append(row)
        self.digest = digest_of_all.hexdigest()
        self._name = config.source.rpartition("/")[2] or config.source
        self._resolvable = frozenset(self.rows[Side.ROUND])
        if len(self.rows[Side.ROUND]) < config.questions_per_round:
            expected = f"at most the {len(self.rows[Side.ROUND])} rows that {config.source} has for rounds"
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

    def evaluation_data(self, count: int) -> Sequence[Question]:
        """Return the same questions on every peer; fewer than `count` where fewer are held out."""
        held_out = self.rows[Side.EVALUATION]
        chosen = Random(derive_seed("evaluation", self.context.seed)).sample(held_out, min(count, len(held_out)))
        return [self._question(row) for row in chosen]

    def _question(self, row: int) -> Question:
        return self.question(QuestionRef(self._name, self.digest, 0, row))


def existing(source: str) -> Path:
    """Return the path that a source names.

    Raises:
        InvalidManifest: it does not exist.
    """
    path = Path(source.removeprefix("file://")).expanduser()
    if not path.exists():
        raise InvalidManifest(
            f"{PATH}.source",
            source,
            f"a file or folder that exists (searched {path.absolute().parent}), or {HUB}org/name",
        )
    return path


def load_from_hub(config: FiniteConfig, context: ComponentContext) -> Any:
    """Load a `datasets.Dataset` from the hub (or its cache), or from a folder of `save_to_disk`.

    Raises:
        InvalidManifest: there is no such dataset, revision, subset or split.
        Temporary: the hub cannot be reached.
    """
    import datasets

    if not config.source.startswith(HUB):
        return datasets.load_from_disk(config.source)
    name, _, revision = config.source.removeprefix(HUB).partition("@")
    token = context.model_token.read_text().strip() if context.model_token else None
    try:
        with quiet_retries():
            return datasets.load_dataset(
                name,
                config.subset or None,
                split=config.split,
                revision=revision or None,
                cache_dir=str(context.cache / "datasets"),
                token=token,
            )
    except ConnectionError as error:
        raise Temporary(f"the hub cannot be reached for {config.source}: {error}") from error
    except (datasets.exceptions.DatasetNotFoundError, ValueError, FileNotFoundError) as error:
        raise InvalidManifest(
            f"{PATH}.source", config.source, f"a dataset on the hub with this subset and split ({error})"
        ) from error
    except unreachable_errors() as error:
        raise not_writable(error) or Temporary(f"the hub cannot be reached for {config.source}: {error}") from error
