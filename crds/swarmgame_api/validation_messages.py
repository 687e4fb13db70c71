"""Pydantic's errors as messages for the author of a manifest: path, value, and what was expected.

Invariant: every error becomes a problem whose path uses the manifest's keys; the branches of a union become one
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
    """Return the problems in the order in which they were found, each place once.

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


def did_you_mean(name: object, choices: Iterable[str]) -> str:
    """Return `; did you mean "maxRounds"?`, or an empty text."""
    lowered = {choice.lower().replace("_", ""): choice for choice in choices}
    close = get_close_matches(str(name)[:100].lower().replace("_", ""), list(lowered), n=1, cutoff=0.7)
    return f'; did you mean "{lowered[close[0]]}"?' if close else ""


def _problems(model: type[BaseModel], error: Mapping[str, Any], prefix: str) -> list[Problem]:
    kind, got = error["type"], error["input"]
    path, info, parent, key = _locate(model, error["loc"], prefix)
    if kind == "rules":
        return [
            Problem(".".join(part for part in (path, field) if part), found, expected)
            for field, found, expected in error["ctx"]["broken"]
        ]
    if kind == "extra_forbidden":
        fields = _fields(parent)
        if not fields:
            return [Problem(path, UNKNOWN_FIELD, "no options: this takes none")]
        hint = did_you_mean(key, fields)
        return [Problem(path, UNKNOWN_FIELD, f"a field that exists{hint}" if hint else f"one of {', '.join(fields)}")]
    if kind == "missing":
        return [Problem(path, None, describe(info) if info else "a value")]
    if kind == "value_error" or info is None:
        # A validator of a component's own Config: its message is all there is.
        return [Problem(path, got, str(error["msg"]).removeprefix("Value error, "))]
    hint = did_you_mean(got, map(str, info.arguments)) if info.kind is Literal else ""
    return [Problem(path, got, describe(info) + hint)]


def _fields(info: TypeInfo | None) -> list[str]:
    if info is None or info.model is None:
        return []
    return [field.alias or name for name, field in info.model.model_fields.items()]


def _locate(
    model: type[BaseModel], location: tuple[str | int, ...], prefix: str
) -> tuple[str, TypeInfo | None, TypeInfo | None, object]:
    """Return a location's path, the type expected there, the type of the object around it, and the last key."""
    path, parent, key = prefix, None, None
    info: TypeInfo | None = TypeInfo(model, (), ())
    for part in location:
        if info is None:
            break
        if info.model is not None:
            parent, key = info, part
            field = next((f for name, f in info.model.model_fields.items() if (f.alias or name) == part), None)
            path, info = join_path(path, str(part)), field_type_info(field) if field is not None else None
        elif info.kind in (tuple, list) and isinstance(part, int):
            path, info = f"{path}[{part}]", type_info(info.arguments[0])
        elif info.kind is dict and part != "[key]":
            path, parent, key = join_path(path, str(part)), info, part
            info = type_info(info.arguments[1])
        elif info.kind is dict:
            info = type_info(info.arguments[0])
        else:
            # The branch of a union is not part of the path. Among objects it has the name of a class, and what follows
            # is inside it.
            branches = [
                branch
                for branch in map(type_info, info.arguments)
                if branch.model is not None and branch.model.__name__ == part
            ]
            if not branches:
                break
            info = branches[0]
    return path, info, parent, key
