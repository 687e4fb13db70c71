"""Secrets: generate missing keys, and read which keys the objects have that a game refers to.

Existing keys are never replaced or removed. Invariant: a key's value stays inside the function that generated or read
it, and is never logged.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from swarmgame_common.logs import get_logger
from swarmgame_operator.api import CLAIM, CONFIG_MAP, SECRET, Api
from swarmgame_operator.cache import ClusterCache, Key
from swarmgame_operator.errors import AlreadyExists, Retry
from swarmgame_operator.libp2p_keys import new_key, peer_id_of
from swarmgame_operator.plan import KeySecret, References
from swarmgame_operator.plan.storage import BOOTNODE_KEY
from swarmgame_operator.snapshot_builder import secret_keys

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ReferencedObjects:
    """The existing objects that a game refers to: the names of their keys, and the claims' names."""

    secrets: Mapping[str, frozenset[str]]
    config_maps: Mapping[str, frozenset[str]]
    claims: frozenset[str]


class Secrets:
    """Key Secrets and referenced objects on one API server."""

    def __init__(self, api: Api, cache: ClusterCache) -> None:
        self._api, self._cache = api, cache

    async def ensure(self, key: Key, keys: KeySecret) -> None:
        """Create the Secret, or add its missing keys and apply its metadata.

        Raises:
            Retry: another client wrote it at the same time; nothing was written.
        """
        if not self._cache.version_of(key, SECRET, keys.name) and await self._create(key, keys):
            return
        namespace = key[0]
        existing = await self._api.get(SECRET, namespace, keys.name)
        if existing is None:
            if not await self._create(key, keys):
                raise Retry(None, "Conflict", f"Secret {keys.name} was created by another client at the same time")
            return
        missing = [name for name in keys.missing if name not in (existing.get("data") or {})]
        if missing:
            version = existing["metadata"]["resourceVersion"]
            patch = {"metadata": {"resourceVersion": version}, "data": _generate(missing)}
            await self._api.merge(SECRET, namespace, keys.name, patch)
            log.info("keys added", key=key, secret=keys.name, count=len(missing))
        self._cache.put(SECRET, await self._api.apply(SECRET, namespace, keys.secret), own_write=True)
        self._cache.mark_in_sync(key, {("Secret", keys.name)})

    async def _create(self, key: Key, keys: KeySecret) -> bool:
        """Create the Secret; False if it exists without being in the cache. That is rare, so it is not read first."""
        try:
            body = await self._api.create(SECRET, key[0], {**keys.secret, "data": _generate(keys.missing)})
        except AlreadyExists:
            return False
        self._cache.put(SECRET, body, own_write=True)
        self._cache.mark_in_sync(key, {("Secret", keys.name)})
        log.info("keys made", key=key, secret=keys.name, count=len(keys.missing))
        return True

    async def bootnode_peer(self, key: Key) -> str:
        """Return the peer id of the bootnode's key; empty while there is no valid one."""
        existing = await self._api.get(SECRET, key[0], f"{key[1]}-bootnode-key")
        text = ((existing or {}).get("data") or {}).get(BOOTNODE_KEY)
        if not isinstance(text, str):
            return ""
        try:
            return peer_id_of(base64.b64decode(text, validate=True))
        except (ValueError, binascii.Error):
            log.error(
                "bootnode key cannot be used",
                key=key,
                expected="36 bytes of a secp256k1 libp2p key; delete the Secret, and a new one is made",
            )
            return ""

    async def resolve_references(self, namespace: str, required: References) -> ReferencedObjects:
        """Return which of these objects exist."""

        async def keys(kind: Any, names: Mapping[str, frozenset[str]]) -> dict[str, frozenset[str]]:
            found = {name: await self._api.get(kind, namespace, name) for name in names}
            return {name: secret_keys({"data": {}, **body}) for name, body in found.items() if body is not None}

        claims = {name for name in required.claims if await self._api.get(CLAIM, namespace, name) is not None}
        return ReferencedObjects(
            await keys(SECRET, required.secrets), await keys(CONFIG_MAP, required.config_maps), frozenset(claims)
        )


def _generate(names: Any) -> dict[str, str]:
    return {name: base64.b64encode(new_key()).decode() for name in names}
