"""The catalog of environments: what there is, the options of each, and the check of a configuration.

It runs inside the sandbox as `environments` does, called by name with JSON arguments, since it imports reasoning-gym
and the modules of authors. Invariant: a digest names everything that a question depends on besides its seed:
environment, resolved configuration, and version of the library.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Mapping
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from swarmgame.data.environments import COMPOSITE, arguments_of, dataset_of, own_environments
from swarmgame.data.reasoning_gym_import import factory
from swarmgame.user_code import definition

DISTRIBUTION = "reasoning-gym"

NOT_SOLVED_BY_OWN_ANSWER = frozenset({"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"})
"""Datasets that store no answer: any solution counts."""

LENIENT = frozenset({"game_of_life_halting"})
"""Datasets that read any text as "no", and so may give garbage full marks."""


def catalog() -> list[dict[str, Any]]:
    """Return a row for every environment: name, summary, category, has a curriculum, evaluates answers."""
    datasets = factory()
    rows = []
    for name in sorted(datasets.DATASETS):
        dataset, _ = datasets.DATASETS[name]
        rows.append(
            {
                "name": name,
                "summary": "A weighted mix of other environments" if name == COMPOSITE else _summary(dataset),
                "category": COMPOSITE if name == COMPOSITE else dataset.__module__.split(".")[1],
                "curriculum": datasets.has_curriculum(name),
                "evaluates": bool({"eval", "parse_expr"} & set(dataset.score_answer.__code__.co_names)),
            }
        )
    for name, environment in sorted(own_environments().items()):
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
    if name in own_environments():
        model = own_environments()[name].Config.model_fields
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
    for field in dataclasses.fields(factory().DATASETS[name][1]):
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


def place(name: str) -> str:
    """Return `file:line` of an author's own environment; empty for another one."""
    return definition(own_environments()[name].make) if name in own_environments() else ""


# ── checking
class _Problem(Exception):
    def __init__(self, path: str, got: object, expected: str) -> None:
        super().__init__(path)
        self.path, self.got, self.expected = path, got, expected


def _digest(name: str, config: dict[str, Any], path: str = "") -> str:
    """Return a digest of the resolved configuration, defaults included, and of the library's version."""
    if name in own_environments():
        try:
            resolved = own_environments()[name].Config.model_validate(config).model_dump(mode="json")
        except ValidationError as error:
            first = error.errors()[0]
            at = ".".join([f"{path}config", *map(str, first["loc"])])
            raise _Problem(at, first.get("input"), first["msg"]) from error
        version = own_environments()[name].__module__
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
    datasets = factory().DATASETS
    if name not in datasets:
        close = _suggestion(name, [*datasets, *own_environments()])
        raise _Problem(f"{path}name", name, f"the name of an environment{close}")
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
        instance = config_class(seed=0, size=1, **arguments_of(name, config))
        if hasattr(instance, "validate"):
            instance.validate()
        dataset_of(name, config, 0)
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
