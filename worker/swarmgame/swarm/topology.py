"""Topology: which peers send announcements to which, and which shards are fetched.

Both choices keep the cost of a peer independent of the size of the swarm. Pure functions: the same members give the
same ring on every peer, and the same announcements and seed give the same choice, whatever the order of arrival.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

from swarmgame.game.protocol import CollectPolicy, Exchange
from swarmgame.game.state import PeerId
from swarmgame.seeds import derive_seed
from swarmgame.swarm.messages import ShardEntry

FANOUT = 5
"""Number of peers that an announcement is sent to in a swarm without a full mesh."""
FULL_MESH_MEMBERS = 32
"""GATHER: up to this many members, announcements go directly to all; in a larger swarm they are gossiped."""


def fanout(policy: CollectPolicy | None) -> int:
    """Return how many peers each peer sends to. PULL: enough to fill `external` under the cap, and two more."""
    if policy is None or not policy.external_groups or not policy.max_per_peer:
        return FANOUT
    return max(FANOUT, math.ceil(policy.external_groups / policy.max_per_peer) + 2)


def is_full_mesh(policy: CollectPolicy | None, members: int) -> bool:
    """Whether announcements go directly to every member."""
    if policy is None or policy.exchange is Exchange.GATHER:
        return members <= FULL_MESH_MEMBERS
    return members <= fanout(policy) + 1


def ring(run: str, round: int, stage: int, members: Iterable[PeerId]) -> list[PeerId]:
    """Return the members in the order of this stage's ring, which is the same on every peer."""
    return list(_ring(run, round, stage, frozenset(members)))


@lru_cache(maxsize=64)
def _ring(run: str, round: int, stage: int, members: frozenset[PeerId]) -> tuple[PeerId, ...]:
    # Cached: needed at every event of a stage, and it changes only with the members.
    salt = f"{run}\0{round}\0{stage}\0".encode()
    return tuple(sorted(members, key=lambda peer: blake2b(salt + peer.encode(), digest_size=16).digest()))


def successors(ring: Sequence[PeerId], peer: PeerId, count: int) -> list[PeerId]:
    """PULL: return the next `count` peers of the ring, to which `peer` sends its announcement."""
    return _around(ring, peer, range(1, count + 1))


def predecessors(ring: Sequence[PeerId], peer: PeerId, count: int) -> list[PeerId]:
    """PULL: return the previous `count` peers of the ring, whose announcements `peer` waits for."""
    return _around(ring, peer, range(-1, -count - 1, -1))


def _around(ring: Sequence[PeerId], peer: PeerId, steps: range) -> list[PeerId]:
    if len(ring) - 1 <= len(steps):
        return sorted(other for other in ring if other != peer)
    at = ring.index(peer)
    return sorted(ring[(at + step) % len(ring)] for step in steps)


@dataclass(frozen=True, slots=True)
class Offer:
    """A shard that may be fetched."""

    peer: PeerId
    round: int
    stage: int
    position: int
    shard: ShardEntry


def choose(offers: Iterable[Offer], policy: CollectPolicy, taken: Iterable[Offer] = ()) -> list[Offer]:
    """PULL: choose the shards to fetch, so that `external` groups come and no peer exceeds its share.

    Args:
        taken: shards fetched already; they count.

    Returns:
        The shards still to fetch, in order of preference. Shards that claim a nonzero advantage come first if the
        policy prefers them.
    """
    cap = policy.max_per_peer or policy.external_groups
    remaining: dict[PeerId, int] = {}
    missing = policy.external_groups

    def take(offer: Offer) -> bool:
        nonlocal missing
        left = remaining.setdefault(offer.peer, cap)
        worth = offer.shard.spread if policy.prefer_nonzero_advantage and offer.shard.spread else offer.shard.groups
        gain = min(worth, left, missing)
        remaining[offer.peer] = left - gain
        missing -= gain
        return gain > 0

    for offer in taken:
        take(offer)

    def preference(offer: Offer) -> tuple[bool, int, bytes]:
        flat = policy.prefer_nonzero_advantage and offer.shard.spread == 0
        return flat, derive_seed("pull", policy.seed, offer.shard.name.hex()), offer.shard.name

    chosen = []
    for offer in sorted(offers, key=preference):
        if missing <= 0:
            break
        if take(offer):
            chosen.append(offer)
    return chosen


def quorum_of(policy: CollectPolicy, members: int) -> int:
    """Return how many members must have published, ourselves included.

    A percentage stands for the fraction that it rounds: 67 % of three is two, 33 % of three is one, 100 % of any
    number is all.
    """
    return max(1, math.ceil(policy.quorum * members - min(0.005 * members, 0.05)))
