"""What may stand under `use` and `with`: the parts that are installed, and every option of each, from their own
configurations.

Invariant: every word stands in the code that enforces it; nothing is made, read or started.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Union

from pydantic import BaseModel

from swarmgame.game.components import Component
from swarmgame.runtime.assembly import GROUPS
from swarmgame_api.type_descriptions import TypeInfo, default_cell, default_of, describe, field_type_info, type_info

_SEE = "See the module."


@dataclass(frozen=True)
class Option:
    """One key of a `with` block.

    Args:
        path: below `with`; `[]` stands for each entry of a list.
        takes: what it may be, in words.
        default: as JSON; empty where there is none to show, `required` where it must be said.
        meaning: the sentence under it.
    """

    path: str
    takes: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Registered:
    """A part that a manifest may name.

    Args:
        kind: where in `spec.game` it is named: data, rewards or trainer.
        use: its name.
        summary: what it is.
        options: of its `with` block.
    """

    kind: str
    use: str
    summary: str
    options: tuple[Option, ...]


def names() -> set[str]:
    """What may stand under `use` without naming a module; imports none of them."""
    return {entry.name for group, _ in GROUPS.values() for entry in entry_points(group=group)}


def registered(use: str | None = None) -> list[Registered]:
    """The installed parts, all or those of one name, in the order of the manifest and of names; the others are not
    imported.
    """
    found = []
    for kind, (group, _) in GROUPS.items():
        entries = entry_points(group=group) if use is None else entry_points(group=group, name=use)
        for entry in sorted(entries, key=lambda entry: entry.name):
            part: type[Component] = entry.load()
            found.append(Registered(kind, entry.name, _summary(part), tuple(options_of(part.Config))))
    return found


def options_of(model: type[BaseModel], prefix: str = "") -> Iterator[Option]:
    """All options of a configuration, those of nested ones behind the one that holds them."""
    for name, field in model.model_fields.items():
        path = prefix + (field.alias or name)
        shape = field_type_info(field)
        inner, ending = _nested(shape)
        takes = (
            describe(shape) if inner is None else "a list, each with the fields below" if ending else "the fields below"
        )
        if inner is not None and shape.kind is Union:
            others = [describe(found) for found in map(type_info, shape.arguments) if found.model is None]
            takes = ", or ".join([*others, "the fields below"])
        yield Option(path, takes, default_of(field), _one_line(field.description or ""))
        if inner is not None:
            yield from options_of(inner, f"{path}{ending}.")


def page(parts: list[Registered]) -> str:
    """The text of `docs/reference/components.md`."""
    lines = [
        "# What may stand under `use` and `with`",
        "",
        "Written by `swarmgame components list --markdown > docs/reference/components.md` from the configurations.",
        "`swarmgame components show grpo` shows one of them; your own are listed where they are installed.",
        "Unknown keys and wrong types are errors, with path, value and expectation.",
    ]
    for part in parts:
        lines += ["", f"## {part.kind}: {part.use}", "", part.summary, ""]
        if not part.options:
            lines.append("No options.")
            continue
        lines += ["| option | takes | default | |", "|---|---|---|---|"]
        for option in part.options:
            cells = [f"`{option.path}`", option.takes, default_cell(option.default), option.meaning]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _nested(shape: TypeInfo) -> tuple[type[BaseModel] | None, str]:
    """The configuration inside a field, and what stands between its path and theirs."""
    if shape.model is not None:
        return shape.model, ""
    if shape.kind in (tuple, list) and shape.arguments:
        return type_info(shape.arguments[0]).model, "[]"
    if shape.kind is Union:
        return next((found.model for found in map(type_info, shape.arguments) if found.model is not None), None), ""
    return None, ""


def _summary(part: type[Component]) -> str:
    """What the class says of itself, and where that is "see the module", what the module says before its invariant."""
    own = _one_line((part.__doc__ or "").partition("\n\n")[0])
    if not own.startswith(_SEE):
        return own
    module = _one_line((sys.modules[part.__module__].__doc__ or "").partition("Invariant")[0])
    return f"{module} {own.removeprefix(_SEE)}".strip()


def _one_line(text: str) -> str:
    return " ".join(text.split())
