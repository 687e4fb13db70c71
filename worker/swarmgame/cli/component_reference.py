"""The reference of components: those that are installed, and every option of each, from their configurations.

`swarmgame components` shows it, and `docs/reference/components.md` is made from it. Nothing is created or started.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Union

from pydantic import BaseModel

from swarmgame.environments.toolbox import GROUP as TOOLS
from swarmgame.game.components import Component
from swarmgame.runtime.assembly import GROUPS
from swarmgame_api.type_descriptions import TypeInfo, default_cell, default_of, describe, field_type_info, type_info

_SEE = "See the module."
_GROUPS = {**{kind: group for kind, (group, _) in GROUPS.items()}, "tool": TOOLS}
"""Kind of a component → entry-point group."""


@dataclass(frozen=True)
class ComponentOption:
    """One key of a `with` block.

    Args:
        path: below `with`; `[]` is each entry of a list.
        takes: its type and bounds, as a text.
        default: as JSON; empty where there is none to show, `required` where it must be given.
        meaning: the sentence under the field.
    """

    path: str
    takes: str
    default: str
    meaning: str


@dataclass(frozen=True)
class ComponentReference:
    """A component that a manifest may name.

    Args:
        kind: data, rewards, trainer, environment, tool or tracker.
        use: its name.
        summary: what it is.
        options: of its `with` block.
    """

    kind: str
    use: str
    summary: str
    options: tuple[ComponentOption, ...]


def component_names() -> set[str]:
    """Return the values of `use` that name no module; imports none of them."""
    return {entry.name for group in _GROUPS.values() for entry in entry_points(group=group)}


def installed_components(use: str | None = None) -> list[ComponentReference]:
    """Return the installed components, all or those of one name, in the order of the manifest and of names. The others
    are not imported.
    """
    found = []
    for kind, group in _GROUPS.items():
        entries = entry_points(group=group) if use is None else entry_points(group=group, name=use)
        for entry in sorted(entries, key=lambda entry: entry.name):
            component: type[Component] = entry.load()
            options = tuple(options_of(component.Config))
            found.append(ComponentReference(kind, entry.name, _summary(component), options))
    return found


def options_of(model: type[BaseModel], prefix: str = "") -> Iterator[ComponentOption]:
    """Yield all options of a configuration; those of a nested one follow the option that holds it."""
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
        yield ComponentOption(path, takes, default_of(field), _one_line(field.description or ""))
        if inner is not None:
            yield from options_of(inner, f"{path}{ending}.")


def components_page(components: list[ComponentReference]) -> str:
    """Return the text of `docs/reference/components.md`."""
    lines = [
        "# Components",
        "",
        "The values of `use` in a manifest, and the keys of `with` for each. This page is made by",
        "`swarmgame components list --markdown > docs/reference/components.md` from the configurations.",
        "`swarmgame components show grpo` shows one of them; your own are listed where they are installed.",
        "Unknown keys and wrong types are errors, with path, value and expectation.",
    ]
    for component in components:
        lines += ["", f"## {component.kind}: {component.use}", "", component.summary, ""]
        if not component.options:
            lines.append("No options.")
            continue
        lines += ["| option | takes | default | |", "|---|---|---|---|"]
        for option in component.options:
            cells = [f"`{option.path}`", option.takes, default_cell(option.default), option.meaning]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _nested(shape: TypeInfo) -> tuple[type[BaseModel] | None, str]:
    """Return the configuration inside a field, and what its path adds to those of its options."""
    if shape.model is not None:
        return shape.model, ""
    if shape.kind in (tuple, list) and shape.arguments:
        return type_info(shape.arguments[0]).model, "[]"
    if shape.kind is Union:
        return next((found.model for found in map(type_info, shape.arguments) if found.model is not None), None), ""
    return None, ""


def _summary(component: type[Component]) -> str:
    """Return the first paragraph of the class; where that is "See the module.", of the module."""
    own = _one_line((component.__doc__ or "").partition("\n\n")[0])
    if not own.startswith(_SEE):
        return own
    module = _one_line((sys.modules[component.__module__].__doc__ or "").partition("Invariant")[0])
    return f"{module} {own.removeprefix(_SEE)}".strip()


def _one_line(text: str) -> str:
    return " ".join(text.split())
