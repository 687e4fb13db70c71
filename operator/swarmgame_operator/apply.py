"""The applier: writes the objects and the status of a plan, one request each, and nothing if nothing differs.

Answers go into the cache at once, so the next plan sees them before the watch delivers them.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Mapping
from datetime import datetime
from typing import Any

from kubernetes.utils.quantity import parse_quantity

from swarmgame_api.resource import GameResource
from swarmgame_common.logs import get_logger
from swarmgame_operator.adoption import belongs_to_another, is_of_an_earlier_game
from swarmgame_operator.api import CLAIM, CONFIG_MAP, EVENT, GAME, KINDS, SERVICE, Api, Object, ResourceKind
from swarmgame_operator.cache import ClusterCache, Key
from swarmgame_operator.errors import AlreadyExists, Invalid, NameTaken, NotFound, OperatorError, Retry
from swarmgame_operator.plan import Child, Deletion, DryRun, Subject
from swarmgame_operator.plan.game_context import INSTANCE_LABEL
from swarmgame_operator.snapshot import Diagnosis, DryRunFacts
from swarmgame_operator.snapshot_builder import warning_facts

log = get_logger(__name__)

MAX_EVENTS = 50
"""Warnings of one object that are read; an object has one for each reason and text."""
LOOKED_UP_SECONDS = 1.0
"""A name that was found free longer ago is looked up again before it is written to."""
WITHOUT_INSTANCE: Object = {"metadata": {"labels": {INSTANCE_LABEL: None}}}
"""The patch for kept objects of an operator that still labelled them with their Application's name."""


class Applier:
    """Writes to one API server, and stores the answers in one cache."""

    def __init__(self, api: Api, cache: ClusterCache) -> None:
        self._api, self._cache = api, cache

    async def child(self, key: Key, child: Child, uid: str, looked_up: Awaitable[float] | None = None) -> None:
        """Create or update an object.

        Args:
            uid: the game's.
            looked_up: `look_up`, which may have begun before. An old answer is not relied upon: an object of the name
                may have been made since, and would be overwritten.

        Raises:
            NameTaken: an object of its name is not the game's.
        """
        kind = KINDS[child.kind]
        known_at = -math.inf if looked_up is None else await looked_up
        if asyncio.get_running_loop().time() - known_at > LOOKED_UP_SECONDS:
            await self.look_up(key, child, uid)
        if child.create_manifest is not None:
            body = await self._create(key, child, child.create_manifest, uid)
        else:
            body = await self._apply(kind, key[0], child, uid)
        self._cache.put(kind, body, own_write=True)
        missing = self._cache.detect_drift(key, child.apply_manifest)
        if missing:
            log.warning("not owned after writing", key=key, kind=child.kind, name=child.name, fields=missing[:5])
            self._cache.mark_in_sync(key, {(child.kind, child.name)})  # writing again would change nothing
        log.info("written", key=key, kind=child.kind, name=child.name, created=child.create_manifest is not None)

    async def look_up(self, key: Key, child: Child, uid: str) -> float:
        """Check that an object that will be applied and is not known has a name that is free: see `require_free`.
        Return when the answer came, by the loop's clock.
        """
        kind = KINDS[child.kind]
        if child.create_manifest is None and not self._cache.version_of(key, kind, child.name):
            await self.require_free(key, kind, child.name, uid)
        return asyncio.get_running_loop().time()

    async def _create(self, key: Key, child: Child, manifest: Object, uid: str) -> Object:
        kind = KINDS[child.kind]
        try:
            return await self._api.create(kind, key[0], manifest)
        except AlreadyExists:
            await self.require_free(key, kind, child.name, uid)
            return await self._apply(kind, key[0], child, uid)  # the game's, without the label by which it is watched

    async def _apply(self, kind: ResourceKind, namespace: str, child: Child, uid: str) -> Object:
        """Apply a child's fields, and repair what an apply alone cannot."""
        manifest = child.apply_manifest
        try:
            body = await self._api.apply(kind, namespace, manifest)
        except Invalid as error:
            if kind is CLAIM and (larger := await self._at_its_size(namespace, manifest)) is not None:
                return await release(self._api, kind, await self._api.apply(kind, namespace, larger), manifest, uid)
            # A port whose number another manager has changed is a second one of its name.
            if kind is not SERVICE or error.status != 422:
                raise
            await self._api.merge(kind, namespace, child.name, {"spec": {"ports": manifest["spec"]["ports"]}})
            body = await self._api.apply(kind, namespace, manifest)
        if INSTANCE_LABEL in (body["metadata"].get("labels") or {}) and INSTANCE_LABEL not in _labels(manifest):
            body = await self._api.merge(kind, namespace, child.name, WITHOUT_INSTANCE)
        return await release(self._api, kind, body, manifest, uid)

    async def _at_its_size(self, namespace: str, manifest: Object) -> Object | None:
        """Return a claim's manifest with the size that the claim has, if that is larger: a claim that was enlarged by
        hand never shrinks. None if it is not larger.
        """
        body = await self._api.get(CLAIM, namespace, manifest["metadata"]["name"])
        size = _storage(body or {})
        if not size or parse_quantity(size) <= parse_quantity(_storage(manifest)):
            return None
        log.info("claim keeps its size", name=manifest["metadata"]["name"], size=size, template=_storage(manifest))
        requests = {**manifest["spec"]["resources"]["requests"], "storage": size}
        return {**manifest, "spec": {**manifest["spec"], "resources": {"requests": requests}}}

    async def require_free(self, key: Key, kind: ResourceKind, name: str, uid: str) -> None:
        """Check that a name is free, or that its object is the game's.

        Raises:
            NameTaken: it is another's.
            Retry: it is of a deleted game of the same name, and goes with it.
        """
        body = await self._api.get(kind, key[0], name, metadata=True)
        if body is None:
            return
        if is_of_an_earlier_game(body, key[1], uid):
            raise Retry(None, "Leaving", f"the {kind.name} {name} of a deleted game is still there")
        if why := belongs_to_another(body, key[1], uid):
            raise NameTaken("NameTaken", why, status=409)

    async def diagnose(self, key: Key, subject: Subject, now: datetime) -> Diagnosis:
        """Return what the events of an object say."""
        chosen = {"kind": subject.kind, "namespace": key[0], "name": subject.name}
        fields = ",".join(f"involvedObject.{field}={value}" for field, value in chosen.items())
        try:
            page = await self._api.list_page(EVENT, key[0], fields=f"{fields},type=Warning", limit=MAX_EVENTS)
        except OperatorError as error:
            log.warning("events cannot be read", key=key, kind=subject.kind, name=subject.name, error=error.message)
            return Diagnosis(now, subject.uid, error=error.message)
        return Diagnosis(now, subject.uid, warning_facts(page.get("items") or (), subject.uid))

    async def require_existing(self, game: GameResource) -> None:
        """Ask the API server whether the game still exists: a watch that hangs silently delivers no deletion.

        Raises:
            Retry: it was deleted, or made again.
        """
        found = await self._api.get(GAME, game.namespace, game.name, metadata=True)
        if found is None or found["metadata"]["uid"] != game.uid:
            raise Retry(None, "GameDeleted", f"SwarmGame {game.namespace}/{game.name} {game.uid} was deleted")

    async def delete(self, key: Key, deletion: Deletion) -> None:
        """Delete an object; one that does not exist is no error.

        Raises:
            Retry: the object of this name has another uid.
        """
        await self._api.delete(
            KINDS[deletion.kind], key[0], deletion.name, propagation=deletion.propagation, uid=deletion.uid
        )
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
            if "does not support dry run" in error.message:  # a webhook with side effects: the Job itself will show
                return DryRunFacts(request.hash)
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
        except OperatorError as error:
            if error.status not in (400, 403, 422):
                raise
            return "is being terminated" in error.message  # else a quota or a policy refuses the probe
        return False

    async def status(self, game: GameResource, before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
        """Write the status if it differs. Return whether it did."""
        patch = difference(before, after)
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


async def release(api: Api, kind: ResourceKind, body: Object, manifest: Mapping[str, Any], uid: str) -> Object:
    """Remove the game from an object's owners if its manifest has none: it was made to go with its game, and is to be
    retained now. An apply alone does not remove an owner that was written by the object's creation.
    """
    owners = body["metadata"].get("ownerReferences") or ()
    others = [each for each in owners if each.get("uid") != uid]
    if manifest["metadata"].get("ownerReferences") or len(others) == len(owners):
        return body
    name, version = body["metadata"]["name"], body["metadata"]["resourceVersion"]
    patch = {"metadata": {"resourceVersion": version, "ownerReferences": others or None}}
    log.info("retained from now on", kind=kind.name, name=name)
    return await api.merge(kind, body["metadata"]["namespace"], name, patch)


def _storage(claim: Mapping[str, Any]) -> str:
    requests = claim.get("spec", {}).get("resources", {}).get("requests", {})
    return str(requests.get("storage", ""))


def _labels(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = manifest["metadata"].get("labels") or {}
    return found


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
