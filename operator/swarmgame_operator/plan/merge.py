"""Merging a `podTemplate` into a pod: mappings key by key, lists of named things by name, other lists as a whole.

That is the part of Kubernetes' strategic merge that people rely on, without its `$patch` directives. Invariant: what
the patch does not name stays as it is, and neither argument is changed.
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
"""By which field the entries of a list are told apart; as Kubernetes' own types say (`patchMergeKey`)."""

_UNIONS = {"volumes": ("name",), "env": ("name",)}
"""Entries that hold one of several things: a patch that names another one replaces the entry, as two would be refused."""


def merge(base: Any, patch: Any, field: str = "") -> Any:
    """`base` with `patch` laid over it. A null in the patch removes what it stands for."""
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
    """Where the base has an entry of the same name; compared, not hashed, as an author may write anything for a name."""
    name = entry.get(key) if isinstance(entry, Mapping) else None
    if name is None:
        return None
    return next(
        (place for place, found in enumerate(base) if isinstance(found, Mapping) and found.get(key) == name), None
    )


def _same_kind(base: Mapping[str, Any], patch: Mapping[str, Any], common: Sequence[str]) -> bool:
    return set(patch) <= set(base) | set(common)
