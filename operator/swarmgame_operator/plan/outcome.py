"""A plan: what to write, what to delete, what to say. Data only; the runtime carries it out, in the order of the
fields.

Invariant: no secret's value can be in it, because `plan` never sees one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from swarmgame_api.status import SwarmGameStatus

Manifest = dict[str, Any]
"""An object as JSON would have it."""


@dataclass(frozen=True, slots=True)
class Keys:
    """A Secret of libp2p keys, and which of them it still lacks.

    Args:
        secret: the Secret without its data: name, labels, owner.
        missing: names of the keys to generate (`peer-3.key`); none: the metadata alone is to be applied. Keys that are
            there are never touched.
    """

    secret: Manifest
    missing: tuple[str, ...]

    @property
    def name(self) -> str:
        return str(self.secret["metadata"]["name"])


@dataclass(frozen=True, slots=True)
class Child:
    """An object to write.

    Args:
        manifest: what is ours, for a server-side apply with force.
        creation: the whole object, to be posted instead, because there is none; None where `manifest` is applied either
            way. It holds fields that belong to others from then on (a Job's `suspend`, its template's nodeSelector), so
            that they must never be applied: a field that is applied once and then left out is removed.
    """

    manifest: Manifest
    creation: Manifest | None = None

    @property
    def kind(self) -> str:
        return str(self.manifest["kind"])

    @property
    def name(self) -> str:
        return str(self.manifest["metadata"]["name"])


@dataclass(frozen=True, slots=True)
class Reference:
    """An object to delete, in the game's namespace. Foreground: it stays until its pods have gone."""

    kind: str
    name: str
    propagation: Literal["Foreground", "Background"] = "Background"


@dataclass(frozen=True, slots=True)
class Event:
    """Something worth telling; about the game."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class DryRun:
    """The peers' Job, to be posted with `dryRun=All` before it is made; the answer comes back as `DryRunFacts` with the
    same hash.
    """

    hash: str
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do about a game, now.

    Args:
        status: what the game's status should be; write it where it differs.
        keys: Secrets to make or to add keys to, before anything else.
        children: what differs from what is there, in order.
        deletions: what must go.
        dry_run: a question to the API server; plan again with its answer.
        delete_game: its time to live after the end is over.
        events: what changed with this plan; tell it once the status is written.
        requeue_after: seconds until time alone may change the plan; None: never.
    """

    status: SwarmGameStatus
    keys: tuple[Keys, ...] = ()
    children: tuple[Child, ...] = ()
    deletions: tuple[Reference, ...] = ()
    dry_run: DryRun | None = None
    delete_game: bool = False
    events: tuple[Event, ...] = ()
    requeue_after: float | None = None
