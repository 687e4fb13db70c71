"""The Secrets that hold keys: one for the peers, by index, and one for the bootnode.

Keys are made by the runtime, which has randomness; here stands which are missing. Invariant: a key that is there is
never replaced and never removed, not by scaling down either, so that a peer that comes back is the same peer.
"""

from __future__ import annotations

from collections.abc import Mapping

from swarmgame_operator.observed import ChildFacts
from swarmgame_operator.plan.outcome import Keys, Manifest
from swarmgame_operator.plan.setting import Setting, digest, with_intent

BOOTNODE_KEY = "bootnode.key"


def peer_key(index: int) -> str:
    """The name of a peer's key in its Secret."""
    return f"peer-{index}.key"


def keys(
    setting: Setting, secrets: Mapping[str, frozenset[str]], children: Mapping[tuple[str, str], ChildFacts]
) -> tuple[Keys, ...]:
    """Secrets of ours that lack keys, or whose owner changed with the retention policy. A Secret that the game names is
    its author's.
    """
    wanted = []
    if not setting.spec.identity.secret_name:
        wanted.append(_keys(setting, "peer-keys", [peer_key(index) for index in range(setting.spec.peers.replicas)]))
    if setting.has_bootnode:
        wanted.append(_keys(setting, "bootnode-key", [BOOTNODE_KEY]))
    found = []
    for each in wanted:
        there = secrets.get(each.name, frozenset())
        missing = tuple(name for name in each.missing if name not in there)
        facts = children.get(("Secret", each.name))
        intent = each.secret["metadata"]["annotations"]
        if missing or facts is None or facts.drifted or facts.intent_hash not in intent.values():
            found.append(Keys(each.secret, missing))
    return tuple(found)


def missing_peer_keys(setting: Setting, secrets: Mapping[str, frozenset[str]]) -> tuple[str, ...]:
    """Keys that the peers need and that are nowhere yet."""
    there = secrets.get(setting.key_secret, frozenset())
    return tuple(name for name in map(peer_key, range(setting.spec.peers.replicas)) if name not in there)


def _keys(setting: Setting, ending: str, names: list[str]) -> Keys:
    owned = setting.spec.identity.retention_policy == "Delete"
    secret: Manifest = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": setting.metadata(ending, "game", owned=owned),
        "type": "Opaque",
    }
    return Keys(with_intent(secret, digest(secret)), tuple(names))
