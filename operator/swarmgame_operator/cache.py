"""The cache of the cluster: games, and facts about their objects, by game.

kopf's watch delivers games (`put_game`); informers deliver everything else, and which games exist. Reconciling reads
it; it makes no requests. A game counts when both agree on its uid: kopf does not report a game that was deleted while
its watch was away. `changed` is called with a game's key if and only if something changed that a plan may depend on. A
few hundred bytes are kept per object. An older state never replaces a newer one. Anyone may label an object as a
game's: one that cannot be read is skipped, and counted in `unreadable`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from swarmgame_common.logs import get_logger
from swarmgame_operator import snapshot_builder
from swarmgame_operator.adoption import pod_is_of_an_earlier_game
from swarmgame_operator.api import (
    CLAIM,
    CONFIG_MAP,
    DEPLOYMENT,
    GAME,
    JOB,
    MANAGER,
    NETWORK_POLICY,
    POD,
    SECRET,
    SERVICE,
    STATEFUL_SET,
    ResourceKind,
)
from swarmgame_operator.ownership import detect_drift
from swarmgame_operator.plan.game_context import GAME_LABEL
from swarmgame_operator.records import GameRecord, ObjectRecord, may_be_left, record_of
from swarmgame_operator.snapshot import JobFacts, Observed, PodFacts, ServiceFacts, WorkloadFacts
from swarmgame_operator.snapshot_builder import PodRecord

log = get_logger(__name__)

Key = tuple[str, str]
"""A game's namespace and name."""
SELECTOR = f"app.kubernetes.io/managed-by={MANAGER},{GAME_LABEL}"
WATCHED: Mapping[ResourceKind, bool] = {
    GAME: True, POD: False, JOB: False, SERVICE: False, DEPLOYMENT: False, STATEFUL_SET: False,
    CONFIG_MAP: True, SECRET: True, NETWORK_POLICY: True, CLAIM: True,
}  # fmt: skip
"""The informers' kinds, and whether only metadata is watched: no watch brings a Secret's value into this process. Of
games, only which exist is needed here.
"""


@dataclass
class ClusterCache:
    """The store of all informers.

    Args:
        changed: called with a game's key when anything about it changed.
        clock: seconds, monotonic.
    """

    changed: Callable[[Key], None]
    clock: Callable[[], float] = time.monotonic
    _existing: dict[Key, str] = field(default_factory=dict)
    """Uids of the games that exist, from the informer."""
    _games: dict[Key, GameRecord] = field(default_factory=dict)
    """Games as kopf delivered them; one counts while it exists."""
    _undelivered: dict[Key, float] = field(default_factory=dict)
    """Games that exist and were not delivered, and since when."""
    _delivered: float = -math.inf
    """When kopf last delivered anything."""
    _objects: dict[Key, dict[tuple[str, str], ObjectRecord]] = field(default_factory=dict)
    _game_of: dict[tuple[str, str, str], str] = field(default_factory=dict)
    _texts: dict[str, str] = field(default_factory=dict)
    unreadable: dict[tuple[str, str, str], str] = field(default_factory=dict)
    """Objects (kind, namespace, name) whose present state is skipped, and why."""

    # ── for informers
    def put(self, kind: ResourceKind, body: dict[str, Any], *, own_write: bool = False) -> None:
        """Store an object's state. `own_write`: the operator has just written it, for which `changed` is not called."""
        metadata = body["metadata"]
        namespace, name = metadata.get("namespace", ""), metadata["name"]
        if kind is GAME:
            self._put_existing((namespace, name), metadata["uid"])
            return
        game = (metadata.get("labels") or {}).get(GAME_LABEL)
        known = self._game_of.get((kind.name, namespace, name))
        if known is not None and known != game:
            self._forget(kind.name, namespace, name)
        if not game:
            return
        try:
            record = record_of(kind, body, self._texts)
        except Exception as error:  # it would end the watch of this kind, and with it the operator
            place, problem = (kind.name, namespace, name), f"{type(error).__name__}: {error}"
            if self.unreadable.get(place) != problem:
                self.unreadable[place] = problem
                log.error("object skipped", kind=kind.name, namespace=namespace, name=name, exc_info=error)
            return  # what was known of it stays
        self.unreadable.pop((kind.name, namespace, name), None)
        objects = self._objects.setdefault((namespace, game), {})
        old = objects.get((kind.name, name))
        if old is not None and old.uid == record.uid:
            if _older(record.version, old.version):
                return
            record.child.in_sync = old.child.in_sync and old.child.same(record.child)
        objects[kind.name, name] = record
        self._game_of[kind.name, namespace, name] = game
        same_facts = old is not None and old.facts == record.facts
        if old is None or old.uid != record.uid or not same_facts or not old.child.same(record.child):
            # The answer to a write may also show what a controller has done meanwhile; no event of it follows.
            seen_meanwhile = old is not None and not same_facts and not isinstance(record.facts, frozenset)
            self._notify((namespace, game), own_write=own_write and not seen_meanwhile)

    def remove(self, kind: ResourceKind, namespace: str, name: str, uid: str) -> None:
        self.unreadable.pop((kind.name, namespace, name), None)
        if kind is GAME:
            self._remove_game((namespace, name), uid)
            return
        game = self._game_of.get((kind.name, namespace, name))
        if game is None:
            return
        if uid in ("", self._objects[namespace, game][kind.name, name].uid):
            self._forget(kind.name, namespace, name)

    def keep_only(self, kind: ResourceKind, namespace: str | None, names: set[tuple[str, str]]) -> None:
        known = (
            list(self._existing)
            if kind is GAME
            else [(there, name) for of, there, name in self._game_of if of == kind.name]
        )
        known += [(there, name) for of, there, name in self.unreadable if of == kind.name]
        for there, name in known:
            if namespace in (None, there) and (there, name) not in names:
                self.remove(kind, there, name, "")

    def _notify(self, key: Key, *, own_write: bool = False) -> None:
        if not own_write:
            self.changed(key)

    # ── games: which exist, from the informer; their content, from kopf's watch
    def _put_existing(self, key: Key, uid: str) -> None:
        if self._existing.get(key) == uid:
            return
        self._existing[key] = uid
        record = self._games.get(key)
        if record is not None and record.uid == uid:
            self._undelivered.pop(key, None)
        else:
            self._undelivered[key] = self.clock()
        self.changed(key)

    def _remove_game(self, key: Key, uid: str) -> None:
        existing = self._existing.get(key)
        if existing is None or uid not in ("", existing):
            return
        del self._existing[key]
        self._undelivered.pop(key, None)
        self.forget_game(key, existing)  # a game made since under the same name may have been delivered already
        self.changed(key)

    def put_game(self, key: Key, body: Mapping[str, Any], *, own_write: bool = False) -> None:
        """Store a game's state, from kopf's watch or (`own_write`) from the answer to a status write. That answer may
        also have what a user has changed meanwhile; no other event of it follows.
        """
        metadata = {name: value for name, value in body["metadata"].items() if name != "managedFields"}
        if not own_write:
            self._delivered = self.clock()
        text = json.dumps(
            {**body, "apiVersion": GAME.api, "kind": GAME.name, "metadata": metadata}, separators=(",", ":")
        ).encode()
        created = snapshot_builder.time_of(metadata.get("creationTimestamp"))
        record = GameRecord(metadata.get("uid", ""), str(metadata.get("resourceVersion", "")), text, created)
        old = self._games.get(key)
        if own_write and self._existing.get(key) != record.uid:
            return  # the answer came after the game was deleted
        if (
            old is not None
            and old.uid == record.uid
            and (_older(record.version, old.version) or record.version == old.version)
        ):
            return
        self._games[key] = record
        if self._existing.get(key) == record.uid:
            self._undelivered.pop(key, None)
            seen_meanwhile = own_write and old is not None and _written_by_users(old.body) != _written_by_users(body)
            self._notify(key, own_write=own_write and not seen_meanwhile)

    def forget_game(self, key: Key, uid: str) -> None:
        """Drop the state of a deleted game; another of the same name may have been delivered already."""
        record = self._games.get(key)
        if record is not None and record.uid == uid:
            del self._games[key]

    def undelivered_seconds(self) -> float:
        """Return for how long an existing game has not been delivered by kopf; 0 if all were."""
        return self.clock() - min(self._undelivered.values()) if self._undelivered else 0.0

    def silent_seconds(self) -> float:
        """Return for how long a game has waited while kopf delivered nothing at all; 0 if all were delivered."""
        return min(self.undelivered_seconds(), self.clock() - self._delivered)

    def _forget(self, kind: str, namespace: str, name: str) -> None:
        key = (namespace, self._game_of.pop((kind, namespace, name)))
        objects = self._objects[key]
        del objects[kind, name]
        if not objects:
            del self._objects[key]
        self.changed(key)

    # ── for reconciling
    def games(self) -> Iterator[tuple[Key, GameRecord]]:
        """Return all games at this moment."""
        return iter([(key, record) for key, record in self._games.items() if self._existing.get(key) == record.uid])

    def game(self, key: Key) -> GameRecord | None:
        """Return the game, or None if it does not exist or was not delivered yet."""
        record = self._games.get(key)
        return record if record is not None and self._existing.get(key) == record.uid else None

    def version_of(self, key: Key, kind: ResourceKind, name: str) -> str:
        """Return uid and version of an object; empty if it does not exist."""
        record = self._objects.get(key, {}).get((kind.name, name))
        return f"{record.uid}/{record.version}" if record else ""

    def pods(self, key: Key, role: str) -> list[PodRecord]:
        """Return the game's pods of a role."""
        return [each for each in self._pods(key) if each.facts.role == role]

    def can_be_polled(self, key: Key) -> bool:
        """Return whether a peer or the gateway can be polled. The bootnode knows no rounds."""
        pods = (each.facts for each in self._pods(key) if each.ip)
        return any(
            pod.ready if pod.role == "peer" else pod.role == "gateway" and pod.phase == "Running" for pod in pods
        )

    def drift_unknown(self, key: Key) -> set[tuple[str, str]]:
        """Return the children that changed since they were last compared with their manifests."""
        objects = self._objects.get(key, {})
        return {place for place, record in objects.items() if place[0] != "Pod" and not record.child.in_sync}

    def detect_drift(self, key: Key, manifest: Mapping[str, Any]) -> tuple[str, ...]:
        """Compare a child with its manifest, and remember if it is in sync. Return the missing fields; none if the
        child does not exist.
        """
        record = self._objects.get(key, {}).get((manifest["kind"], manifest["metadata"]["name"]))
        if record is None:
            return ()
        missing = detect_drift(manifest, record.child.facts)
        record.child.in_sync = not missing
        return missing

    def mark_in_sync(self, key: Key, places: set[tuple[str, str]]) -> None:
        """Remember that these children need no comparison until they change again."""
        for place in places:
            if (record := self._objects.get(key, {}).get(place)) is not None:
                record.child.in_sync = True

    def snapshot(self, key: Key, now: datetime) -> Observed:
        """Return what the cache knows about a game's objects."""
        current = self._current(key)
        found = [each.facts for each in current.values() if not each.child.controller]
        jobs = {each.name: each for each in found if isinstance(each, JobFacts)}
        secrets = {
            name: record.facts
            for (kind, name), record in current.items()
            if kind == "Secret" and isinstance(record.facts, frozenset)
        }
        return Observed(
            now=now,
            job=jobs.get(f"{key[1]}-peers"),
            initializer=jobs.get(f"{key[1]}-initializer"),
            pods=tuple(sorted((each.facts for each in found if isinstance(each, PodRecord)), key=_pod_order)),
            workloads=tuple(each for each in found if isinstance(each, WorkloadFacts)),
            services=tuple(each for each in found if isinstance(each, ServiceFacts)),
            secrets=secrets,
            children={
                place: record.child.facts if place in current else replace(record.child.facts, deleting=True)
                for place, record in self._objects.get(key, {}).items()
                if place[0] != "Pod"
            },
        )

    def _pods(self, key: Key) -> Iterator[PodRecord]:
        return (each.facts for each in self._current(key).values() if isinstance(each.facts, PodRecord))

    def _current(self, key: Key) -> dict[tuple[str, str], ObjectRecord]:
        """Return a game's objects without what a deleted game of its name has left to the garbage collector."""
        game, objects = self.game(key), self._objects.get(key, {})
        if game is None or not any(may_be_left(each, game) for each in objects.values()):
            return objects  # nearly always; this is asked for every poll
        kept = {place: each for place, each in objects.items() if each.child.game_uid in ("", game.uid)}
        makers = {
            each.facts.name[len(key[1]) + 1 :].replace("peers", "peer"): each.facts.created
            for each in kept.values()
            if isinstance(each.facts, (JobFacts, WorkloadFacts))
        }
        return {
            place: each
            for place, each in kept.items()
            if not isinstance(each.facts, PodRecord)
            or not pod_is_of_an_earlier_game(each.facts.facts, game.created, makers)
        }


def _pod_order(pod: PodFacts) -> tuple[str, int, str]:
    return pod.role, -1 if pod.index is None else pod.index, pod.name


def _written_by_users(game: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what of a game is not written by its status."""
    metadata = game["metadata"]
    parts = ("labels", "annotations", "finalizers", "deletionTimestamp", "ownerReferences")
    return (game.get("spec"), *(metadata.get(part) for part in parts))


def _older(version: str, than: str) -> bool:
    """Compare resource versions of one kind of object; they are numbers."""
    return version.isdigit() and than.isdigit() and int(version) < int(than)
