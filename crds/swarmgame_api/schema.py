"""A model as the structural OpenAPI v3 schema that a CustomResourceDefinition carries.

Made from annotations alone: types, bounds, patterns, defaults, descriptions, and rules where they belong. Not here: the
resource around it (`crd`). Invariant: every constraint of the model is in the schema, or making it fails; nothing is
left out in silence. What the two cannot say alike: the API server checks no patterns of a mapping's keys, and it keeps
a quantity as the number that it was written as.
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
    """The schema of an object, with everything below it.

    Raises:
        TypeError: an annotation says something that has no counterpart in a structural schema.
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
    """A rule as the API server takes it; what it says when broken reads as in a file's problem."""
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
    """A default in the manifest's terms. Objects are written out: the API server holds a default against the rules
    before it fills it in.
    """
    if isinstance(value, Model):
        return value.model_dump(mode="json", by_alias=True, exclude_none=True)
    return list(value) if isinstance(value, tuple) else value


def _schema(shape: TypeInfo) -> Schema:
    if shape.model is not None:
        if not issubclass(shape.model, Model):
            raise TypeError(f"{shape.model.__name__} is not a Model")
        return object_schema(shape.model)
    if shape.kind is tuple:
        return _list(shape)
    if shape.kind is dict:
        return _mapping(shape)
    if shape.kind is Literal:
        return {"type": "string", "enum": [_text(choice) for choice in shape.arguments]}
    if shape.kind is Union:
        return _integer_or_word(shape)
    if shape.kind is bool:
        return {"type": "boolean"}
    if shape.kind is int:
        return _integer(shape)
    if shape.kind is str:
        return _string(shape)
    raise TypeError(f"{shape.kind} has no counterpart in a structural schema")


def _integer(shape: TypeInfo) -> Schema:
    schema = {"type": "integer", **_bounds(shape)}
    if not {"minimum", "maximum"} <= set(schema):
        raise TypeError("an integer without a least and a greatest value")
    return {"format": "int32" if schema["maximum"] <= _INT32 else "int64", **schema}


def _string(shape: TypeInfo) -> Schema:
    bounds = _bounds(shape)
    if "maxLength" not in bounds:
        raise TypeError("a text without a greatest length: the cost of rules is estimated from it")
    if any(isinstance(item, BeforeValidator) for item in shape.metadata):
        return {**_INTEGER_OR_TEXT, "minimum": 0, "maximum": _LARGEST_QUANTITY, **bounds}
    return {"type": "string", **bounds}


_INTEGER_OR_TEXT: Schema = {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]}


def _integer_or_word(shape: TypeInfo) -> Schema:
    """`auto` or a number; the only kind of union that there is."""
    word, number = (type_info(argument) for argument in shape.arguments)
    if word.kind is not Literal or number.kind is not int:
        raise TypeError(f"a union of {word.kind} and {number.kind}")
    words = [_text(choice) for choice in word.arguments]
    longest = max(len(choice) for choice in words)
    return {**_INTEGER_OR_TEXT, "pattern": f"^({'|'.join(words)})$", "maxLength": longest, **_bounds(number)}


def _list(shape: TypeInfo) -> Schema:
    item, *rest = shape.arguments
    if rest != [Ellipsis]:
        raise TypeError("a tuple of a fixed form")
    bounds = {name.replace("Length", "Items"): bound for name, bound in _bounds(shape).items()}
    if "maxItems" not in bounds:
        raise TypeError("a list without a greatest length: the cost of rules is estimated from it")
    keys = [entry.field for entry in shape.metadata if isinstance(entry, Keyed)]
    kind: Schema = (
        {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": keys}
        if keys
        else {"x-kubernetes-list-type": "atomic"}
    )
    return {"type": "array", "items": _schema(type_info(item)), **bounds, **kind}


def _mapping(shape: TypeInfo) -> Schema:
    _, value = shape.arguments
    bounds = {name.replace("Length", "Properties"): bound for name, bound in _bounds(shape).items()}
    if "maxProperties" not in bounds:
        raise TypeError("a mapping without a greatest length: the cost of rules is estimated from it")
    if value is not JsonValue:
        return {"type": "object", "additionalProperties": _schema(type_info(value)), **bounds}
    if any(isinstance(entry, VisibleToCel) for entry in shape.metadata):
        return {"type": "object", "x-kubernetes-preserve-unknown-fields": True, **bounds}
    # What belongs to others is preserved below the keys: at the mapping itself, a rule that compares two of them passes
    # over renamed keys.
    return {
        "type": "object",
        "additionalProperties": {"x-kubernetes-preserve-unknown-fields": True, "nullable": True},
        **bounds,
    }


def _text(choice: object) -> str:
    if not isinstance(choice, str):
        raise TypeError(f"the choice {choice!r}, which is no text")
    return choice


def _bounds(shape: TypeInfo) -> Schema:
    """The bounds of a shape as JSON Schema has them, refusing any constraint that it does not know."""
    bounds: Schema = {}
    for entry in _constraints(shape.metadata):
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
                pass  # words for people; see _list and _mapping
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
    said = {name: value for name, value in vars(entry).items() if value is not None}
    names = {"pattern": "pattern", "min_length": "minLength", "max_length": "maxLength"}
    if unknown := set(said) - set(names):
        raise TypeError(f"the constraints {sorted(unknown)} have no counterpart in a structural schema")
    return {names[name]: value for name, value in said.items()}
