"""Merge a `podTemplate` into a pod: mappings by key, lists of named entries by name, other lists as a whole.

This is Kubernetes' strategic merge without its `$patch` directives. What the patch does not name stays as it is, and
neither argument is modified.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "volumes": "name",
    "env": "name",
    "imagePullSecrets": "name",
    "resourceClaims": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
}
"""The field that identifies the entries of a list, as in Kubernetes' own types (`patchMergeKey`)."""

_UNIONS = {"volumes": ("name",), "env": ("name",)}
"""Entries that hold one of several kinds of value: a patch with another kind replaces the entry, as two are refused."""


def merge(base: Any, patch: Any, field: str = "") -> Any:
    """Return `base` with `patch` merged into it. A null in the patch removes the value."""
    if isinstance(base, Mapping) and isinstance(patch, Mapping):
        merged = dict(base)
        for key, value in patch.items():
            if value is None:
                merged.pop(key, None)
            else:
                merged[key] = merge(base[key], value, key) if key in base else value
        return merged
    if isinstance(base, list) and isinstance(patch, list) and field in _KEYS:
        return _merge_entries(base, patch, _KEYS[field], field)
    return patch


def _merge_entries(base: Sequence[Any], patch: Sequence[Any], key: str, field: str) -> list[Any]:
    merged = list(base)
    for entry in patch:
        place = _place_of(entry, base, key)
        if place is None:
            merged.append(entry)
        elif field in _UNIONS and not _same_kind(merged[place], entry, _UNIONS[field]):
            merged[place] = entry
        else:
            merged[place] = merge(merged[place], entry)
    return merged


def _place_of(entry: Any, base: Sequence[Any], key: str) -> int | None:
    """Return the position of the base's entry of the same name. Compared, not hashed: a name may be any JSON."""
    name = entry.get(key) if isinstance(entry, Mapping) else None
    if name is None:
        return None
    return next(
        (place for place, found in enumerate(base) if isinstance(found, Mapping) and found.get(key) == name), None
    )


def _same_kind(base: Mapping[str, Any], patch: Mapping[str, Any], common: Sequence[str]) -> bool:
    return set(patch) <= set(base) | set(common)
