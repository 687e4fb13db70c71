"""The children of a game besides its Jobs and keys: what it should have, what needs an update, and what is left over.

An object carries the hash of the manifest that it was written from (its intent). An object with the right hash and
without drift costs no request, so planning again after a plan was carried out gives nothing to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from swarmgame_operator.ownership import detect_drift
from swarmgame_operator.plan import storage
from swarmgame_operator.plan.bootnode import bootnode
from swarmgame_operator.plan.chain import chain
from swarmgame_operator.plan.game_context import GameContext, digest, with_intent
from swarmgame_operator.plan.game_file import game_file
from swarmgame_operator.plan.network import network_policies
from swarmgame_operator.plan.plan_types import Child, Deletion
from swarmgame_operator.plan.services import services
from swarmgame_operator.snapshot import ChildFacts

PRUNED = frozenset({"ConfigMap", "Service", "Deployment", "StatefulSet", "NetworkPolicy"})
"""Kinds that are deleted when the game no longer needs them. Claims, keys and Jobs have policies of their own."""

Children = Mapping[tuple[str, str], ChildFacts]


def desired_children(game: GameContext, *, running: bool, over: bool) -> tuple[Child, ...]:
    """Return all children, in the order in which they are needed.

    Args:
        running: whether peers may run.
        over: whether the game has ended.
    """
    return (
        game_file(game),
        *network_policies(game),
        *storage.claims(game, over=over),
        *services(game),
        *chain(game),
        *bootnode(game, running=running),
    )


def needs_update(children: Iterable[Child], existing: Children, *, only_existing: bool = False) -> tuple[Child, ...]:
    """Return the children that are missing or differ, each with its intent hash. A child that is being deleted is
    skipped until it is gone.
    """
    found = []
    for child in children:
        intent = digest(child.apply_manifest)
        facts = existing.get((child.kind, child.name))
        manifest = with_intent(child.apply_manifest, intent)
        if facts is None:
            if not only_existing:
                created = None if child.create_manifest is None else with_intent(child.create_manifest, intent)
                found.append(Child(manifest, created))
        elif not facts.deleting and not taken(facts):
            drifted = detect_drift(manifest, facts)
            if child.kind == "PersistentVolumeClaim":  # one that was enlarged by hand stays so
                drifted = tuple(each for each in drifted if not each.startswith("spec"))
            if facts.intent_hash != intent or drifted:
                found.append(Child(manifest, drifted=drifted))
    return tuple(found)


def taken(facts: ChildFacts) -> str:
    """Return what controls an object instead of the game; empty if nothing does."""
    return facts.controller


def orphans(children: Iterable[Child], existing: Children, owner: str) -> tuple[Deletion, ...]:
    """Return what the game owns and no longer needs. A copy of a child that somebody made has its labels, but no owner.

    Args:
        owner: the game's uid.
    """
    names = {(child.kind, child.name) for child in children}
    return tuple(
        Deletion(kind, name, uid=facts.uid)
        for (kind, name), facts in sorted(existing.items())
        if kind in PRUNED
        and (kind, name) not in names
        and not facts.deleting
        and not taken(facts)
        and owner in facts.owners
    )
