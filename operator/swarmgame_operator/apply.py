"""Applying: carries out what a plan says of objects and of the status, one request each, and nothing where nothing
differs.

The answers go into the cache at once, so that the next plan sees what was just written and not what a watch will say a
moment later. Invariant: no request is made for an object that the plan does not name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swarmgame_api.resource import GameResource, status_document
from swarmgame_api.status import SwarmGameStatus
from swarmgame_operator.api import CONFIG_MAP, GAME, KINDS, Api
from swarmgame_operator.errors import AlreadyExists, Invalid, NotFound, Retry
from swarmgame_operator.logs import log
from swarmgame_operator.observe import Cache, Key
from swarmgame_operator.observed import DryRunFacts
from swarmgame_operator.plan import Child, DryRun, Reference


class Applier:
    """Writes to one API server, on behalf of one cache."""

    def __init__(self, api: Api, cache: Cache) -> None:
        self._api, self._cache = api, cache

    async def child(self, key: Key, child: Child) -> None:
        """Makes or mends an object.

        Raises:
            AlreadyExists: one of that name is there that we have not seen; the next look will tell.
        """
        kind = KINDS[child.kind]
        if child.creation is not None:
            body = await self._api.create(kind, key[0], child.creation)
        else:
            body = await self._api.apply(kind, key[0], child.manifest)
        self._cache.put(kind, body, ours=True)
        missing = self._cache.check(key, child.manifest)
        if missing:
            log.warning("not owned after writing", key=key, kind=child.kind, name=child.name, fields=missing[:5])
            self._cache.trust(key, {(child.kind, child.name)})  # writing again would change nothing
        log.info("written", key=key, kind=child.kind, name=child.name, created=child.creation is not None)

    async def delete(self, key: Key, reference: Reference) -> None:
        """Deletes an object; one that is gone already is no error."""
        await self._api.delete(KINDS[reference.kind], key[0], reference.name, propagation=reference.propagation)
        log.info("deleted", key=key, kind=reference.kind, name=reference.name)

    async def delete_game(self, game: GameResource) -> None:
        """Deletes the game, if it is still the one that was looked at."""
        await self._api.delete(GAME, game.namespace, game.name, propagation="Background", uid=game.uid)
        log.info("deleted", key=game.key, kind=GAME.name, name=game.name)

    async def ask(self, key: Key, question: DryRun) -> DryRunFacts:
        """What the API server would say to the peers' Job."""
        try:
            await self._api.create(KINDS[str(question.manifest["kind"])], key[0], question.manifest, dry_run=True)
        except AlreadyExists:
            return DryRunFacts(question.hash)
        except Invalid as error:
            return DryRunFacts(question.hash, error.message.split(": ", 1)[-1] or error.reason)
        return DryRunFacts(question.hash)

    async def namespace_ends(self, namespace: str) -> bool:
        """Whether the namespace is on its way out. Asked by a dry run, which needs no right to namespaces."""
        question = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"generateName": "swarmgame-", "namespace": namespace},
        }
        try:
            await self._api.create(CONFIG_MAP, namespace, question, dry_run=True)
        except Retry as error:
            if error.status == 403 and "is being terminated" in error.message:
                return True
            raise
        return False

    async def status(self, game: GameResource, before: Mapping[str, Any], after: SwarmGameStatus) -> bool:
        """Writes the status where it differs from what is there. Returns whether it did."""
        patch = difference(before, status_document(after))
        if not patch:
            return False
        try:
            body = await self._api.merge(
                GAME, game.namespace, game.name, {"metadata": {"uid": game.uid}, "status": patch}, subresource="status"
            )
        except NotFound:
            return False  # the game went away meanwhile
        self._cache.put(GAME, body, ours=True)
        return True


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The merge patch from one document to the other: what is new or other, and null for what went away. Lists are
    replaced as a whole.
    """
    patch: dict[str, Any] = {key: None for key in before if key not in after and before[key] is not None}
    for key, value in after.items():
        old = before.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            if below := difference(old, value):
                patch[key] = below
        elif key not in before or old != value:
            patch[key] = value
    return patch
