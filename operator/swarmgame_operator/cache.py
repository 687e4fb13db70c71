"""The cache of the cluster: games, and facts about their objects, by game.

kopf's watch delivers games (`put_game`); informers deliver everything else, and which games exist. Reconciling reads
it; it makes no requests. A game counts when both agree on its uid: kopf does not report a game that was deleted while
its watch was away. `changed` is called with a game's key if and only if something changed that a plan may depend on. A
few hundred bytes are kept per object. An older state never replaces a newer one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from swarmgame_operator import snapshot_builder
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
from swarmgame_operator.ownership import detect_drift, owned_fields
from swarmgame_operator.plan.game_context import GAME_LABEL, INTENT_HASH
from swarmgame_operator.snapshot import ChildFacts, JobFacts, Observed, PodFacts, ServiceFacts, WorkloadFacts
from swarmgame_operator.snapshot_builder import PodRecord

Facts = TypeVar("Facts")
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


@dataclass(slots=True)
class _ChildRecord:
    """The fields of an object that show drift.

    Args:
        owned_fields: the fields that the operator owns.
        in_sync: it was compared with its manifest, has all its fields, and has not changed since.
    """

    intent_hash: str
    deleting: bool
    owners: tuple[str, ...]
    owned_fields: str
    in_sync: bool = False

    @property
    def facts(self) -> ChildFacts:
        return ChildFacts(self.intent_hash, self.deleting, not self.in_sync, self.owned_fields, self.owners)

    def same(self, other: _ChildRecord) -> bool:
        return (self.intent_hash, self.deleting, self.owners, self.owned_fields) == (
            other.intent_hash, other.deleting, other.owners, other.owned_fields,
        )  # fmt: skip


@dataclass(slots=True)
class _ObjectRecord:
    uid: str
    version: str
    facts: PodRecord | JobFacts | WorkloadFacts | ServiceFacts | frozenset[str] | None
    child: _ChildRecord


@dataclass(slots=True)
class GameRecord:
    """A game as it was last received.

    Args:
        raw_json: the object without managedFields. Kept as text and parsed when it is needed: a small game takes 2.8
            kB as JSON and 16 kB parsed, which for 4,000 games is 11 against 63 MiB (of 286 MiB for the whole process).
    """

    uid: str
    version: str
    raw_json: bytes

    @property
    def body(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.raw_json)
        return found


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
    _objects: dict[Key, dict[tuple[str, str], _ObjectRecord]] = field(default_factory=dict)
    _game_of: dict[tuple[str, str, str], str] = field(default_factory=dict)
    _texts: dict[str, str] = field(default_factory=dict)

    # ── for informers
    def put(self, kind: ResourceKind, body: dict[str, Any], *, own_write: bool = False) -> None:
        """Store an object's state. `own_write`: the operator has just written it, so `changed` is not called."""
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
        record = self._record(kind, body)
        objects = self._objects.setdefault((namespace, game), {})
        old = objects.get((kind.name, name))
        if old is not None and old.uid == record.uid:
            if _older(record.version, old.version):
                return
            record.child.in_sync = old.child.in_sync and old.child.same(record.child)
        objects[kind.name, name] = record
        self._game_of[kind.name, namespace, name] = game
        if old is None or old.uid != record.uid or old.facts != record.facts or not old.child.same(record.child):
            self._notify((namespace, game), own_write=own_write)

    def remove(self, kind: ResourceKind, namespace: str, name: str, uid: str) -> None:
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
        """Store a game's state, from kopf's watch or (`own_write`) from the answer to a status write."""
        metadata = {name: value for name, value in body["metadata"].items() if name != "managedFields"}
        text = json.dumps(
            {**body, "apiVersion": GAME.api, "kind": GAME.name, "metadata": metadata}, separators=(",", ":")
        ).encode()
        record = GameRecord(metadata.get("uid", ""), str(metadata.get("resourceVersion", "")), text)
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
            self._notify(key, own_write=own_write)

    def forget_game(self, key: Key, uid: str) -> None:
        """Drop the state of a deleted game; another of the same name may have been delivered already."""
        record = self._games.get(key)
        if record is not None and record.uid == uid:
            del self._games[key]

    def undelivered_seconds(self) -> float:
        """Return for how long an existing game has not been delivered by kopf; 0 if all were."""
        return self.clock() - min(self._undelivered.values()) if self._undelivered else 0.0

    def _record(self, kind: ResourceKind, body: dict[str, Any]) -> _ObjectRecord:
        metadata = body["metadata"]
        facts: PodRecord | JobFacts | WorkloadFacts | ServiceFacts | frozenset[str] | None = None
        if kind is POD:
            facts = snapshot_builder.pod_facts(body)
        elif kind is JOB:
            facts = snapshot_builder.job_facts(body)
        elif kind is SERVICE:
            facts = snapshot_builder.service_facts(body)
        elif kind in (DEPLOYMENT, STATEFUL_SET):
            facts = snapshot_builder.workload_facts(kind.name, body)
        elif kind in (SECRET, CONFIG_MAP):
            facts = snapshot_builder.secret_keys(body)
        fields = "" if kind is POD else owned_fields(body, MANAGER)
        owners = () if kind is POD else metadata.get("ownerReferences") or ()
        child = _ChildRecord(
            intent_hash=str((metadata.get("annotations") or {}).get(INTENT_HASH, "")),
            deleting="deletionTimestamp" in metadata,
            owners=tuple(sorted(str(owner.get("uid")) for owner in owners)),
            owned_fields=self._texts.setdefault(fields, fields),  # equal texts of thousands of objects are one string
        )
        return _ObjectRecord(str(metadata.get("uid", "")), str(metadata.get("resourceVersion", "")), facts, child)

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
        return [each for each in self._of(key, PodRecord) if each.facts.role == role]

    def has_ready_pods(self, key: Key) -> bool:
        """Return whether any pod can be polled."""
        return any(each.facts.ready for each in self._of(key, PodRecord))

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
        objects = self._objects.get(key, {})
        jobs = {each.name: each for each in self._of(key, JobFacts)}
        secrets = {
            name: record.facts
            for (kind, name), record in objects.items()
            if kind == "Secret" and isinstance(record.facts, frozenset)
        }
        return Observed(
            now=now,
            job=jobs.get(f"{key[1]}-peers"),
            initializer=jobs.get(f"{key[1]}-initializer"),
            pods=tuple(sorted((each.facts for each in self._of(key, PodRecord)), key=_pod_order)),
            workloads=tuple(self._of(key, WorkloadFacts)),
            services=tuple(self._of(key, ServiceFacts)),
            secrets=secrets,
            children={place: record.child.facts for place, record in objects.items() if place[0] != "Pod"},
        )

    def _of(self, key: Key, facts_type: type[Facts]) -> Iterator[Facts]:
        return (each.facts for each in self._objects.get(key, {}).values() if isinstance(each.facts, facts_type))


def _pod_order(pod: PodFacts) -> tuple[str, int, str]:
    return pod.role, -1 if pod.index is None else pod.index, pod.name


def _older(version: str, than: str) -> bool:
    """Compare resource versions of one kind of object; they are numbers."""
    return version.isdigit() and than.isdigit() and int(version) < int(than)
