"""The base of every object in the manifest, and the rules between fields.

A rule is written twice, side by side, so that both are changed together: as CEL for the API server, and as a Python
predicate for files. Invariant: an instance that exists obeys its rules and never changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError


def camel_case(name: str) -> str:
    """Return a Python name as the manifest writes it: `stage_deadline_seconds` as `stageDeadlineSeconds`."""
    first, *others = name.rstrip("_").split("_")
    return first + "".join(word.capitalize() for word in others)


@dataclass(frozen=True)
class Rule:
    """A condition on the fields of one object.

    Args:
        cel: the rule for the API server; `self` is the object that carries the rule.
        expected: what is correct, as the end of a sentence.
        check: the same rule in Python, on the validated object.
        field: the place to report, by the manifest's keys and relative to the object; empty for the object itself.
        show: the found value to show; by default the value of `field`.
    """

    cel: str
    expected: str
    check: Callable[[Any], bool]
    field: str = ""
    show: Callable[[Any], object] | None = None

    def found(self, instance: Model) -> object:
        """Return the value to report, as JSON data."""
        if self.show is not None:
            return self.show(instance)
        value: Any = instance.model_dump(mode="json", by_alias=True, exclude_none=True)
        for name in filter(None, self.field.split(".")):
            value = value.get(name) if isinstance(value, dict) else None
        return value


@dataclass(frozen=True)
class Transition:
    """A condition on a change of one object; CEL's `oldSelf` and `self`."""

    cel: str
    expected: str
    check: Callable[[Any, Any], bool]
    field: str = ""


class Model(BaseModel):
    """A strict, frozen object: unknown keys are errors, the manifest's keys are camelCase.

    Python code may build one with snake_case names; files are read with the manifest's names only (see
    `load.parse_manifest`).
    """

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        alias_generator=camel_case,
        validate_by_name=True,
        validate_by_alias=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )

    rules: ClassVar[tuple[Rule, ...]] = ()
    transitions: ClassVar[tuple[Transition, ...]] = ()

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        broken = [(rule.field, rule.found(self), rule.expected) for rule in self.rules if not rule.check(self)]
        if broken:
            raise PydanticCustomError(
                "rules", "expected {summary}", {"summary": "; ".join(b[2] for b in broken), "broken": broken}
            )
        return self
