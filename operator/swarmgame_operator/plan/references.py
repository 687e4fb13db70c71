"""The Secrets, ConfigMaps and claims that a game refers to. The runtime reads exactly these, and of a Secret only the
names of its keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from swarmgame_api.manifest import SwarmGame


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


def references(game: SwarmGame) -> References:
    """Return what the manifest refers to, without optional references (`optional: true`)."""
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
    for variable in spec.peers.env:
        for source, found in (("secretKeyRef", secrets), ("configMapKeyRef", maps)):
            reference = (variable.value_from or {}).get(source)
            if isinstance(reference, dict) and not reference.get("optional") and isinstance(reference.get("name"), str):
                found.setdefault(str(reference["name"]), set()).add(str(reference.get("key", "")))
    volumes: tuple[Any, ...] = (spec.storage.cache, spec.storage.checkpoints)
    return References(
        {name: frozenset(keys) for name, keys in secrets.items()},
        {name: frozenset(keys) for name, keys in maps.items()},
        frozenset(volume.claim_name for volume in volumes if volume.claim_name is not None),
    )
