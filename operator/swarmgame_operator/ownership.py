"""Ownership: whether the fields that we applied to an object are still ours; how drift is found.

Server-side apply writes down which fields a manager has set. When anybody changes or removes one of them, by hand or by
program, the API server takes it from our entry. So an object has drifted exactly when our manifest has a field that our
entry lacks. That needs no copy of the object, no table of defaults, and no knowledge of how a server writes `0.5` of a
CPU; and fields that others may write, which our manifest leaves out, never count. Pure. Invariant: an object just
applied has not drifted from what was applied.

Source: https://kubernetes.io/docs/reference/using-api/server-side-apply/, structured-merge-diff's fieldpath (f: a
field, k: an item by its keys, v: an item of a set, i: an item by its place; an atomic value is a leaf).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_NOT_COMPARED = {
    ("apiVersion",),
    ("kind",),
    ("metadata", "name"),
    ("metadata", "namespace"),
    ("metadata", "ownerReferences"),
}
"""Never managed, or (owners) looked at by themselves: their entries hold the game's uid, and texts could not be shared."""


def owned_fields(body: Mapping[str, Any], manager: str) -> str:
    """All that a manager owns of an object, as JSON text; the same text for objects of the same make, so that it can be
    shared.
    """
    merged: dict[str, Any] = {}
    for entry in body.get("metadata", {}).get("managedFields") or ():
        if entry.get("manager") == manager and not entry.get("subresource"):
            _merge(merged, entry.get("fieldsV1") or {})
    metadata = merged.setdefault("f:metadata", {})
    metadata.pop("f:ownerReferences", None)
    metadata["."] = {}  # never a leaf, even where nothing of it is ours
    return json.dumps(merged, separators=(",", ":"), sort_keys=True)


def lost(manifest: Mapping[str, Any], fields: str) -> tuple[str, ...]:
    """Fields of the manifest that are not owned any more, as paths; none: no drift."""
    found: list[str] = []
    _compare(manifest, json.loads(fields), (), found)
    return tuple(found)


def _merge(into: dict[str, Any], tree: Mapping[str, Any]) -> None:
    for key, below in tree.items():
        _merge(into.setdefault(key, {}), below)


def _compare(value: Any, tree: Mapping[str, Any], path: tuple[str, ...], found: list[str]) -> None:
    if not tree and path:
        return  # a leaf: a scalar, or a value that is owned as a whole
    if isinstance(value, Mapping):
        for key, below in value.items():
            place = (*path, key)
            if below is None or below == {} or below == [] or place in _NOT_COMPARED:
                continue
            if f"f:{key}" not in tree:
                found.append(".".join(place))
            else:
                _compare(below, tree[f"f:{key}"], place, found)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            entry = _entry(item, number, tree)
            if entry is None:
                found.append(f"{'.'.join(path)}[{number}]")
            else:
                _compare(item, tree[entry], (*path[:-1], f"{path[-1]}[{number}]"), found)


def _entry(item: Any, number: int, tree: Mapping[str, Any]) -> str | None:
    for key in tree:
        if key.startswith("k:") and isinstance(item, Mapping):
            keys = json.loads(key[2:])
            if all(
                item.get(name, value) == value for name, value in keys.items()
            ):  # a key that was left out has its default
                return key
        elif (key.startswith("v:") and json.loads(key[2:]) == item) or key == f"i:{number}":
            return key
    return None
