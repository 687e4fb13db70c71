"""Descriptions of a field's type, for error messages and for the reference.

Invariant: a description is made from the annotation alone, so that it cannot disagree with what is enforced.
"""

from __future__ import annotations

import json
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from swarmgame_api.quantities import Expected


class TypeInfo(NamedTuple):
    """An annotation without its wrappers.

    Args:
        kind: the bare type: a class, or the origin of a generic (Literal, tuple, dict, Union).
        arguments: of a generic.
        metadata: constraints, outermost last.
    """

    kind: Any
    arguments: tuple[Any, ...]
    metadata: tuple[Any, ...]

    @property
    def model(self) -> type[BaseModel] | None:
        return self.kind if isinstance(self.kind, type) and issubclass(self.kind, BaseModel) else None


def type_info(annotation: Any, metadata: tuple[Any, ...] = ()) -> TypeInfo:
    """Return a type without Annotated and `| None`."""
    while True:
        origin = get_origin(annotation)
        if origin is Annotated:
            annotation, *more = get_args(annotation)
            metadata = (*more, *metadata)
            continue
        if origin in (Union, UnionType):
            members = [member for member in get_args(annotation) if member is not NoneType]
            if len(members) == 1:
                annotation = members[0]
                continue
            return TypeInfo(Union, tuple(members), metadata)
        return TypeInfo(origin or annotation, get_args(annotation), metadata)


def field_type_info(field: FieldInfo) -> TypeInfo:
    return type_info(field.annotation, tuple(field.metadata))


def _bounds(metadata: tuple[Any, ...]) -> tuple[Any, Any, int | None]:
    low = high = most = None
    for entry in (part for item in metadata for part in (item.metadata if isinstance(item, FieldInfo) else (item,))):
        low = getattr(entry, "ge", None) if isinstance(entry, Ge) else low
        low = f"more than {entry.gt}" if isinstance(entry, Gt) else low
        high = entry.le if isinstance(entry, Le) else high
        high = f"less than {entry.lt}" if isinstance(entry, Lt) else high
        most = entry.max_length if isinstance(entry, MaxLen) else most
        if not isinstance(entry, MaxLen):
            most = getattr(entry, "max_length", None) or most
    return low, high, most


def _grouped(number: Any) -> str:
    return f"{number:,}" if isinstance(number, int) else str(number)


def default_of(field: FieldInfo) -> str:
    """Return a field's default as JSON; `required` where there is none, empty where it is not worth showing."""
    if field.is_required():
        return "required"
    default: Any = field.get_default(call_default_factory=True)
    if default is PydanticUndefined or default is None or isinstance(default, BaseModel):
        return ""
    return json.dumps(
        default, ensure_ascii=False, default=lambda value: value.value if isinstance(value, Enum) else str(value)
    )


def default_cell(default: str) -> str:
    """Return a default as the cell of a Markdown table."""
    return default if default in ("", "required") else f"`{default}`"


def describe(info: TypeInfo) -> str:
    """Return the values that a type takes, as the end of a sentence that begins with "expected"."""
    text = next((item.text for item in reversed(info.metadata) if isinstance(item, Expected)), None)
    if text is not None:
        return text
    low, high, most = _bounds(info.metadata)
    between = f" from {_grouped(low)} to {_grouped(high)}" if low is not None and high is not None else ""
    if not between and low is not None:
        between = f" of {low}" if isinstance(low, str) else f" of at least {_grouped(low)}"
    length = "" if most is None else f" of at most {most:,}"
    if info.model is not None:
        names = [field.alias or name for name, field in info.model.model_fields.items()]
        return f"a mapping with the fields {', '.join(names)}"
    if info.kind is Literal:
        choices = [str(choice) or '""' for choice in info.arguments]
        return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
    if isinstance(info.kind, type) and issubclass(info.kind, Enum):
        return f"one of {', '.join(str(each.value) for each in info.kind)}"
    if info.kind is Any:
        return "anything"
    if info.kind is tuple and len(info.arguments) > 1 and Ellipsis not in info.arguments:
        items = [describe(type_info(argument)) for argument in info.arguments]
        return f"a list of {len(items)}: {', '.join(items)}"
    if info.kind in (tuple, list):
        return f"a list{length}, each {describe(type_info(info.arguments[0]))}"
    if info.kind is dict:
        return f"a mapping{f'{length} keys' if length else ''}, each value {describe(type_info(info.arguments[1]))}"
    if info.kind is Union:
        return " or ".join(describe(type_info(argument)) for argument in info.arguments)
    numbers = {bool: "true or false", int: f"an integer{between}", float: f"a number{between}"}
    return numbers.get(info.kind, f"a text{f'{length} characters' if length else ''}")
