"""A structural schema in Python: the defaults that an API server fills in, and documents that the schema accepts.

Defaulting follows the server's algorithm: from the outside in, where a field is absent or null. The tests on a real
API server show that the two agree. Rules (CEL) are not evaluated here.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

Schema = dict[str, Any]


def fill_in(schema: Schema, value: Any) -> Any:
    """Return the value with its defaults, as the API server stores it."""
    if isinstance(value, dict) and "properties" in schema:
        filled = {}
        for name, child in schema["properties"].items():
            present = value.get(name)
            if present is None and "default" in child:
                present = copy.deepcopy(child["default"])
            if present is not None:
                filled[name] = fill_in(child, present)
        return filled | {name: other for name, other in value.items() if name not in schema["properties"]}
    if isinstance(value, dict) and "additionalProperties" in schema:
        return {name: fill_in(schema["additionalProperties"], child) for name, child in value.items()}
    if isinstance(value, list) and "items" in schema:
        return [fill_in(schema["items"], child) for child in value]
    return value


def nodes(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Yield every node with its path; `[*]` stands for a list's items, `{}` for a mapping's values."""
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}" if path else name)
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[*]")
    if "additionalProperties" in schema:
        yield from nodes(schema["additionalProperties"], f"{path}{{}}")


# Only fractions that Go writes as it read them: it writes 5.388127222638503e+16 as a different integer.
_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e15, 1e15) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=8), inner, max_size=3),
    max_leaves=6,
)
_ONE_IN_FOUR = st.sampled_from([False, False, False, True])
_KEYS = st.sampled_from(["storage", "a", "example.dev/b", "nvidia.com/gpu"])


def documents(schema: Schema) -> st.SearchStrategy[Any]:
    """Generate values that the schema accepts; most optional fields are absent, so that rules are rarely broken."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if schema.get("x-kubernetes-int-or-string"):
        return st.integers(schema["minimum"], schema["maximum"]) | _texts(schema)
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return st.dictionaries(_KEYS, _ANYTHING, max_size=3) if schema.get("type") == "object" else _ANYTHING
    match schema["type"]:
        case "boolean":
            return st.booleans()
        case "integer":
            return st.integers(schema["minimum"], min(schema["maximum"], schema["minimum"] + 8)) | st.integers(
                schema["minimum"], schema["maximum"]
            )
        case "string":
            return _texts(schema)
        case "array":
            key = schema.get("x-kubernetes-list-map-keys", [None])[0]
            unique = (lambda entry: entry[key]) if key else json.dumps
            return st.lists(
                documents(schema["items"]),
                min_size=schema.get("minItems", 0),
                max_size=min(schema["maxItems"], 3),
                unique_by=unique,
            )
        case "object" if "additionalProperties" in schema:
            values = documents(schema["additionalProperties"])
            return st.dictionaries(_KEYS, values, min_size=schema.get("minProperties", 0), max_size=3)
        case "object":
            return _objects(schema)
    raise AssertionError(schema)


def _objects(schema: Schema) -> st.SearchStrategy[dict[str, Any]]:
    children = {name: documents(child) for name, child in schema["properties"].items()}
    required = schema.get("required", [])

    @st.composite
    def build(draw: st.DrawFn) -> dict[str, Any]:
        return {name: draw(child) for name, child in children.items() if name in required or draw(_ONE_IN_FOUR)}

    return build()


def _texts(schema: Schema) -> st.SearchStrategy[str]:
    least, most = schema.get("minLength", 0), schema["maxLength"]
    if "pattern" in schema:
        return st.from_regex(schema["pattern"], fullmatch=True).filter(lambda text: least <= len(text) <= most)
    return st.text(min_size=least, max_size=min(most, 12))
