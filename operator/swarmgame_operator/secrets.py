"""Secrets: generate missing keys, and read which keys the objects have that a game refers to.

Existing keys are never replaced or removed. The peer ids of new keys are known when they are generated, so the Secret
is not read again. Invariant: a key's value stays inside the function that generated or read it, and is never logged.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from swarmgame_common.logs import get_logger
from swarmgame_operator.adoption import belongs_to_another, is_of_an_earlier_game
from swarmgame_operator.api import CLAIM, CONFIG_MAP, SECRET, Api
from swarmgame_operator.apply import WITHOUT_INSTANCE, release
from swarmgame_operator.cache import ClusterCache, Key
from swarmgame_operator.errors import AlreadyExists, NameTaken, Retry
from swarmgame_operator.libp2p_keys import new_key, peer_id_of
from swarmgame_operator.plan import KeySecret, References
from swarmgame_operator.plan.game_context import INSTANCE_LABEL
from swarmgame_operator.snapshot_builder import secret_keys

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ReferencedObjects:
    """The existing objects that a game refers to: the names of their keys, and the claims' names."""

    secrets: Mapping[str, frozenset[str]]
    config_maps: Mapping[str, frozenset[str]]
    claims: frozenset[str]


@dataclass(frozen=True, slots=True)
class NewKeys:
    """A Secret that was just created.

    Args:
        version: as in `ClusterCache.version_of`.
        peer_ids: by the name of the key.
    """

    version: str
    peer_ids: Mapping[str, str]


class Secrets:
    """Key Secrets and referenced objects on one API server."""

    def __init__(self, api: Api, cache: ClusterCache) -> None:
        self._api, self._cache = api, cache

    async def ensure(self, key: Key, keys: KeySecret, uid: str) -> NewKeys | None:
        """Create the Secret, or add its missing keys and apply its metadata.

        Args:
            uid: the game's.

        Returns:
            The Secret if it was created.

        Raises:
            NameTaken: the Secret is not the game's.
            Retry: another client wrote it at the same time, or it goes with a deleted game of the same name; nothing
                was written.
        """
        if not self._cache.version_of(key, SECRET, keys.name) and (made := await self._create(key, keys)):
            return made
        namespace = key[0]
        existing = await self._api.get(SECRET, namespace, keys.name)
        if existing is None:
            if made := await self._create(key, keys):
                return made
            raise Retry(None, "Conflict", f"Secret {keys.name} was created by another client at the same time")
        if is_of_an_earlier_game(existing, key[1], uid):
            raise Retry(None, "Leaving", f"the Secret {keys.name} of a deleted game is still there")
        if why := belongs_to_another(existing, key[1], uid):
            raise NameTaken("NameTaken", why, status=409)
        missing = [name for name in keys.missing if name not in (existing.get("data") or {})]
        if missing:
            version = existing["metadata"]["resourceVersion"]
            patch = {"metadata": {"resourceVersion": version}, "data": _generate(missing)[0]}
            await self._api.merge(SECRET, namespace, keys.name, patch)
            log.info("keys added", key=key, secret=keys.name, count=len(missing))
        labels = keys.secret["metadata"].get("labels") or {}
        if INSTANCE_LABEL in (existing["metadata"].get("labels") or {}) and INSTANCE_LABEL not in labels:
            await self._api.merge(SECRET, namespace, keys.name, WITHOUT_INSTANCE)
        body = await self._api.apply(SECRET, namespace, keys.secret)
        self._cache.put(SECRET, await release(self._api, SECRET, body, keys.secret, uid), own_write=True)
        self._cache.mark_in_sync(key, {("Secret", keys.name)})
        return None

    async def _create(self, key: Key, keys: KeySecret) -> NewKeys | None:
        """Create the Secret; None if it exists without being in the cache. That is rare, so it is not read first."""
        data, peer_ids = _generate(keys.missing)
        try:
            body = await self._api.create(SECRET, key[0], {**keys.secret, "data": data})
        except AlreadyExists:
            return None
        self._cache.put(SECRET, body, own_write=True)
        self._cache.mark_in_sync(key, {("Secret", keys.name)})
        log.info("keys made", key=key, secret=keys.name, count=len(keys.missing))
        return NewKeys(f"{body['metadata']['uid']}/{body['metadata']['resourceVersion']}", peer_ids)

    async def peer_ids(self, namespace: str, secret: str, names: Iterable[str]) -> tuple[str, ...]:
        """Return the peer ids of these keys of a Secret, in order. Those without a valid key are left out, and
        logged.
        """
        data = ((await self._api.get(SECRET, namespace, secret)) or {}).get("data") or {}
        found = []
        for name in names:
            text = data.get(name)
            if not isinstance(text, str):
                continue
            try:
                found.append(peer_id_of(base64.b64decode(text, validate=True)))
            except (ValueError, binascii.Error):
                log.error(
                    "key cannot be used",
                    namespace=namespace,
                    secret=secret,
                    name=name,
                    expected="36 bytes of a secp256k1 libp2p key; delete it from the Secret, and a new one is made",
                )
        return tuple(found)

    async def resolve_references(self, namespace: str, required: References) -> ReferencedObjects:
        """Return which of these objects exist."""

        async def keys(kind: Any, names: Mapping[str, frozenset[str]]) -> dict[str, frozenset[str]]:
            found = {name: await self._api.get(kind, namespace, name) for name in names}
            return {name: secret_keys({"data": {}, **body}) for name, body in found.items() if body is not None}

        claims = {name for name in required.claims if await self._api.get(CLAIM, namespace, name) is not None}
        return ReferencedObjects(
            await keys(SECRET, required.secrets), await keys(CONFIG_MAP, required.config_maps), frozenset(claims)
        )


def _generate(names: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return new keys, encoded, and their peer ids, by name."""
    keys = {name: new_key() for name in names}
    encoded = {name: base64.b64encode(key).decode() for name, key in keys.items()}
    return encoded, {name: peer_id_of(key) for name, key in keys.items()}
