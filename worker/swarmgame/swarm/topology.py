"""Who hears whom, and what is worth fetching: the two choices that keep the cost of a peer independent of the size of
the swarm.

Pure functions. Invariant: the same members give the same circle on every peer, and the same announcements and seed give
the same choice, whatever the order in which they arrived.
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

NEIGHBOURS = 5
"""To how many an announcement goes when not to all."""
EVERYONE = 32
"""Gather: up to this many members, announcements go straight to all; above, neighbours pass them on."""


def breadth(policy: CollectPolicy | None) -> int:
    """Pull: how many peers each must hear to find its groups: enough to fill `external` under the cap, and some to
    spare.
    """
    if policy is None or not policy.external_groups or not policy.max_per_peer:
        return NEIGHBOURS
    return max(NEIGHBOURS, math.ceil(policy.external_groups / policy.max_per_peer) + 2)


def circle(run: str, round: int, stage: int, members: Iterable[PeerId]) -> list[PeerId]:
    """The members in an order that is new in every stage and the same on every peer."""
    return list(_circle(run, round, stage, frozenset(members)))


@lru_cache(maxsize=64)
def _circle(run: str, round: int, stage: int, members: frozenset[PeerId]) -> tuple[PeerId, ...]:
    # Asked for at every event of a stage, and the same until somebody comes or goes.
    salt = f"{run}\0{round}\0{stage}\0".encode()
    return tuple(sorted(members, key=lambda peer: blake2b(salt + peer.encode(), digest_size=16).digest()))


def listeners(ring: Sequence[PeerId], peer: PeerId, count: int) -> list[PeerId]:
    """Pull: the next `count` after a peer in the circle: those whom it tells."""
    return _around(ring, peer, range(1, count + 1))


def speakers(ring: Sequence[PeerId], peer: PeerId, count: int) -> list[PeerId]:
    """Pull: the `count` before a peer in the circle: those who tell it, and for whom it waits."""
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
    entry: ShardEntry


def choose(offers: Iterable[Offer], policy: CollectPolicy, taken: Iterable[Offer] = ()) -> list[Offer]:
    """Pull: which shards to fetch, so that `external` groups come and no peer counts for more than its share.

    Args:
        taken: shards fetched already; they count.

    Returns:
        The shards still to fetch, in the order of preference; shards that claim a spread first when the policy prefers
        them.
    """
    cap = policy.max_per_peer or policy.external_groups
    room: dict[PeerId, int] = {}
    wanted = policy.external_groups

    def take(offer: Offer) -> bool:
        nonlocal wanted
        left = room.setdefault(offer.peer, cap)
        worth = offer.entry.spread if policy.prefer_nonzero_advantage and offer.entry.spread else offer.entry.groups
        gain = min(worth, left, wanted)
        room[offer.peer] = left - gain
        wanted -= gain
        return gain > 0

    for offer in taken:
        take(offer)

    def preference(offer: Offer) -> tuple[bool, int, bytes]:
        flat = policy.prefer_nonzero_advantage and offer.entry.spread == 0
        return flat, derive_seed("pull", policy.seed, offer.entry.name.hex()), offer.entry.name

    chosen = []
    for offer in sorted(offers, key=preference):
        if wanted <= 0:
            break
        if take(offer):
            chosen.append(offer)
    return chosen


def quorum_of(policy: CollectPolicy, members: int) -> int:
    """How many must have spoken, ourselves included.

    A whole percentage stands for the fraction that it rounds: 67 % of three is two, 33 % of three is one, 100 % of any
    number is all.
    """
    return max(1, math.ceil(policy.quorum * members - min(0.005 * members, 0.05)))


def to_all(policy: CollectPolicy | None, members: int) -> bool:
    """Whether announcements go straight to every member."""
    if policy is None or policy.exchange is Exchange.GATHER:
        return members <= EVERYONE
    return members <= breadth(policy) + 1
