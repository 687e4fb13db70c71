"""A model as the structural OpenAPI v3 schema that a CustomResourceDefinition carries.

It is made from the annotations: types, bounds, patterns, defaults, descriptions and rules. The resource around it is
in `crd`. Invariant: every constraint of the model is in the schema, or making it raises TypeError. Two differences
remain: the API server checks no patterns of a mapping's keys, and it keeps a quantity that was written as a number.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Union

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BeforeValidator, JsonValue, StringConstraints
from pydantic.fields import FieldInfo

from swarmgame_api.base import Model, Rule, Transition
from swarmgame_api.quantities import Expected, Keyed, VisibleToCel, integer_as_text
from swarmgame_api.type_descriptions import TypeInfo, field_type_info, type_info

Schema = dict[str, Any]

_INT32 = 2**31 - 1
_LARGEST_QUANTITY = 10**15 - 1


def object_schema(model: type[Model]) -> Schema:
    """Return the schema of an object, with everything below it.

    Raises:
        TypeError: an annotation has no counterpart in a structural schema.
    """
    properties: Schema = {}
    for name, field in model.model_fields.items():
        try:
            properties[field.alias or name] = _property(field)
        except TypeError as error:
            error.add_note(f"in {model.__name__}.{name}")
            raise
    schema: Schema = {"type": "object", "description": one_line(model.__doc__ or ""), "properties": properties}
    required = [field.alias or name for name, field in model.model_fields.items() if field.is_required()]
    if required:
        schema["required"] = required
    validations = [*map(validation, model.rules), *map(validation, model.transitions)]
    if validations:
        schema["x-kubernetes-validations"] = validations
    return schema


def validation(rule: Rule | Transition) -> Schema:
    """Return a rule as the API server takes it, with the message that a file's problem has."""
    made = {"rule": rule.cel, "message": f"expected {rule.expected}"}
    if rule.field:
        made["fieldPath"] = f".{rule.field}"
    return made


def one_line(text: str) -> str:
    return " ".join(text.split())


def _property(field: FieldInfo) -> Schema:
    schema = _schema(field_type_info(field))
    if isinstance(field.json_schema_extra, dict):
        schema |= field.json_schema_extra
    if field.description:
        schema["description"] = one_line(field.description)
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    if default is not None:
        schema["default"] = _default(default)
    return schema


def _default(value: Any) -> Any:
    """Return a default as JSON data. Objects are complete, because the API server checks a default by the rules before
    it fills in the defaults inside."""
    if isinstance(value, Model):
        return value.model_dump(mode="json", by_alias=True, exclude_none=True)
    return list(value) if isinstance(value, tuple) else value


def _schema(info: TypeInfo) -> Schema:
    if info.model is not None:
        if not issubclass(info.model, Model):
            raise TypeError(f"{info.model.__name__} is not a Model")
        return object_schema(info.model)
    if info.kind is tuple:
        return _list(info)
    if info.kind is dict:
        return _mapping(info)
    if info.kind is Literal:
        return {"type": "string", "enum": [_text(choice) for choice in info.arguments]}
    if info.kind is Union:
        return _integer_or_choice(info)
    if info.kind is bool:
        return {"type": "boolean"}
    if info.kind is int:
        return _integer(info)
    if info.kind is str:
        return _string(info)
    raise TypeError(f"{info.kind} has no counterpart in a structural schema")


def _integer(info: TypeInfo) -> Schema:
    schema = {"type": "integer", **_bounds(info)}
    if not {"minimum", "maximum"} <= set(schema):
        raise TypeError("an integer without a minimum and a maximum")
    return {"format": "int32" if schema["maximum"] <= _INT32 else "int64", **schema}


def _string(info: TypeInfo) -> Schema:
    bounds = _bounds(info)
    if "maxLength" not in bounds:
        raise TypeError("a text without a maximum length: the cost of rules is estimated from it")
    if any(isinstance(item, BeforeValidator) for item in info.metadata):
        return {**_INTEGER_OR_TEXT, "minimum": 0, "maximum": _LARGEST_QUANTITY, **bounds}
    return {"type": "string", **bounds}


_INTEGER_OR_TEXT: Schema = {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]}


def _integer_or_choice(info: TypeInfo) -> Schema:
    """Return the schema of `auto` or a number, the only supported union."""
    literal, number = (type_info(argument) for argument in info.arguments)
    if literal.kind is not Literal or number.kind is not int:
        raise TypeError(f"a union of {literal.kind} and {number.kind}")
    choices = [_text(choice) for choice in literal.arguments]
    longest = max(len(choice) for choice in choices)
    return {**_INTEGER_OR_TEXT, "pattern": f"^({'|'.join(choices)})$", "maxLength": longest, **_bounds(number)}


def _list(info: TypeInfo) -> Schema:
    item, *rest = info.arguments
    if rest != [Ellipsis]:
        raise TypeError("a tuple of fixed length")
    bounds = {name.replace("Length", "Items"): bound for name, bound in _bounds(info).items()}
    if "maxItems" not in bounds:
        raise TypeError("a list without a maximum length: the cost of rules is estimated from it")
    keys = [entry.field for entry in info.metadata if isinstance(entry, Keyed)]
    kind: Schema = (
        {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": keys}
        if keys
        else {"x-kubernetes-list-type": "atomic"}
    )
    return {"type": "array", "items": _schema(type_info(item)), **bounds, **kind}


def _mapping(info: TypeInfo) -> Schema:
    _, value = info.arguments
    bounds = {name.replace("Length", "Properties"): bound for name, bound in _bounds(info).items()}
    if "maxProperties" not in bounds:
        raise TypeError("a mapping without a maximum length: the cost of rules is estimated from it")
    if value is not JsonValue:
        return {"type": "object", "additionalProperties": _schema(type_info(value)), **bounds}
    if any(isinstance(entry, VisibleToCel) for entry in info.metadata):
        return {"type": "object", "x-kubernetes-preserve-unknown-fields": True, **bounds}
    # Values are preserved below the keys: with the mark at the mapping itself, a rule that compares two mappings does
    # not
    # notice a renamed key.
    return {
        "type": "object",
        "additionalProperties": {"x-kubernetes-preserve-unknown-fields": True, "nullable": True},
        **bounds,
    }


def _text(choice: object) -> str:
    if not isinstance(choice, str):
        raise TypeError(f"the choice {choice!r}, which is not a text")
    return choice


def _bounds(info: TypeInfo) -> Schema:
    """Return the bounds of a type in JSON Schema's terms; an unknown constraint is a TypeError."""
    bounds: Schema = {}
    for entry in _constraints(info.metadata):
        match entry:
            case Ge():
                bounds["minimum"] = entry.ge
            case Gt():
                bounds |= {"minimum": entry.gt, "exclusiveMinimum": True}
            case Le():
                bounds["maximum"] = entry.le
            case Lt():
                bounds |= {"maximum": entry.lt, "exclusiveMaximum": True}
            case MinLen():
                bounds["minLength"] = entry.min_length
            case MaxLen():
                bounds["maxLength"] = entry.max_length
            case StringConstraints():
                bounds |= _string_bounds(entry)
            case Expected() | Keyed() | VisibleToCel():
                pass  # no bounds; see _list and _mapping
            case BeforeValidator(func=func) if func is integer_as_text:
                pass  # see _string
            case _:
                raise TypeError(f"the constraint {entry!r} has no counterpart in a structural schema")
    return bounds


def _constraints(metadata: tuple[Any, ...]) -> Iterator[object]:
    for entry in metadata:
        if isinstance(entry, FieldInfo):
            yield from entry.metadata
        else:
            yield entry


def _string_bounds(entry: StringConstraints) -> Schema:
    given = {name: value for name, value in vars(entry).items() if value is not None}
    names = {"pattern": "pattern", "min_length": "minLength", "max_length": "maxLength"}
    if unknown := set(given) - set(names):
        raise TypeError(f"the constraints {sorted(unknown)} have no counterpart in a structural schema")
    return {names[name]: value for name, value in given.items()}
