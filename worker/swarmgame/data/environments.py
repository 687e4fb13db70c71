"""Environments: named generators of questions with a scorer. The 105 datasets of reasoning-gym, composites of them,
and an author's own.

All of this module runs inside the sandbox (`swarmgame.sandbox.client`), called by name with JSON arguments: some
generators execute code, some scorers evaluate the answer, and five datasets depend on the interpreter's hash seed,
which the sandbox fixes. The training process never imports reasoning-gym. Invariant: `make` and `score` depend only on
(name, config, seed) and the library's version; the version is part of the digest.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import hashlib
import importlib
import importlib.metadata
import json
import random
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar, get_type_hints

from pydantic import BaseModel, TypeAdapter, ValidationError

from swarmgame.config import Config
from swarmgame.sandbox.expressions import guarded
from swarmgame.seeds import derive_seed

COMPOSITE = "composite"
ENTRY_POINTS = "swarmgame.environments"
DISTRIBUTION = "reasoning-gym"

NARROW_SEEDS = frozenset({"pool_matrix"})
"""Datasets that pass their seed to numpy, which takes 32 bits."""

KEPT = {
    "arc_1d", "arc_agi", "base_conversion", "codeio", "emoji_mystery", "figlet_font", "group_anagrams", "n_queens",
    "rearc", "rush_hour", "sokoban", "spell_backward", "word_ladder", "word_sequence_reversal", "word_sorting",
}  # fmt: skip
"""Datasets that are slow to construct (2 to 350 ms) and whose items depend only on the attribute `seed`: constructed
once and re-seeded.
"""

NOT_SOLVED_BY_OWN_ANSWER = frozenset({"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"})
"""Datasets that store no answer: any solution counts."""

LENIENT = frozenset({"game_of_life_halting"})
"""Datasets that read any text as "no", and so may give garbage full marks."""

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


# ── the catalog
def catalog() -> list[dict[str, Any]]:
    """Return a row for every environment: name, summary, category, has a curriculum, evaluates answers."""
    factory = _factory()
    rows = []
    for name in sorted(factory.DATASETS):
        dataset, _ = factory.DATASETS[name]
        rows.append(
            {
                "name": name,
                "summary": "A weighted mix of other environments" if name == COMPOSITE else _summary(dataset),
                "category": COMPOSITE if name == COMPOSITE else dataset.__module__.split(".")[1],
                "curriculum": factory.has_curriculum(name),
                "evaluates": bool({"eval", "parse_expr"} & set(dataset.score_answer.__code__.co_names)),
            }
        )
    for name, environment in sorted(_own().items()):
        rows.append(
            {"name": name, "summary": _summary(environment), "category": "own", "curriculum": False, "evaluates": False}
        )
    return rows


def fields(name: str) -> list[dict[str, Any]]:
    """Return name, type and default of each field of an environment's configuration, without seed and size, which the
    game sets.
    """
    if name == COMPOSITE:
        return [{"name": "datasets", "type": "list of {name, weight, config}", "default": None, "required": True}]
    if name in _own():
        model = _own()[name].Config.model_fields
        return [
            {
                "name": key,
                "type": str(field.annotation),
                "default": _plain(field.default),
                "required": field.is_required(),
            }
            for key, field in model.items()
        ]
    rows = []
    for field in dataclasses.fields(_factory().DATASETS[name][1]):
        if field.name not in ("seed", "size"):
            default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
            kind = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
            kind = str(field.type).replace("typing.", "") if "[" in str(field.type) else kind
            missing = default is dataclasses.MISSING
            rows.append(
                {"name": field.name, "type": kind, "default": None if missing else _plain(default), "required": missing}
            )
    return rows


def resolve(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """Check an environment's name and configuration.

    Returns:
        `{"digest": …}`, or `{"problem": {"path", "got", "expected"}}` with a path such as `config.min_terms`.
    """
    try:
        return {"digest": _digest(name, config)}
    except _Problem as problem:
        return {"problem": {"path": problem.path, "got": _plain(problem.got), "expected": problem.expected}}


def warm() -> None:
    """Import reasoning-gym before the first batch: it takes a second."""
    _factory()


def keep(name: str, config: dict[str, Any]) -> None:
    """Construct a dataset of `KEPT` ahead of time."""
    if name == COMPOSITE:
        for part in config["datasets"]:
            keep(part["name"], part.get("config", {}))
    elif name in KEPT:
        _kept(name, _canonical(config))


def make(name: str, config: dict[str, Any], seed: int) -> dict[str, str]:
    """Return the question and answer of a seed."""
    question = _question(name, _canonical(config), seed)
    return {"question": question.question, "answer": question.answer}


def score(name: str, config: dict[str, Any], seed: int, answer: str) -> float:
    """Return the score of an answer to the question of a seed."""
    canonical = _canonical(config)
    question = copy.deepcopy(_question(name, canonical, seed))
    part, part_config, part_seed = _part(name, config, seed)
    if part in _own():
        environment = _own_environment(part, _canonical(part_config))
        with guarded():
            return float(environment.score(answer, question))
    dataset = _dataset(part, part_config, part_seed)
    with guarded():
        return float(dataset.score_answer(answer, dict(question.metadata)))


def demonstrate(name: str, config: dict[str, Any], seed: int) -> dict[str, str] | None:
    """Return the question and answer of a seed; None when the scorer does not accept the answer."""
    made = make(name, config, seed)
    return made if made["answer"] and score(name, config, seed, made["answer"]) >= 0.99 else None


# ── reasoning-gym
def _factory() -> Any:
    # Importing the first two registers the datasets.
    return [importlib.import_module(f"reasoning_gym{name}") for name in ("", ".composite", ".factory")][-1]


@functools.lru_cache(maxsize=1024)
def _question(name: str, canonical: str, seed: int) -> GeneratedQuestion:
    part, config, part_seed = _part(name, json.loads(canonical), seed)
    if part in _own():
        return _own_environment(part, _canonical(config)).make(Random(part_seed))
    dataset = _dataset(part, config, part_seed)
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


def _dataset(name: str, config: dict[str, Any], seed: int) -> Any:
    """Return a dataset whose item 0 is the question of the seed."""
    seed = derive_seed("narrow", seed) >> 31 if name in NARROW_SEEDS else seed
    if name not in KEPT:
        return _factory().create_dataset(name, seed=seed, size=1, **_arguments(name, config))
    dataset = _kept(name, _canonical(config))
    dataset.seed = seed
    if name == "codeio":
        # The dataset keeps its programs in its class, where a different configuration would use them too.
        type(dataset)._jsonl_data = dataset.programs
    return dataset


@functools.lru_cache(maxsize=128)
def _kept(name: str, canonical: str) -> Any:
    dataset = _factory().create_dataset(name, seed=0, size=1, **_arguments(name, json.loads(canonical)))
    if name == "codeio":
        programs = type(dataset)._jsonl_data
        dataset.programs = [
            row for row in programs if not _NOT_REPEATABLE.search(row["code_sample"] + row["input_generator"])
        ]
    return dataset


def _arguments(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """Convert lists to tuples where the default is a tuple: JSON has no tuples."""
    defaults = {field.name: field.default for field in dataclasses.fields(_factory().DATASETS[name][1])}
    return {key: tuple(value) if isinstance(defaults.get(key), tuple) else value for key, value in config.items()}


# ── an author's own
@functools.cache
def _own() -> dict[str, type[Environment]]:
    found = {}
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        environment = entry.load()
        if not (isinstance(environment, type) and issubclass(environment, Environment)):
            raise TypeError(f"the entry point {entry.name} in {ENTRY_POINTS} is no Environment: {environment!r}")
        found[entry.name] = environment
    return found


@functools.lru_cache(maxsize=128)
def _own_environment(name: str, canonical: str) -> Environment:
    environment = _own()[name]
    return environment(environment.Config.model_validate_json(canonical))


# ── checking
class _Problem(Exception):
    def __init__(self, path: str, got: object, expected: str) -> None:
        super().__init__(path)
        self.path, self.got, self.expected = path, got, expected


def _digest(name: str, config: dict[str, Any], path: str = "") -> str:
    """Return a digest of the resolved configuration, defaults included, and of the library's version."""
    if name in _own():
        try:
            resolved = _own()[name].Config.model_validate(config).model_dump(mode="json")
        except ValidationError as error:
            first = error.errors()[0]
            at = ".".join([f"{path}config", *map(str, first["loc"])])
            raise _Problem(at, first.get("input"), first["msg"]) from error
        version = _own()[name].__module__
    elif name == COMPOSITE:
        resolved, version = {"datasets": _resolve_parts(config, path)}, ""
    else:
        resolved, version = _resolve_dataset(name, config, path), importlib.metadata.version(DISTRIBUTION)
    text = json.dumps([name, version, resolved], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8, person=b"swarmgame-config").hexdigest()


def _resolve_parts(config: dict[str, Any], path: str) -> list[list[Any]]:
    _refuse_unknown(config, ["datasets"], f"{path}config")
    parts = config.get("datasets")
    if not isinstance(parts, list) or not parts:
        raise _Problem(f"{path}config.datasets", parts, "a list of {name, weight, config}, at least one")
    resolved = []
    for position, part in enumerate(parts):
        at = f"{path}config.datasets[{position}]"
        if not isinstance(part, dict) or not isinstance(part.get("config", {}), dict):
            raise _Problem(at, part, "a mapping with name, weight and config")
        _refuse_unknown(part, ["name", "weight", "config"], at)
        weight = part.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < 1e9:
            raise _Problem(f"{at}.weight", weight, "a number above 0")
        resolved.append([weight, _digest(str(part.get("name", "")), part.get("config", {}), f"{at}.")])
    return resolved


def _resolve_dataset(name: str, config: dict[str, Any], path: str) -> dict[str, Any]:
    datasets = _factory().DATASETS
    if name not in datasets:
        raise _Problem(f"{path}name", name, "the name of an environment" + _suggestion(name, [*datasets, *_own()]))
    config_class = datasets[name][1]
    known = [field.name for field in dataclasses.fields(config_class) if field.name not in ("seed", "size")]
    for key in ("seed", "size"):
        if key in config:
            raise _Problem(f"{path}config.{key}", config[key], "to be left out: the game sets it")
    _refuse_unknown(config, known, f"{path}config")
    hints = get_type_hints(config_class)
    for key, value in config.items():
        try:
            TypeAdapter(hints[key]).validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            raise _Problem(
                f"{path}config.{key}", value, error.errors()[0]["msg"].removeprefix("Input should be ")
            ) from error
    try:
        instance = config_class(seed=0, size=1, **_arguments(name, config))
        if hasattr(instance, "validate"):
            instance.validate()
        _dataset(name, config, 0)
    except (AssertionError, ValueError, TypeError) as error:
        named = [key for key in config if key in str(error)]
        at = f"{path}config.{named[0]}" if named else f"{path}config"
        raise _Problem(at, config[named[0]] if named else config, f"what {name} accepts: {error}") from error
    return {key: _plain(getattr(instance, key)) for key in known}


def _refuse_unknown(config: Mapping[str, Any], known: list[str], path: str) -> None:
    for key in config:
        if key not in known:
            raise _Problem(
                f"{path}.{key}",
                config[key],
                "a known key" + (_suggestion(str(key), known) or f": one of {', '.join(known)}"),
            )


def _suggestion(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _canonical(config: Mapping[str, Any]) -> str:
    return json.dumps(config, sort_keys=True)


def _plain(value: Any) -> Any:
    """Return JSON-like values; anything that JSON cannot express becomes text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, set | frozenset):
        value = sorted(value, key=str)
    return json.loads(json.dumps(value, default=str))


def _summary(thing: type) -> str:
    documentation = thing.__doc__ or sys.modules[thing.__module__].__doc__ or ""
    return documentation.strip().split("\n")[0].rstrip(".") or thing.__name__
