"""The Secrets, ConfigMaps and claims that a game refers to. The runtime reads exactly these, and of a Secret only the
names of its keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from swarmgame_api.manifest import SwarmGame
from swarmgame_api.quantities import is_object_name
from swarmgame_operator.defaults import Defaults


@dataclass(frozen=True, slots=True)
class References:
    """The objects that must exist, by name.

    Args:
        secrets: with the keys that each must have.
        config_maps: with the keys that each must have; none for a module, whose keys are its files.
    """

    secrets: dict[str, frozenset[str]]
    config_maps: dict[str, frozenset[str]]
    claims: frozenset[str]


def references(game: SwarmGame, defaults: Defaults) -> References:
    """Return what the manifest and the installation's defaults of pods refer to, without optional references
    (`optional: true`), and without names that no object can have.
    """
    spec = game.spec
    secrets: dict[str, set[str]] = {}
    maps: dict[str, set[str]] = {}
    if spec.model is not None and spec.model.secret_ref is not None:
        secrets.setdefault(spec.model.secret_ref.name, set()).add("token")
    if spec.coordination.rpc_secret_ref is not None:
        secrets.setdefault(spec.coordination.rpc_secret_ref.name, set()).add("url")
    if spec.coordination.wallet_secret_ref is not None:
        secrets.setdefault(spec.coordination.wallet_secret_ref.name, set()).add("key")
    if spec.identity.secret_name:
        secrets.setdefault(spec.identity.secret_name, set()).update(
            f"peer-{index}.key" for index in range(spec.peers.replicas)
        )
    for module in spec.game.modules:
        if module.config_map_ref is not None:
            maps.setdefault(module.config_map_ref.name, set())
    for _, source, name, key in _of_variables(game, defaults):
        if is_object_name(name):
            (secrets if source == "secretKeyRef" else maps).setdefault(name, set()).add(key)
    volumes: tuple[Any, ...] = (spec.storage.cache, spec.storage.checkpoints)
    return References(
        {name: frozenset(keys) for name, keys in secrets.items()},
        {name: frozenset(keys) for name, keys in maps.items()},
        frozenset(volume.claim_name for volume in volumes if volume.claim_name is not None),
    )


def impossible_references(game: SwarmGame, defaults: Defaults) -> Iterator[tuple[str, str, str]]:
    """Yield variables that refer to an object by a name that none can have: the variable, the field, and the name."""
    for variable, source, name, _ in _of_variables(game, defaults):
        if not is_object_name(name):
            yield variable, f"valueFrom.{source}.name", name


def _of_variables(game: SwarmGame, defaults: Defaults) -> Iterator[tuple[str, str, str, str]]:
    """Yield what variables refer to: variable, field, name and key."""
    spec = game.spec
    levels = [defaults.pod_defaults, *([spec.pod_defaults] if spec.pod_defaults is not None else [])]
    common = {variable.name: variable for level in levels for variable in level.env}
    for variable in (*common.values(), *spec.peers.env):
        for source in ("secretKeyRef", "configMapKeyRef"):
            reference = (variable.value_from or {}).get(source)
            if isinstance(reference, dict) and not reference.get("optional") and isinstance(reference.get("name"), str):
                yield variable.name, source, str(reference["name"]), str(reference.get("key", ""))
