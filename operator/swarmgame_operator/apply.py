"""The applier: writes the objects and the status of a plan, one request each, and nothing if nothing differs.

Answers go into the cache at once, so the next plan sees them before the watch delivers them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swarmgame_api.resource import GameResource, status_document
from swarmgame_api.status import SwarmGameStatus
from swarmgame_common.logs import get_logger
from swarmgame_operator.api import CONFIG_MAP, GAME, KINDS, Api
from swarmgame_operator.cache import ClusterCache, Key
from swarmgame_operator.errors import AlreadyExists, Invalid, NotFound, Retry
from swarmgame_operator.plan import Child, Deletion, DryRun
from swarmgame_operator.snapshot import DryRunFacts

log = get_logger(__name__)


class Applier:
    """Writes to one API server, and stores the answers in one cache."""

    def __init__(self, api: Api, cache: ClusterCache) -> None:
        self._api, self._cache = api, cache

    async def child(self, key: Key, child: Child) -> None:
        """Create or update an object.

        Raises:
            AlreadyExists: the cache has not received the object yet; a retry finds it.
        """
        kind = KINDS[child.kind]
        if child.create_manifest is not None:
            body = await self._api.create(kind, key[0], child.create_manifest)
        else:
            body = await self._api.apply(kind, key[0], child.apply_manifest)
        self._cache.put(kind, body, own_write=True)
        missing = self._cache.detect_drift(key, child.apply_manifest)
        if missing:
            log.warning("not owned after writing", key=key, kind=child.kind, name=child.name, fields=missing[:5])
            self._cache.mark_in_sync(key, {(child.kind, child.name)})  # writing again would change nothing
        log.info("written", key=key, kind=child.kind, name=child.name, created=child.create_manifest is not None)

    async def require_existing(self, game: GameResource) -> None:
        """Ask the API server whether the game still exists: a watch that hangs silently delivers no deletion.

        Raises:
            Retry: it was deleted, or made again.
        """
        found = await self._api.get(GAME, game.namespace, game.name)
        if found is None or found["metadata"]["uid"] != game.uid:
            raise Retry(None, "GameDeleted", f"SwarmGame {game.namespace}/{game.name} {game.uid} was deleted")

    async def delete(self, key: Key, deletion: Deletion) -> None:
        """Delete an object; one that does not exist is no error."""
        await self._api.delete(KINDS[deletion.kind], key[0], deletion.name, propagation=deletion.propagation)
        log.info("deleted", key=key, kind=deletion.kind, name=deletion.name)

    async def delete_game(self, game: GameResource) -> None:
        """Delete the game, if it still has the same uid."""
        await self._api.delete(GAME, game.namespace, game.name, propagation="Background", uid=game.uid)
        log.info("deleted", key=game.key, kind=GAME.name, name=game.name)

    async def dry_run(self, key: Key, request: DryRun) -> DryRunFacts:
        """Return the API server's answer to a dry run of the peers' Job."""
        try:
            await self._api.create(KINDS[str(request.manifest["kind"])], key[0], request.manifest, dry_run=True)
        except AlreadyExists:
            return DryRunFacts(request.hash)
        except Invalid as error:
            return DryRunFacts(request.hash, error.message.split(": ", 1)[-1] or error.reason)
        return DryRunFacts(request.hash)

    async def namespace_is_terminating(self, namespace: str) -> bool:
        """Return whether the namespace is terminating. Found by a dry run, which needs no rights to namespaces."""
        probe = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"generateName": "swarmgame-", "namespace": namespace},
        }
        try:
            await self._api.create(CONFIG_MAP, namespace, probe, dry_run=True)
        except Retry as error:
            if error.status == 403 and "is being terminated" in error.message:
                return True
            raise
        return False

    async def status(self, game: GameResource, before: Mapping[str, Any], after: SwarmGameStatus) -> bool:
        """Write the status if it differs. Return whether it did."""
        patch = difference(before, status_document(after))
        if not patch:
            return False
        try:
            body = await self._api.merge(
                GAME, game.namespace, game.name, {"metadata": {"uid": game.uid}, "status": patch}, subresource="status"
            )
        except NotFound:
            return False  # the game was deleted meanwhile
        self._cache.put_game(game.key, body, own_write=True)
        return True


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return the merge patch from one document to the other; lists are replaced as a whole."""
    patch: dict[str, Any] = {key: None for key in before if key not in after and before[key] is not None}
    for key, value in after.items():
        old = before.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            if below := difference(old, value):
                patch[key] = below
        elif key not in before or old != value:
            patch[key] = value
    return patch
