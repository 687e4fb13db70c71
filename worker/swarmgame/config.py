"""Base of every `with:` block of a manifest: strict, immutable, camelCase in YAML and snake_case in Python."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class Config(BaseModel):
    """Give each field of a subclass a type and a sentence under it; unknown keys and wrong types are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, use_attribute_docstrings=True, alias_generator=to_camel
    )
