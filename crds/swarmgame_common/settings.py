"""Settings: what a process reads from its environment, as a pydantic model.

A field's variable is the prefix and the field's name in capitals, or what its `Variable` names:

    class PodSettings(EnvironmentSettings):
        http_port: Port = 8080
        index: Annotated[int, Field(ge=0), Variable("JOB_COMPLETION_INDEX")] = 0

    settings = read_settings(PodSettings, os.environ, prefix="SWARMGAME_")

The sentence under a field is its documentation; `settings_table` makes the reference page from them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError


class InvalidSettings(Exception):
    """The environment cannot be used. The message has a line for each variable: its name, its value, what is wrong."""


class EnvironmentSettings(BaseModel):
    """Base of a process's settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


Settings_ = TypeVar("Settings_", bound=EnvironmentSettings)


@dataclass(frozen=True, init=False)
class Variable:
    """Names the variable of a field, as metadata in `Annotated`.

    Args:
        names: the first of them that is set counts; none: the prefix and the field's name.
        expected: what the value should be, for the message; empty: the message of pydantic.
        secret: the message does not show the value.
    """

    names: tuple[str, ...]
    expected: str
    secret: bool

    def __init__(self, *names: str, expected: str = "", secret: bool = False) -> None:
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "expected", expected)
        object.__setattr__(self, "secret", secret)


def _split(pattern: str) -> BeforeValidator:
    def split(value: Any) -> Any:
        return tuple(word for word in re.split(pattern, value.strip()) if word) if isinstance(value, str) else value

    return BeforeValidator(split)


def _check_digits(value: Any) -> Any:
    if isinstance(value, str) and not (value.isascii() and value.isdecimal()):
        raise PydanticCustomError("digits", "Input should be a number of digits only")
    return value


Digits = BeforeValidator(_check_digits)
"""Metadata of an integer that may not be negative; pydantic would also take `+8080` and `8080.0`. Stands first, so
that the message about a number out of range shows the text of the variable.
"""
CommaSeparated = Annotated[tuple[str, ...], _split(r"\s*,\s*")]
SpaceSeparated = Annotated[tuple[str, ...], _split(r"\s+")]
Port = Annotated[int, Digits, Field(ge=0, le=65_535)]


def read_settings(
    model: type[Settings_],
    environment: Mapping[str, str],
    *,
    prefix: str = "",
    refuse_unknown: bool = False,
    keep_empty: bool = False,
) -> Settings_:
    """Return the settings in an environment.

    Args:
        refuse_unknown: a variable with the prefix that is no setting is an error, so that a misspelt one is noticed.
        keep_empty: an empty value is checked like any other; otherwise it counts as not set.

    Raises:
        InvalidSettings: naming every variable that is unknown, missing, or has a value that cannot be used.
    """
    given: dict[str, str] = {}
    used: dict[str, str] = {}
    for name, field in model.model_fields.items():
        names = variables_of(name, field, prefix)
        used[name] = names[0]
        for variable in names:
            value = environment.get(variable)
            if value is not None and (value or keep_empty):
                given[name], used[name] = value, variable
                break
    problems: list[str] = []
    if refuse_unknown:
        known = {each for name, field in model.model_fields.items() for each in variables_of(name, field, prefix)}
        unknown = sorted(name for name in environment if name.startswith(prefix) and name not in known)
        problems = [f"{name} is {environment[name]!r}; there is no such setting" for name in unknown]
    try:
        settings = model.model_validate(given)
    except ValidationError as error:
        problems = [_problem(model, used, each) for each in error.errors(include_url=False)] + problems
        raise InvalidSettings("\n".join(problems)) from error
    if problems:
        raise InvalidSettings("\n".join(problems))
    return settings


def variables_of(name: str, field: FieldInfo, prefix: str) -> tuple[str, ...]:
    """Return the variables of a field, the preferred one first."""
    return _marker(field).names or (prefix + name.upper(),)


def settings_table(model: type[EnvironmentSettings], prefix: str = "") -> list[str]:
    """Return a Markdown table of all settings, a line each."""
    rows = ["| variable | what it is | default |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True, validated_data={})
        nothing = default is None or isinstance(default, BaseModel)
        shown = ",".join(default) if isinstance(default, tuple) else "" if nothing else str(default)
        cell = "required" if field.is_required() else f"`{shown}`" if shown else ""
        variables = ", ".join(f"`{each}`" for each in variables_of(name, field, prefix))
        rows.append(f"| {variables} | {' '.join((field.description or '').split())} | {cell} |")
    return rows


def _marker(field: FieldInfo) -> Variable:
    return next((each for each in field.metadata if isinstance(each, Variable)), Variable())


def _problem(model: type[EnvironmentSettings], used: Mapping[str, str], error: Any) -> str:
    name = str(error["loc"][0]) if error["loc"] else ""
    marker = _marker(model.model_fields[name]) if name in model.model_fields else Variable()
    expectation = f"expected {marker.expected}" if marker.expected else error["msg"]
    if error["type"] == "missing":
        return f"{used.get(name, name)} is not set; {expectation}"
    return f"{used.get(name, name)} is {'«hidden»' if marker.secret else repr(error['input'])}; {expectation}"
