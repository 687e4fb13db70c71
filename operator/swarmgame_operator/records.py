"""Records: what the cache keeps of a game and of an object that belongs to one. Pure.

Little is kept, and as text where that is smaller: a cluster may have thousands of games.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from swarmgame_operator import snapshot_builder
from swarmgame_operator.adoption import controller_of
from swarmgame_operator.api import (
    CONFIG_MAP,
    DEPLOYMENT,
    GAME,
    JOB,
    MANAGER,
    POD,
    SECRET,
    SERVICE,
    STATEFUL_SET,
    ResourceKind,
)
from swarmgame_operator.ownership import owned_fields
from swarmgame_operator.plan.game_context import GAME_LABEL, INTENT_HASH, MADE_FOR
from swarmgame_operator.snapshot import ChildFacts, JobFacts, ServiceFacts, WorkloadFacts
from swarmgame_operator.snapshot_builder import PodRecord


@dataclass(slots=True)
class ChildRecord:
    """The fields of an object that show drift.

    Args:
        owned_fields: the fields that the operator owns.
        game_uid: uid of the game that controls it; empty if none does.
        in_sync: it was compared with its manifest, has all its fields, and has not changed since.
    """

    intent_hash: str
    deleting: bool
    owners: tuple[str, ...]
    owned_fields: str
    controller: str
    made_for: str
    game_uid: str = ""
    uid: str = ""
    in_sync: bool = False

    @property
    def facts(self) -> ChildFacts:
        return ChildFacts(
            self.intent_hash,
            self.deleting,
            not self.in_sync,
            self.owned_fields,
            self.owners,
            self.controller,
            self.made_for,
            self.uid,
        )

    def same(self, other: ChildRecord) -> bool:
        return (self.intent_hash, self.deleting, self.owners, self.owned_fields, self.controller, self.made_for) == (
            other.intent_hash, other.deleting, other.owners, other.owned_fields, other.controller, other.made_for,
        )  # fmt: skip


@dataclass(slots=True)
class ObjectRecord:
    uid: str
    version: str
    facts: PodRecord | JobFacts | WorkloadFacts | ServiceFacts | frozenset[str] | None
    child: ChildRecord


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
    created: datetime | None

    @property
    def body(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.raw_json)
        return found


def record_of(kind: ResourceKind, body: Mapping[str, Any], texts: dict[str, str]) -> ObjectRecord:
    """Return what is kept of an object.

    Args:
        texts: texts that are kept once, by themselves.
    """
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
    annotations = metadata.get("annotations") or {}
    controller = ("", "", "") if kind is POD else controller_of(body)
    game = (metadata.get("labels") or {}).get(GAME_LABEL)
    child = ChildRecord(
        intent_hash=str(annotations.get(INTENT_HASH, "")),
        deleting="deletionTimestamp" in metadata,
        owners=tuple(sorted(str(owner.get("uid")) for owner in owners)),
        owned_fields=texts.setdefault(fields, fields),  # equal texts of thousands of objects are one string
        controller="" if controller[:2] in ((GAME.name, game), ("", "")) else " ".join(controller[:2]),
        made_for=str(annotations.get(MADE_FOR, "")),
        game_uid=controller[2] if controller[:2] == (GAME.name, game) else "",
        uid=str(metadata.get("uid", "")),
    )
    return ObjectRecord(str(metadata.get("uid", "")), str(metadata.get("resourceVersion", "")), facts, child)


def may_be_left(record: ObjectRecord, game: GameRecord) -> bool:
    """Return whether a deleted game of the same name may have left an object."""
    if not isinstance(record.facts, PodRecord):
        return record.child.game_uid not in ("", game.uid)
    created = record.facts.facts.created
    return game.created is not None and created is not None and created < game.created
