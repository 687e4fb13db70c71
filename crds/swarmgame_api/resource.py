"""A game as an object of a cluster: its metadata, its manifest and its status, typed.

Invariant: reading one never fails for what a user or an older operator wrote. An unusable spec is `game=None` with its
problems; unreadable entries of a status are dropped and the rest is kept, so that a finished game stays finished.

    resource = GameResource.parse(body)            # body: the object as JSON, from a watch or a GET
    resource.game.spec.peers.replicas              # with its defaults
    body["status"] = status_document(resource.status)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from swarmgame_api.errors import InvalidManifest, Problem
from swarmgame_api.load import parse_manifest
from swarmgame_api.manifest import SwarmGame, SwarmGameSpec
from swarmgame_api.status import SwarmGameStatus

MANAGER: str = SwarmGameSpec.model_fields["managed_by"].default
"""The controller of a game that names none."""


@dataclass(frozen=True)
class GameResource:
    """One SwarmGame of a cluster.

    Args:
        namespace: of the object.
        name: of the object.
        uid: distinguishes it from an earlier object of the same name; for owner references.
        generation: counts changes of the spec; for `observedGeneration`.
        created: time of its creation.
        deleted: time at which its deletion was requested; None before.
        labels: of the object. Not in `game.metadata`: a cluster allows more and longer ones than a manifest.
        annotations: likewise.
        finalizers: controllers that have to release it before it is deleted.
        managed_by: `spec.managedBy`, known even where the rest of the spec cannot be read.
        game: the manifest with its defaults, or None where the spec cannot be used.
        problems: the errors of an unusable spec; else empty.
        status: the last status that was written; empty for a new game.
    """

    namespace: str
    name: str
    uid: str
    generation: int
    created: datetime
    deleted: datetime | None
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    finalizers: tuple[str, ...]
    managed_by: str
    game: SwarmGame | None
    problems: tuple[Problem, ...]
    status: SwarmGameStatus

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name: the key of work queues."""
        return self.namespace, self.name

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> GameResource:
        """Parse an object as the API server returns it. The body is not changed and not kept.

        Raises:
            ValueError: it has no name, namespace, uid or creation time, so it does not come from a cluster.
        """
        metadata = body.get("metadata") or {}
        absent = [key for key in ("name", "namespace", "uid", "creationTimestamp") if not metadata.get(key)]
        if absent:
            raise ValueError(f"an object without metadata.{absent[0]} does not come from a cluster")
        game, problems = _game(body, metadata)
        spec = body.get("spec")
        managed_by = spec.get("managedBy") if isinstance(spec, Mapping) else None
        return cls(
            namespace=metadata["namespace"],
            name=metadata["name"],
            uid=metadata["uid"],
            generation=int(metadata.get("generation") or 0),
            created=_time(metadata["creationTimestamp"]),
            deleted=_time(metadata["deletionTimestamp"]) if metadata.get("deletionTimestamp") else None,
            labels=dict(metadata.get("labels") or {}),
            annotations=dict(metadata.get("annotations") or {}),
            finalizers=tuple(metadata.get("finalizers") or ()),
            managed_by=managed_by if isinstance(managed_by, str) else MANAGER,
            game=game,
            problems=problems,
            status=read_status(body.get("status")),
        )


def read_status(data: object) -> SwarmGameStatus:
    """Return a status from plain data, without fields of a newer schema and without unreadable entries."""
    if not isinstance(data, Mapping):
        return SwarmGameStatus()
    tree = json.loads(json.dumps(data))
    while True:
        try:
            # JSON, because strict validation takes lists for tuples only there; and only the manifest's names.
            return SwarmGameStatus.model_validate_json(json.dumps(tree), by_alias=True, by_name=False)
        except ValidationError as error:
            places = {_place_to_drop(found) for found in error.errors(include_url=False)}
            for place in sorted(places, key=_last_entry_first):
                if not place:
                    return SwarmGameStatus()
                if any(place[:length] in places for length in range(len(place))):
                    continue  # removed with the place around it
                _remove(tree, place)


def status_document(status: SwarmGameStatus) -> dict[str, Any]:
    """Return the complete status as the API writes it: camelCase, without absent fields. A merge patch keeps absent
    keys, so there a removed key must be sent as null."""
    return status.model_dump(mode="json", by_alias=True, exclude_none=True)


def _game(body: Mapping[str, Any], metadata: Mapping[str, Any]) -> tuple[SwarmGame | None, tuple[Problem, ...]]:
    document = {
        "apiVersion": body.get("apiVersion"),
        "kind": body.get("kind"),
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
        "spec": body.get("spec"),
    }
    try:
        return parse_manifest(document), ()
    except InvalidManifest as error:
        return None, error.problems


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


Place = tuple[str | int, ...]


def _place_to_drop(error: Mapping[str, Any]) -> Place:
    """Return the place to drop: the value, the object that lacks a field, or the first entry too many of a list."""
    place: Place = tuple(error["loc"])
    if error["type"] == "missing":
        return place[:-1]
    if error["type"] == "too_long":
        return (*place, error["ctx"]["max_length"])
    return place


def _last_entry_first(place: Place) -> tuple[tuple[bool, str, int], ...]:
    """Return a sort key that drops entries of one list from the back, so that the other indices stay valid."""
    return tuple((True, "", -step) if isinstance(step, int) else (False, step, 0) for step in place)


def _remove(tree: Any, place: Place) -> None:
    for step in place[:-1]:
        tree = tree[step]
    del tree[place[-1]]
