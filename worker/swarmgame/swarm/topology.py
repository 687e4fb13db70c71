"""Topology: which peers send announcements to which, and which shards are fetched.

Both choices keep the cost of a peer independent of the size of the swarm. Pure functions: the same members give the
same ring on every peer, and the same announcements and seed give the same choice, whatever the order of arrival.
"""

from __future__ import annotations

import math
from collections import Counter
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
    """A shard that may be fetched.

    Args:
        rank: of its author; authors of a lower one come first, whatever they claim.
        share: authors of one share have the cap of one peer together; empty: the author has its own.
    """

    peer: PeerId
    round: int
    stage: int
    position: int
    shard: ShardEntry
    rank: int = 0
    share: str = ""


def choose(offers: Iterable[Offer], policy: CollectPolicy, taken: Iterable[Offer] = ()) -> list[Offer]:
    """PULL: choose the shards to fetch, so that `external` groups come and no peer exceeds its share.

    Args:
        taken: shards fetched already; they count.

    Returns:
        The shards still to fetch, in order of preference: by rank; of one rank, shards that claim a nonzero advantage
        come first if the policy prefers them. None can be spared of those that are preferred least: if the others were
        enough, which ones are used would depend on which come first.
    """
    groups = _Groups(policy, taken)

    def preference(offer: Offer) -> tuple[tuple[int, bool], int, bytes, PeerId]:
        name = offer.shard.name
        return _kind(policy, offer), derive_seed("pull", policy.seed, name.hex()), name, offer.peer

    chosen = []
    for offer in sorted((each for each in offers if each.peer not in policy.avoided), key=preference):
        if groups.are_enough:
            break
        if groups.add(offer):
            chosen.append(offer)
    spared = []
    if groups.are_enough:
        least = [each for each in chosen if _kind(policy, each) == _kind(policy, chosen[-1])]
        spared = [each for each in reversed(least) if groups.spare(each)]
    return [each for each in chosen if each not in spared]


def is_enough(policy: CollectPolicy, fetched: Sequence[Offer], awaited: Iterable[Offer] = ()) -> bool:
    """Whether these shards have as many groups as the policy wants.

    Args:
        awaited: shards that are still to come. One that is preferred to a fetched one is waited for.
    """
    if not _Groups(policy, fetched).are_enough:
        return False
    least = max((_kind(policy, each) for each in fetched), default=None)
    return least is None or all(_kind(policy, each) >= least for each in awaited)


def _kind(policy: CollectPolicy, offer: Offer) -> tuple[int, bool]:
    """Return how much an offer is preferred; of less comes first."""
    return offer.rank, policy.prefer_nonzero_advantage and offer.shard.spread == 0


class _Groups:
    """How many groups some shards give, with the cap of each author."""

    def __init__(self, policy: CollectPolicy, offers: Iterable[Offer] = ()) -> None:
        self._policy = policy
        self._cap = policy.max_per_peer or policy.external_groups
        self._by_author: Counter[str] = Counter()
        self._total = 0
        for offer in offers:
            self.add(offer)

    @property
    def are_enough(self) -> bool:
        return self._total >= self._policy.external_groups

    def add(self, offer: Offer) -> bool:
        """Add an offer. Return False if its author's cap leaves none of its groups."""
        if self._change(offer, self._worth(offer)) > 0:
            return True
        self._change(offer, -self._worth(offer))
        return False

    def spare(self, offer: Offer) -> bool:
        """Take an offer away if the others are enough, and return whether they are."""
        self._change(offer, -self._worth(offer))
        if not self.are_enough:
            self.add(offer)
            return False
        return True

    def _change(self, offer: Offer, worth: int) -> int:
        author = offer.share or offer.peer
        before = min(self._cap, self._by_author[author])
        self._by_author[author] += worth
        gain = min(self._cap, self._by_author[author]) - before
        self._total += gain
        return gain

    def _worth(self, offer: Offer) -> int:
        prefers = self._policy.prefer_nonzero_advantage and offer.shard.spread
        return offer.shard.spread if prefers else offer.shard.groups


def is_quorum(policy: CollectPolicy, delivered: float, weight: float) -> bool:
    """Whether enough of the counted weight has published, ours included.

    A percentage stands for the fraction that it rounds: 67 % of three is two, 33 % of three is one, 100 % of any
    number is all.

    Args:
        delivered: weight of those that have published.
        weight: of all that count; with equal weights, their number.
    """
    return delivered >= policy.quorum * weight - min(0.005 * weight, 0.05) - 1e-9
