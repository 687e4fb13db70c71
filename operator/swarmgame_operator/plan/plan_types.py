"""The data types of a plan. The runtime carries a plan out in the order of its fields.

Invariant: a plan holds no secret's value, because `build_plan` never sees one.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from swarmgame_api.status import SwarmGameStatus

Manifest = dict[str, Any]
"""An object in its JSON form."""


@dataclass(frozen=True, slots=True)
class KeySecret:
    """A Secret of libp2p keys, and the keys that it lacks.

    Args:
        secret: the Secret without its data: name, labels, owner.
        missing: names of the keys to generate (`peer-3.key`). With none, only the metadata is applied. Existing keys
            are never touched.
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
        apply_manifest: the fields that the operator owns, for a server-side apply with force.
        create_manifest: the complete object, to be created because it does not exist; None if `apply_manifest` is
            applied in both cases. It contains fields that other controllers own later (a Job's `suspend`, its
            template's nodeSelector). They must never be applied: a field that is applied once and then left out is
            removed. A creation also fails where the name is taken, without a request that looks first. But what is
            created and no longer applied is not removed, and that a map has lost its only key does not show in the
            fields that are owned (the map itself is one of them): so it suits few kinds.
        drifted: fields that another manager took over or removed, as paths; for the log.
    """

    apply_manifest: Manifest
    create_manifest: Manifest | None = None
    drifted: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        return str(self.apply_manifest["kind"])

    @property
    def name(self) -> str:
        return str(self.apply_manifest["metadata"]["name"])


@dataclass(frozen=True, slots=True)
class Deletion:
    """An object to delete, in the game's namespace.

    Args:
        propagation: Foreground: it exists until its pods are gone.
        uid: another object of the name is not deleted; empty: not known.
    """

    kind: str
    name: str
    propagation: Literal["Foreground", "Background"] = "Background"
    uid: str = ""


@dataclass(frozen=True, slots=True)
class GameEvent:
    """A Kubernetes event about the game."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class DryRun:
    """The peers' Job, to be posted with `dryRun=All` before it is created. The answer comes back as `DryRunFacts` with
    the same hash.
    """

    hash: str
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Subject:
    """An object that has not started, and since when."""

    kind: str
    name: str
    uid: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Plan:
    """The writes and the status of a game, as of now.

    Args:
        status: the game's status; written if it differs.
        keys: Secrets to create or to add keys to, before anything else.
        children: objects that differ from the cluster's, in order.
        deletions: objects to delete.
        dry_run: a request to the API server; its answer goes into the next plan.
        diagnose: objects that have not started; their events are read for the next plan.
        delete_game: the game has ended and its time to live is over.
        events: what changed with this plan; published after the status is written.
        requeue_after: seconds until time alone may change the plan; None: never.
    """

    status: SwarmGameStatus
    keys: tuple[KeySecret, ...] = ()
    children: tuple[Child, ...] = ()
    deletions: tuple[Deletion, ...] = ()
    dry_run: DryRun | None = None
    diagnose: tuple[Subject, ...] = ()
    delete_game: bool = False
    events: tuple[GameEvent, ...] = ()
    requeue_after: float | None = None
