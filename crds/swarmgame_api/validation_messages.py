"""What pydantic found wrong, told to the author of a manifest: path, value, and what was expected.

Invariant: every error becomes a problem with a path in the manifest's own words; branches of a union become one
problem.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Literal

from pydantic import BaseModel

from swarmgame_api.errors import UNKNOWN_FIELD, Problem, join_path
from swarmgame_api.type_descriptions import TypeInfo, describe, field_type_info, type_info


def explain(model: type[BaseModel], errors: Iterable[Mapping[str, Any]], prefix: str = "") -> tuple[Problem, ...]:
    """Problems in the order in which they were found, each place once.

    Args:
        model: what was validated against.
        errors: `ValidationError.errors()`.
        prefix: the path of the validated data within the manifest, such as `spec.game.trainer.with`.
    """
    problems: dict[tuple[str, str], Problem] = {}
    for error in errors:
        for problem in _problems(model, error, prefix):
            problems.setdefault((problem.path, problem.expected), problem)
    return tuple(problems.values())


def did_you_mean(word: object, choices: Iterable[str]) -> str:
    """`: did you mean "maxRounds"?`, or nothing."""
    lowered = {choice.lower().replace("_", ""): choice for choice in choices}
    close = get_close_matches(str(word)[:100].lower().replace("_", ""), list(lowered), n=1, cutoff=0.7)
    return f'; did you mean "{lowered[close[0]]}"?' if close else ""


def _problems(model: type[BaseModel], error: Mapping[str, Any], prefix: str) -> list[Problem]:
    kind, got = error["type"], error["input"]
    path, shape, parent, key = _locate(model, error["loc"], prefix)
    if kind == "rules":
        return [
            Problem(".".join(part for part in (path, field) if part), found, expected)
            for field, found, expected in error["ctx"]["broken"]
        ]
    if kind == "extra_forbidden":
        fields = _fields(parent)
        hint = did_you_mean(key, fields)
        return [Problem(path, UNKNOWN_FIELD, f"a field that exists{hint}" if hint else f"one of {', '.join(fields)}")]
    if kind == "missing":
        return [Problem(path, None, describe(shape) if shape else "a value")]
    if kind == "value_error" or shape is None:
        # A validator of somebody's own (a part's Config): its words are all there is.
        return [Problem(path, got, str(error["msg"]).removeprefix("Value error, "))]
    hint = did_you_mean(got, map(str, shape.arguments)) if shape.kind is Literal else ""
    return [Problem(path, got, describe(shape) + hint)]


def _fields(shape: TypeInfo | None) -> list[str]:
    if shape is None or shape.model is None:
        return []
    return [field.alias or name for name, field in shape.model.model_fields.items()]


def _locate(
    model: type[BaseModel], location: tuple[str | int, ...], prefix: str
) -> tuple[str, TypeInfo | None, TypeInfo | None, object]:
    """Follows a location: its path, the shape of what should stand there, that of the object around it, and the last
    key.
    """
    path, parent, key = prefix, None, None
    shape: TypeInfo | None = TypeInfo(model, (), ())
    for part in location:
        if shape is None:
            break
        if shape.model is not None:
            parent, key = shape, part
            field = next((f for name, f in shape.model.model_fields.items() if (f.alias or name) == part), None)
            path, shape = join_path(path, str(part)), field_type_info(field) if field is not None else None
        elif shape.kind in (tuple, list) and isinstance(part, int):
            path, shape = f"{path}[{part}]", type_info(shape.arguments[0])
        elif shape.kind is dict and part != "[key]":
            path, parent, key = join_path(path, str(part)), shape, part
            shape = type_info(shape.arguments[1])
        elif shape.kind is dict:
            shape = type_info(shape.arguments[0])
        else:
            # The branch of a union is no part of the path. Among objects it has the name of a class, and what follows
            # is inside of it.
            branches = [
                branch
                for branch in map(type_info, shape.arguments)
                if branch.model is not None and branch.model.__name__ == part
            ]
            if not branches:
                break
            shape = branches[0]
    return path, shape, parent, key
