"""The Secrets with keys: one for the peers, by index, and one for the bootnode.

The runtime generates keys; this module says which are missing. A key that exists is never replaced or removed, not
even by scaling down, so a peer that comes back has its old identity.
"""

from __future__ import annotations

from collections.abc import Mapping

from swarmgame_operator.ownership import detect_drift
from swarmgame_operator.plan.game_context import INTENT_HASH, GameContext, digest, with_intent
from swarmgame_operator.plan.plan_types import KeySecret, Manifest
from swarmgame_operator.plan.storage import BOOTNODE_KEY
from swarmgame_operator.snapshot import ChildFacts


def peer_key(index: int) -> str:
    """Return the name of a peer's key in its Secret."""
    return f"peer-{index}.key"


def key_secrets(
    game: GameContext, secrets: Mapping[str, frozenset[str]], children: Mapping[tuple[str, str], ChildFacts]
) -> tuple[KeySecret, ...]:
    """Return the Secrets that lack keys or whose metadata differs. A Secret that the game names belongs to its author
    and is not among them.
    """
    required = []
    if not game.spec.identity.secret_name:
        required.append(_key_secret(game, "peer-keys", [peer_key(index) for index in range(game.spec.peers.replicas)]))
    if game.has_bootnode:
        required.append(_key_secret(game, "bootnode-key", [BOOTNODE_KEY]))
    found = []
    for each in required:
        existing = secrets.get(each.name, frozenset())
        missing = tuple(name for name in each.missing if name not in existing)
        facts = children.get(("Secret", each.name))
        intent = each.secret["metadata"]["annotations"][INTENT_HASH]
        if missing or facts is None or facts.intent_hash != intent or detect_drift(each.secret, facts):
            found.append(KeySecret(each.secret, missing))
    return tuple(found)


def missing_peer_keys(game: GameContext, secrets: Mapping[str, frozenset[str]]) -> tuple[str, ...]:
    """Return the peers' keys that no Secret has yet."""
    existing = secrets.get(game.key_secret, frozenset())
    return tuple(name for name in map(peer_key, range(game.spec.peers.replicas)) if name not in existing)


def _key_secret(game: GameContext, suffix: str, names: list[str]) -> KeySecret:
    owned = game.spec.identity.retention_policy == "Delete"
    secret: Manifest = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": game.metadata(suffix, "game", owned=owned),
        "type": "Opaque",
    }
    return KeySecret(with_intent(secret, digest(secret)), tuple(names))
