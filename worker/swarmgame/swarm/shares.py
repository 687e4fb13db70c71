"""Shares: how much of a resource this process holds for other peers, for each of them, each address, and in all.

Identities are free, so the bound in all is what protects. Peers that count (see `counted_peers`) have a pool of their
own, which the others cannot use up; all others share a second, smaller one, of which one peer and one remote address
have a part. Pure state; a resource is a number of things, or bytes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from swarmgame.game.state import PeerId


@dataclass(frozen=True, slots=True)
class Pool:
    """The bounds of one pool.

    Args:
        each: most for one peer.
        total: most for all peers of the pool together.
        address: most for all of one remote address; 0: no bound. An address that is not known has none either.
    """

    each: int
    total: int
    address: int = 0


@dataclass(slots=True, eq=False)
class Share:
    """What is held for one peer: of which pool, and how much.

    Args:
        counts: whether it is of the pool of the peers that count.
        address: from which the peer is connected; empty where it is not known.
    """

    peer: PeerId
    counts: bool
    address: str = ""
    amount: int = 0


class Shares:
    """What is held for every other peer.

    Args:
        counted: the pool of the peers that count.
        others: the pool of all others.
    """

    def __init__(self, counted: Pool, others: Pool) -> None:
        self._pools = {True: counted, False: others}
        self._totals = {True: 0, False: 0}
        self._held: Counter[tuple[bool, PeerId]] = Counter()
        self._addresses: Counter[tuple[bool, str]] = Counter()

    def set_pools(self, counted: Pool, others: Pool) -> None:
        """Change the bounds. What is held stays."""
        self._pools = {True: counted, False: others}

    def room(self, share: Share) -> int:
        """Return how much more a share may hold."""
        pool, counts = self._pools[share.counts], share.counts
        left = min(pool.total - self._totals[counts], pool.each - self._held[counts, share.peer])
        if pool.address and share.address:
            left = min(left, pool.address - self._addresses[counts, share.address])
        return max(0, left)

    def take(self, share: Share, amount: int) -> bool:
        """Add to a share. Return False, and change nothing, if a bound would be exceeded."""
        if amount > self.room(share):
            return False
        self._add(share, amount)
        return True

    def give_back(self, share: Share, amount: int | None = None) -> None:
        """Take an amount from a share; by default all of it."""
        self._add(share, -(share.amount if amount is None else amount))

    def _add(self, share: Share, amount: int) -> None:
        share.amount += amount
        self._totals[share.counts] += amount
        for counter, key in ((self._held, share.peer), (self._addresses, share.address)):
            counter[share.counts, key] += amount
            if not counter[share.counts, key]:
                del counter[share.counts, key]

    def total(self, *, counts: bool) -> int:
        """Return what is held for all peers of a pool."""
        return self._totals[counts]
