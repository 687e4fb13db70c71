"""Environments: named generators of questions with a scorer. The 105 datasets of reasoning-gym, composites of them,
and an author's own.

All of this module runs inside the sandbox (`swarmgame.sandbox.client`), called by name with JSON arguments: some
generators execute code, some scorers evaluate the answer, and five datasets depend on the interpreter's hash seed,
which the sandbox fixes. The training process never imports reasoning-gym. `environment_catalog` lists and checks
them. Invariant: `make` and `score` depend only on
(name, config, seed) and the library's version; the version is part of the digest.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import importlib
import importlib.metadata
import json
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar

from pydantic import BaseModel

from swarmgame.config import Config
from swarmgame.data.reasoning_gym_import import factory
from swarmgame.sandbox.expressions import guarded
from swarmgame.seeds import derive_seed

COMPOSITE = "composite"
ENTRY_POINTS = "swarmgame.environments"

NARROW_SEEDS = frozenset({"pool_matrix"})
"""Datasets that pass their seed to numpy, which takes 32 bits."""

KEPT = {
    "arc_1d", "arc_agi", "base_conversion", "codeio", "emoji_mystery", "figlet_font", "group_anagrams", "n_queens",
    "rearc", "rush_hour", "sokoban", "spell_backward", "word_ladder", "word_sequence_reversal", "word_sorting",
}  # fmt: skip
"""Datasets that are slow to construct (2 to 350 ms) and whose items depend only on the attribute `seed`: constructed
once and re-seeded.
"""

EXECUTING = frozenset({"codeio"})
"""Datasets whose questions are made by executing a program."""

_NOT_REPEATABLE = re.compile(r"\b(now|today|utcnow|time|time_ns|uuid\d|urandom)\(|\bsecrets\.")
"""Programs of codeio that use the clock or true randomness, one in a hundred: their questions cannot be regenerated."""


@dataclass(frozen=True)
class GeneratedQuestion:
    """A question, its answer (empty where none is stored), and metadata for the scorer."""

    question: str
    answer: str
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Environment(ABC):
    """Base of an author's own environment, registered in the entry-point group `swarmgame.environments`. The first
    line of its docstring describes it.
    """

    Config: ClassVar[type[BaseModel]] = Config

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def make(self, random: Random) -> GeneratedQuestion:
        """Return a question that depends only on `random` and the configuration."""

    def score(self, answer: str, question: GeneratedQuestion) -> float:
        """Return the score of an answer, from 0 to 1: 1 when it equals the stored one, unless overridden."""
        return float(answer.strip() == question.answer.strip())


_prepared: dict[tuple[str, str, int], tuple[Any, GeneratedQuestion]] = {}
"""What `ready` has made for the next answer: a copy costs the process of an answer 0.3 ms, since it touches 80 pages.
An answer never gets what another one had: its scorer may have changed it.
"""


# ── questions and scores
def warm() -> None:
    """Import reasoning-gym, and what all environments use, before the first batch: it takes a second."""
    factory()
    importlib.import_module("numpy.random")
    own_environments()
    _keep_names_of_sympy()


def keep(name: str, config: dict[str, Any]) -> None:
    """Construct a dataset of `KEPT`, and make and score a question, ahead of time: the first one imports what it uses,
    which takes 60 to 200 ms.
    """
    warm()
    if name == COMPOSITE:
        for part in config["datasets"]:
            keep(part["name"], part.get("config", {}))
        return
    if name in KEPT:
        _kept(name, _canonical(config))
    if name not in EXECUTING:
        with contextlib.suppress(Exception):  # where a question fails, so will the peer's own, with a message
            score(name, config, 0, make(name, config, 0)["answer"])


def make(name: str, config: dict[str, Any], seed: int) -> dict[str, str]:
    """Return the question and answer of a seed."""
    question = _question(name, _canonical(config), seed)
    return {"question": question.question, "answer": question.answer}


def ready(name: str, config: dict[str, Any], seed: int) -> None:
    """Make the question of a seed and what scores its answers, for the processes of the answers: the next call of
    `score` uses them up.
    """
    _prepared.clear()
    _prepared[name, _canonical(config), seed] = _scoring(name, config, seed)


def score(name: str, config: dict[str, Any], seed: int, answer: str) -> float:
    """Return the score of an answer to the question of a seed."""
    prepared = _prepared.pop((name, _canonical(config), seed), None)
    scorer, question = prepared or _scoring(name, config, seed)
    with guarded():
        if isinstance(scorer, Environment):
            return float(scorer.score(answer, question))
        return float(scorer.score_answer(answer, dict(question.metadata)))


def demonstrate(name: str, config: dict[str, Any], seed: int) -> dict[str, str] | None:
    """Return the question and answer of a seed; None when the scorer does not accept the answer."""
    made = make(name, config, seed)
    return made if made["answer"] and score(name, config, seed, made["answer"]) >= 0.99 else None


# ── reasoning-gym
@functools.lru_cache(maxsize=1024)
def _question(name: str, canonical: str, seed: int) -> GeneratedQuestion:
    part, config, part_seed = _part(name, json.loads(canonical), seed)
    if part in own_environments():
        made = _own_environment(part, _canonical(config)).make(Random(part_seed))
        answer = "" if made.answer is None else str(made.answer)
        return dataclasses.replace(made, question=str(made.question), answer=answer)
    dataset = dataset_of(part, config, part_seed)
    # list_functions, and the programs that codeio runs, draw from the global generators.
    random.seed(part_seed)
    importlib.import_module("numpy").random.seed(part_seed % 2**32)
    entry = dataset[0]
    answer = entry["answer"]
    return GeneratedQuestion(str(entry["question"]), "" if answer is None else str(answer), entry)


def _part(name: str, config: dict[str, Any], seed: int) -> tuple[str, dict[str, Any], int]:
    """Return the environment, configuration and seed that a question comes from: a composite draws one of its members,
    each with a seed of its own."""
    while name == COMPOSITE:
        parts = config["datasets"]
        drawn = Random(seed).choices(range(len(parts)), weights=[part.get("weight", 1.0) for part in parts])[0]
        name, config, seed = parts[drawn]["name"], parts[drawn].get("config", {}), derive_seed("part", seed, drawn)
    return name, config, seed


def dataset_of(name: str, config: dict[str, Any], seed: int) -> Any:
    """Return a dataset whose item 0 is the question of the seed."""
    seed = derive_seed("narrow", seed) >> 31 if name in NARROW_SEEDS else seed
    if name not in KEPT:
        return factory().create_dataset(name, seed=seed, size=1, **arguments_of(name, config))
    dataset = _kept(name, _canonical(config))
    dataset.seed = seed
    if name == "codeio":
        # The dataset keeps its programs in its class, where a different configuration would use them too.
        type(dataset)._jsonl_data = dataset.programs
    return dataset


def _scoring(name: str, config: dict[str, Any], seed: int) -> tuple[Any, GeneratedQuestion]:
    """Return what scores the answers to a question, and a copy of the question, which a scorer may change."""
    question = copy.deepcopy(_question(name, _canonical(config), seed))
    part, part_config, part_seed = _part(name, config, seed)
    if part in own_environments():
        return _own_environment(part, _canonical(part_config)), question
    return dataset_of(part, part_config, part_seed), question


@functools.lru_cache(maxsize=128)
def _kept(name: str, canonical: str) -> Any:
    dataset = factory().create_dataset(name, seed=0, size=1, **arguments_of(name, json.loads(canonical)))
    if name == "codeio":
        programs = type(dataset)._jsonl_data
        dataset.programs = [
            row for row in programs if not _NOT_REPEATABLE.search(row["code_sample"] + row["input_generator"])
        ]
    return dataset


def arguments_of(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """Convert lists to tuples where the default is a tuple: JSON has no tuples."""
    defaults = {field.name: field.default for field in dataclasses.fields(factory().DATASETS[name][1])}
    return {key: tuple(value) if isinstance(defaults.get(key), tuple) else value for key, value in config.items()}


@functools.cache
def _keep_names_of_sympy() -> None:
    """Give `parse_expr` the namespace that it makes of sympy's 900 names in each call. In the process of an answer,
    that writes to, and so copies, 1,000 pages of memory: 5 ms.
    """
    parse = importlib.import_module("sympy.parsing.sympy_parser").parse_expr
    local, transformations, names, evaluate = parse.__defaults__
    made: list[dict[str, Any]] = []

    def keep(tokens: list[Any], _: dict[str, Any], namespace: dict[str, Any]) -> list[Any]:
        made.append(namespace)
        return tokens

    parse("1", transformations=(keep,))
    if names is None:
        parse.__defaults__ = (local, transformations, made[0], evaluate)


# ── an author's own
@functools.cache
def own_environments() -> dict[str, type[Environment]]:
    """Return the environments of authors by name, those that are installed under `swarmgame.environments`."""
    found = {}
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        environment = entry.load()
        if not (isinstance(environment, type) and issubclass(environment, Environment)):
            raise TypeError(f"the entry point {entry.name} in {ENTRY_POINTS} is no Environment: {environment!r}")
        found[entry.name] = environment
    return found


@functools.lru_cache(maxsize=128)
def _own_environment(name: str, canonical: str) -> Environment:
    environment = own_environments()[name]
    return environment(environment.Config.model_validate_json(canonical))


def _canonical(config: Mapping[str, Any]) -> str:
    return json.dumps(config, sort_keys=True)
