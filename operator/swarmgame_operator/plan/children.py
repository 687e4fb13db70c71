"""The children that a game should have, besides its Jobs and keys, and which of them have to be written or deleted.

An object carries the hash of what it was meant to be; one whose hash is right and that nobody has touched costs no
request. Invariant: planning again after a plan was carried out gives nothing to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from swarmgame_operator.observed import ChildFacts
from swarmgame_operator.plan import storage
from swarmgame_operator.plan.bootnode import bootnode
from swarmgame_operator.plan.chain import chain
from swarmgame_operator.plan.game_file import game_file
from swarmgame_operator.plan.network import network_policies
from swarmgame_operator.plan.outcome import Child, Reference
from swarmgame_operator.plan.services import services
from swarmgame_operator.plan.setting import Setting, digest, with_intent

PRUNED = frozenset({"ConfigMap", "Service", "Deployment", "StatefulSet", "NetworkPolicy"})
"""Kinds that go when the game no longer asks for them. Claims and keys have policies of their own, and Jobs theirs."""

Children = Mapping[tuple[str, str], ChildFacts]


def wanted(setting: Setting, *, running: bool, over: bool) -> tuple[Child, ...]:
    """All of them, in the order in which they are needed.

    Args:
        running: whether peers may run.
        over: whether the game has ended.
    """
    return (
        game_file(setting),
        *network_policies(setting),
        *storage.claims(setting, over=over),
        *services(setting),
        *chain(setting),
        *bootnode(setting, running=running),
    )


def differing(children: Iterable[Child], there: Children, *, only_existing: bool = False) -> tuple[Child, ...]:
    """Those that are not there, or not as they should be; each with its intent hash. One that is being deleted is
    waited for.
    """
    found = []
    for child in children:
        intent = digest(child.manifest)
        facts = there.get((child.kind, child.name))
        manifest = with_intent(child.manifest, intent)
        if facts is None:
            if not only_existing:
                found.append(Child(manifest, None if child.creation is None else with_intent(child.creation, intent)))
        elif not facts.deleting and (facts.intent_hash != intent or facts.drifted):
            found.append(Child(manifest))
    return tuple(found)


def superfluous(children: Iterable[Child], there: Children) -> tuple[Reference, ...]:
    """What is there and no longer asked for."""
    names = {(child.kind, child.name) for child in children}
    return tuple(
        Reference(kind, name)
        for (kind, name), facts in sorted(there.items())
        if kind in PRUNED and (kind, name) not in names and not facts.deleting
    )
