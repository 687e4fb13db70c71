"""What the operator knows of the cluster: games as they were read, and facts about what belongs to them, by game.

Informers feed it; reconciling reads it; nothing here asks or writes. Invariants: a game is told of as changed when, and
only when, something that a plan may depend on has changed; what is kept of an object is a few hundred bytes; an older
state never replaces a newer one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from swarmgame_operator import facts
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
    Kind,
)
from swarmgame_operator.facts import PodRecord
from swarmgame_operator.observed import ChildFacts, JobFacts, Observed, PodFacts, ServiceFacts, WorkloadFacts
from swarmgame_operator.ownership import lost, owned_fields
from swarmgame_operator.plan.setting import GAME_LABEL, INTENT_HASH

Facts = TypeVar("Facts")
Key = tuple[str, str]
"""A game's namespace and name."""
SELECTOR = f"app.kubernetes.io/managed-by={MANAGER},{GAME_LABEL}"
WATCHED: Mapping[Kind, bool] = {
    GAME: False, POD: False, JOB: False, SERVICE: False, DEPLOYMENT: False, STATEFUL_SET: False,
    CONFIG_MAP: True, SECRET: True, NETWORK_POLICY: True, CLAIM: True,
}  # fmt: skip
"""What is watched, and whether only its metadata is: no Secret's value comes into this process by a watch."""


@dataclass(slots=True)
class _Child:
    """An object as a child of a game: by whom and how it was written. `whole`: it has every field that was last
    applied.
    """

    intent_hash: str
    deleting: bool
    owners: tuple[str, ...]
    fields: str
    whole: bool = False

    def same(self, other: _Child) -> bool:
        return (self.intent_hash, self.deleting, self.owners, self.fields) == (
            other.intent_hash, other.deleting, other.owners, other.fields,
        )  # fmt: skip


@dataclass(slots=True)
class _Record:
    uid: str
    version: str
    facts: PodRecord | JobFacts | WorkloadFacts | ServiceFacts | frozenset[str] | None
    child: _Child


@dataclass(slots=True)
class GameRecord:
    """A game as it was last read.

    Args:
        text: the object as JSON, without managedFields; parsed anew when it is needed, because thousands of parsed ones
            do not fit.
    """

    uid: str
    version: str
    text: bytes

    @property
    def body(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.text)
        return found


@dataclass
class Cache:
    """The store of all informers.

    Args:
        changed: told the key of a game when anything about it changed.
    """

    changed: Callable[[Key], None]
    _games: dict[Key, GameRecord] = field(default_factory=dict)
    _objects: dict[Key, dict[tuple[str, str], _Record]] = field(default_factory=dict)
    _game_of: dict[tuple[str, str, str], str] = field(default_factory=dict)
    _texts: dict[str, str] = field(default_factory=dict)

    # ── what informers say
    def put(self, kind: Kind, body: dict[str, Any], *, ours: bool = False) -> None:
        """There is this object, in this state. `ours`: we have just written it, so that it is no news."""
        metadata = body["metadata"]
        namespace, name = metadata.get("namespace", ""), metadata["name"]
        if kind is GAME:
            self._put_game((namespace, name), body, ours=ours)
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
            record.child.whole = old.child.whole and old.child.same(record.child)
        objects[kind.name, name] = record
        self._game_of[kind.name, namespace, name] = game
        if old is None or old.uid != record.uid or old.facts != record.facts or not old.child.same(record.child):
            self._tell((namespace, game), ours=ours)

    def remove(self, kind: Kind, namespace: str, name: str, uid: str) -> None:
        if kind is GAME:
            record = self._games.get((namespace, name))
            if record is not None and uid in ("", record.uid):
                del self._games[namespace, name]
                self.changed((namespace, name))
            return
        game = self._game_of.get((kind.name, namespace, name))
        if game is None:
            return
        if uid in ("", self._objects[namespace, game][kind.name, name].uid):
            self._forget(kind.name, namespace, name)

    def keep_only(self, kind: Kind, namespace: str | None, names: set[tuple[str, str]]) -> None:
        known = (
            list(self._games)
            if kind is GAME
            else [(there, name) for of, there, name in self._game_of if of == kind.name]
        )
        for there, name in known:
            if namespace in (None, there) and (there, name) not in names:
                self.remove(kind, there, name, "")

    def _tell(self, key: Key, *, ours: bool = False) -> None:
        if not ours:
            self.changed(key)

    def _put_game(self, key: Key, body: dict[str, Any], *, ours: bool) -> None:
        metadata = {name: value for name, value in body["metadata"].items() if name != "managedFields"}
        text = json.dumps(
            {**body, "apiVersion": GAME.api, "kind": GAME.name, "metadata": metadata}, separators=(",", ":")
        ).encode()
        record = GameRecord(metadata.get("uid", ""), str(metadata.get("resourceVersion", "")), text)
        old = self._games.get(key)
        if (
            old is not None
            and old.uid == record.uid
            and (_older(record.version, old.version) or record.version == old.version)
        ):
            return
        self._games[key] = record
        self._tell(key, ours=ours)

    def _record(self, kind: Kind, body: dict[str, Any]) -> _Record:
        metadata = body["metadata"]
        found: PodRecord | JobFacts | WorkloadFacts | ServiceFacts | frozenset[str] | None = None
        if kind is POD:
            found = facts.pod(body)
        elif kind is JOB:
            found = facts.job(body)
        elif kind is SERVICE:
            found = facts.service(body)
        elif kind in (DEPLOYMENT, STATEFUL_SET):
            found = facts.workload(kind.name, body)
        elif kind in (SECRET, CONFIG_MAP):
            found = facts.keys_of(body)
        fields = "" if kind is POD else owned_fields(body, MANAGER)
        child = _Child(
            intent_hash=str((metadata.get("annotations") or {}).get(INTENT_HASH, "")),
            deleting="deletionTimestamp" in metadata,
            owners=tuple(sorted(str(owner.get("uid")) for owner in metadata.get("ownerReferences") or ()))
            if kind is not POD
            else (),
            fields=self._texts.setdefault(fields, fields),
        )
        return _Record(str(metadata.get("uid", "")), str(metadata.get("resourceVersion", "")), found, child)

    def _forget(self, kind: str, namespace: str, name: str) -> None:
        key = (namespace, self._game_of.pop((kind, namespace, name)))
        objects = self._objects[key]
        del objects[kind, name]
        if not objects:
            del self._objects[key]
        self.changed(key)

    # ── what reconciling asks
    def games(self) -> Iterator[tuple[Key, GameRecord]]:
        """All games there are, at this moment."""
        return iter(list(self._games.items()))

    def game(self, key: Key) -> GameRecord | None:
        return self._games.get(key)

    def version_of(self, key: Key, kind: Kind, name: str) -> str:
        """Uid and version of an object; empty if there is none."""
        record = self._objects.get(key, {}).get((kind.name, name))
        return f"{record.uid}/{record.version}" if record else ""

    def pods(self, key: Key, role: str) -> list[PodRecord]:
        """The game's pods of a role."""
        return [each for each in self._of(key, PodRecord) if each.facts.role == role]

    def has_ready_pods(self, key: Key) -> bool:
        """Whether there is anybody to ask."""
        return any(each.facts.ready for each in self._of(key, PodRecord))

    def unsure(self, key: Key) -> set[tuple[str, str]]:
        """Children of which nobody has looked yet whether they are whole."""
        return {
            place
            for place, record in self._objects.get(key, {}).items()
            if place[0] != "Pod" and not record.child.whole
        }

    def check(self, key: Key, manifest: Mapping[str, Any]) -> tuple[str, ...]:
        """Looks whether a child has all that its manifest says. Returns what it lacks, which is nothing for one that is
        not there.
        """
        record = self._objects.get(key, {}).get((manifest["kind"], manifest["metadata"]["name"]))
        if record is None:
            return ()
        owners = {str(owner["uid"]) for owner in manifest["metadata"].get("ownerReferences") or ()}
        missing = lost(manifest, record.child.fields) + (
            ("metadata.ownerReferences",) if owners - set(record.child.owners) else ()
        )
        record.child.whole = not missing
        return missing

    def trust(self, key: Key, places: set[tuple[str, str]]) -> None:
        """These children are as they should be."""
        for place in places:
            if (record := self._objects.get(key, {}).get(place)) is not None:
                record.child.whole = True

    def observed(self, key: Key, now: datetime, uid: str) -> Observed:
        """All that is known here of a game's surroundings. Children that nobody has looked at count as drifted."""
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
            pods=tuple(sorted((each.facts for each in self._of(key, PodRecord)), key=_order)),
            workloads=tuple(self._of(key, WorkloadFacts)),
            services=tuple(self._of(key, ServiceFacts)),
            secrets=secrets,
            children={
                place: ChildFacts(each.intent_hash, not each.whole, each.deleting, uid in each.owners)
                for place, each in ((place, record.child) for place, record in objects.items() if place[0] != "Pod")
            },
        )

    def _of(self, key: Key, facts_type: type[Facts]) -> Iterator[Facts]:
        return (each.facts for each in self._objects.get(key, {}).values() if isinstance(each.facts, facts_type))


def _order(pod: PodFacts) -> tuple[str, int, str]:
    return pod.role, -1 if pod.index is None else pod.index, pod.name


def _older(version: str, than: str) -> bool:
    """Whether a resource version came before another; they are numbers, and comparable, of one kind of object."""
    return version.isdigit() and than.isdigit() and int(version) < int(than)
