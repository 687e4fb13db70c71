"""Secrets: makes keys that are missing, and looks up which keys a game's own references have.

Keys only ever grow: what is there is never read into a log, replaced or removed. Invariant: a value stays inside the
function that made or read it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from swarmgame_operator.api import CLAIM, CONFIG_MAP, SECRET, Api
from swarmgame_operator.errors import AlreadyExists, Retry
from swarmgame_operator.facts import keys_of
from swarmgame_operator.identity import new_key, peer_of
from swarmgame_operator.logs import log
from swarmgame_operator.observe import Cache, Key
from swarmgame_operator.plan import Keys, References
from swarmgame_operator.plan.identity import BOOTNODE_KEY


@dataclass(frozen=True, slots=True)
class Found:
    """Which of the things that a game refers to exist: the names of their keys, and the claims' names."""

    secrets: Mapping[str, frozenset[str]]
    config_maps: Mapping[str, frozenset[str]]
    claims: frozenset[str]


class Secrets:
    """Makes and looks up on one API server."""

    def __init__(self, api: Api, cache: Cache) -> None:
        self._api, self._cache = api, cache

    async def ensure(self, key: Key, keys: Keys) -> None:
        """Makes the Secret, or adds the keys that it lacks and the metadata that it should have.

        Raises:
            Retry: somebody wrote to it at the same time; nothing was written.
        """
        if not self._cache.version_of(key, SECRET, keys.name) and await self._made(key, keys):
            return
        namespace = key[0]
        there = await self._api.get(SECRET, namespace, keys.name)
        if there is None:
            if not await self._made(key, keys):
                raise Retry(None, "Conflict", f"Secret {keys.name} was made by somebody else at the same time")
            return
        missing = [name for name in keys.missing if name not in (there.get("data") or {})]
        if missing:
            version = there["metadata"]["resourceVersion"]
            patch = {"metadata": {"resourceVersion": version}, "data": _generate(missing)}
            await self._api.merge(SECRET, namespace, keys.name, patch)
            log.info("keys added", key=key, secret=keys.name, count=len(missing))
        self._cache.put(SECRET, await self._api.apply(SECRET, namespace, keys.secret), ours=True)
        self._cache.trust(key, {("Secret", keys.name)})

    async def _made(self, key: Key, keys: Keys) -> bool:
        """Makes the Secret; False where there is one that we have not seen. Most often there is none, so nobody is
        asked first.
        """
        try:
            body = await self._api.create(SECRET, key[0], {**keys.secret, "data": _generate(keys.missing)})
        except AlreadyExists:
            return False
        self._cache.put(SECRET, body, ours=True)
        self._cache.trust(key, {("Secret", keys.name)})
        log.info("keys made", key=key, secret=keys.name, count=len(keys.missing))
        return True

    async def bootnode_peer(self, key: Key) -> str:
        """The peer id of the bootnode's key; empty while there is none that can be read."""
        there = await self._api.get(SECRET, key[0], f"{key[1]}-bootnode-key")
        text = ((there or {}).get("data") or {}).get(BOOTNODE_KEY)
        if not isinstance(text, str):
            return ""
        try:
            return peer_of(base64.b64decode(text, validate=True))
        except (ValueError, binascii.Error):
            log.error(
                "bootnode key cannot be used",
                key=key,
                expected="36 bytes of a secp256k1 libp2p key; delete the Secret to have one made",
            )
            return ""

    async def look_up(self, namespace: str, wanted: References) -> Found:
        """Which of these exist."""

        async def keys(kind: Any, names: Mapping[str, frozenset[str]]) -> dict[str, frozenset[str]]:
            found = {name: await self._api.get(kind, namespace, name) for name in names}
            return {name: keys_of({"data": {}, **body}) for name, body in found.items() if body is not None}

        claims = {name for name in wanted.claims if await self._api.get(CLAIM, namespace, name) is not None}
        return Found(await keys(SECRET, wanted.secrets), await keys(CONFIG_MAP, wanted.config_maps), frozenset(claims))


def _generate(names: Any) -> dict[str, str]:
    return {name: base64.b64encode(new_key()).decode() for name in names}
