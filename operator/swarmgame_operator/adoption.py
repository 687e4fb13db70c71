"""Adoption: whether an object that bears a child's name belongs to the game. Pure.

An object belongs to the game that controls it (owner reference), or, if nothing controls it, to the game that its
labels name: kept keys and claims, and what an orphaning deletion has left. Anything else is another's, and is never
changed or deleted.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from swarmgame_operator.api import GAME, MANAGER
from swarmgame_operator.plan.game_context import GAME_LABEL, MANAGED_BY_LABEL
from swarmgame_operator.snapshot import PodFacts


def controller_of(body: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return kind, name and uid of the object's controller; empty texts if it has none."""
    for owner in body["metadata"].get("ownerReferences") or ():
        if owner.get("controller"):
            return str(owner.get("kind", "")), str(owner.get("name", "")), str(owner.get("uid", ""))
    return "", "", ""


def belongs_to_another(body: Mapping[str, Any], game: str, uid: str) -> str:
    """Return why an object is not the game's, as the end of a sentence; empty if it is."""
    kind, name, owner = controller_of(body)
    if owner:
        return "" if owner == uid else f"it belongs to the {kind} {name}"
    labels = body["metadata"].get("labels") or {}
    if labels.get(MANAGED_BY_LABEL) == MANAGER and labels.get(GAME_LABEL) == game:
        return ""
    return "it has neither an owner nor this game's labels"


def is_of_an_earlier_game(body: Mapping[str, Any], game: str, uid: str) -> bool:
    """Return whether a deleted game of the same name controls the object, which is deleted in a moment."""
    kind, name, owner = controller_of(body)
    return (kind, name) == (GAME.name, game) and owner not in ("", uid)


def pod_is_of_an_earlier_game(pod: PodFacts, created: datetime | None, makers: Mapping[str, datetime | None]) -> bool:
    """Return whether a pod was left by a deleted game of the same name: it is older than the game, and the game has no
    Job or workload that could have made it, as one has that was adopted.

    Args:
        created: when the game was created; None: not known.
        makers: when the game's Jobs and workloads were created, by the role of their pods.
    """
    if created is None or pod.created is None or pod.created >= created:
        return False
    if pod.role not in makers:
        return True
    made = makers[pod.role]
    return made is not None and pod.created < made
