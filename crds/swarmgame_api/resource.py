"""A game as a cluster holds it: what the API server says of the object, its manifest, and its status, typed.

Not here: watching, writing, deciding. Invariant: reading one never fails for what a user or an older operator wrote. A
spec that cannot be used is `game=None` with the problems that say why; what cannot be read of a status is left out, and
the rest is kept, so that a game that was over stays over.

    resource = GameResource.parse(body)            # body: the object as JSON, from a watch or a GET
    resource.game.spec.peers.replicas              # every default is filled in
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
        uid: tells it from an earlier one of the same name; for owner references.
        generation: counts changes of the spec; for `observedGeneration`.
        created: when it was made.
        deleted: when its deletion was asked for; None while it is wanted.
        labels: of the object. Not in `game.metadata`: a cluster allows more and longer ones than a manifest.
        annotations: likewise.
        finalizers: who still has to agree to its end.
        managed_by: `spec.managedBy`, known even where the rest of the spec cannot be read.
        game: the manifest with every default filled in, or None where the spec cannot be used.
        problems: why not; empty where `game` is there.
        status: what was last said of it; empty for a new game.
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
        """Namespace and name: what a work queue holds."""
        return self.namespace, self.name

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> GameResource:
        """Reads an object as the API server gives it. The body is not changed and not kept.

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
    """A status from plain data. Fields of a newer schema and entries that cannot be read are left out; the rest stays."""
    if not isinstance(data, Mapping):
        return SwarmGameStatus()
    tree = json.loads(json.dumps(data))
    while True:
        try:
            # By way of JSON, where strict validation takes lists for tuples; and by the manifest's names alone.
            return SwarmGameStatus.model_validate_json(json.dumps(tree), by_alias=True, by_name=False)
        except ValidationError as error:
            places = {_blamed(found) for found in error.errors(include_url=False)}
            for place in sorted(places, key=_last_entry_first):
                if not place:
                    return SwarmGameStatus()
                if any(place[:length] in places for length in range(len(place))):
                    continue  # goes with what holds it
                _remove(tree, place)


def status_document(status: SwarmGameStatus) -> dict[str, Any]:
    """The status as the API writes it: camelCase, without what is absent. It is the whole status: in a merge patch,
    where an absent key stays, a key that went away must be sent as null."""
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


def _blamed(error: Mapping[str, Any]) -> Place:
    """What to leave out: the value itself, the object that misses a field, or, of a list that is too long, its first
    entry too many.
    """
    place: Place = tuple(error["loc"])
    if error["type"] == "missing":
        return place[:-1]
    if error["type"] == "too_long":
        return (*place, error["ctx"]["max_length"])
    return place


def _last_entry_first(place: Place) -> tuple[tuple[bool, str, int], ...]:
    """An order in which entries of one list go from the back, so that the numbers of the others stay true."""
    return tuple((True, "", -step) if isinstance(step, int) else (False, step, 0) for step in place)


def _remove(tree: Any, place: Place) -> None:
    for step in place[:-1]:
        tree = tree[step]
    del tree[place[-1]]
