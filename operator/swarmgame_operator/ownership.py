"""Drift: which applied fields of an object the operator no longer owns.

Server-side apply records the fields that each manager has set. If another manager changes or removes a field, the API
server removes it from the operator's entry. So an object has drifted exactly if its manifest has a field that the
entry lacks. This needs no copy of the object and no knowledge of defaults or of number formats (`0.5` of a CPU), and
fields that others may write, which the manifest leaves out, never count. Pure.

Source: https://kubernetes.io/docs/reference/using-api/server-side-apply/, structured-merge-diff's fieldpath (f: a
field, k: an item by its keys, v: an item of a set, i: an item by its place; an atomic value is a leaf).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from swarmgame_operator.snapshot import ChildFacts

_NOT_COMPARED = {
    ("apiVersion",),
    ("kind",),
    ("metadata", "name"),
    ("metadata", "namespace"),
    ("metadata", "ownerReferences"),
}
"""Never managed, or (owners) compared separately: their entries contain a uid, so texts could not be shared."""


def owned_fields(body: Mapping[str, Any], manager: str) -> str:
    """Return the fields that a manager owns, as JSON text. Objects of the same shape have the same text."""
    merged: dict[str, Any] = {}
    for entry in body.get("metadata", {}).get("managedFields") or ():
        if entry.get("manager") == manager and not entry.get("subresource"):
            _merge(merged, entry.get("fieldsV1") or {})
    metadata = merged.setdefault("f:metadata", {})
    metadata.pop("f:ownerReferences", None)
    metadata["."] = {}  # never a leaf, even if none of its fields is owned
    return json.dumps(merged, separators=(",", ":"), sort_keys=True)


def missing_fields(manifest: Mapping[str, Any], fields: str) -> tuple[str, ...]:
    """Return the fields of the manifest that are not owned any more, as paths."""
    found: list[str] = []
    _compare(manifest, json.loads(fields), (), found)
    return tuple(found)


def detect_drift(manifest: Mapping[str, Any], facts: ChildFacts) -> tuple[str, ...]:
    """Return the fields of the manifest that the operator does not own any more, owner references included. A child
    that has not changed since the last comparison is not compared again.
    """
    if not facts.drift_unknown:
        return ()
    missing = missing_fields(manifest, facts.owned_fields)
    owners = {str(owner["uid"]) for owner in manifest["metadata"].get("ownerReferences") or ()}
    return (*missing, "metadata.ownerReferences") if owners - set(facts.owners) else missing


def _merge(into: dict[str, Any], tree: Mapping[str, Any]) -> None:
    for key, below in tree.items():
        _merge(into.setdefault(key, {}), below)


def _compare(value: Any, tree: Mapping[str, Any], path: tuple[str, ...], found: list[str]) -> None:
    if not tree and path:
        return  # a leaf: a scalar, or a value that is owned as one
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
            # A key that the manifest leaves out has its default.
            if all(item.get(name, value) == value for name, value in keys.items()):
                return key
        elif (key.startswith("v:") and json.loads(key[2:]) == item) or key == f"i:{number}":
            return key
    return None
