"""Every rule of the manifest with its place in the schema; the CRD's validations are made from them.

Invariant: a path is that of a schema node; `[*]` stands for a list's items. Rules about metadata are at the root, the
only place where an API server lets a rule see `metadata.name`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pydantic import BaseModel

from swarmgame_api.base import Model, Rule, Transition
from swarmgame_api.errors import Problem, join_path
from swarmgame_api.manifest import Metadata, SwarmGame
from swarmgame_api.type_descriptions import TypeInfo, field_type_info, type_info


class PlacedRule(NamedTuple):
    """A rule and the schema node that carries it.

    Args:
        path: of the node, empty for the root.
        owner: the class of the objects there.
        rule: the rule.
    """

    path: str
    owner: type[Model]
    rule: Rule


class PlacedTransition(NamedTuple):
    """A rule about changes of an object, and the schema node that carries it."""

    path: str
    owner: type[Model]
    transition: Transition


def objects(model: type[BaseModel] = SwarmGame, path: str = "") -> Iterator[tuple[str, type[Model]]]:
    """Yield every object of the schema with its path, outermost first."""
    if issubclass(model, Model):
        yield path, model
    for name, field in model.model_fields.items():
        yield from _inside(field_type_info(field), join_path(path, field.alias or name))


def _inside(info: TypeInfo, path: str) -> Iterator[tuple[str, type[Model]]]:
    if info.model is not None:
        yield from objects(info.model, path)
    elif info.kind is tuple:
        yield from _inside(type_info(info.arguments[0]), f"{path}[*]")


def all_rules() -> tuple[PlacedRule, ...]:
    """Return the rules of every object."""
    return tuple(
        PlacedRule("" if owner is Metadata else path, owner, rule) for path, owner in objects() for rule in owner.rules
    )


def all_transitions() -> tuple[PlacedTransition, ...]:
    """Return the rules about changes of every object."""
    return tuple(
        PlacedTransition(path, owner, transition) for path, owner in objects() for transition in owner.transitions
    )


def change_problems(old: SwarmGame, new: SwarmGame) -> tuple[Problem, ...]:
    """Return the problems of changing one manifest into the other; empty where the change is allowed."""
    problems = []
    for path, _, transition in all_transitions():
        before, after = _at(old, path), _at(new, path)
        if not transition.check(before, after):
            place = ".".join(part for part in (path, transition.field) if part)
            problems.append(Problem(place, _value(new, place), transition.expected))
    return tuple(problems)


def _at(game: Model, path: str) -> object:
    value: object = game
    for key in path.split(".") if path else ():
        names = (
            {field.alias or name: name for name, field in type(value).model_fields.items()}
            if isinstance(value, Model)
            else {}
        )
        value = getattr(value, names[key])
    return value


def _value(game: SwarmGame, path: str) -> object:
    value = _at(game, path)
    return value.model_dump(mode="json", by_alias=True, exclude_none=True) if isinstance(value, Model) else value
