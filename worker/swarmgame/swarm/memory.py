"""The memory of what other peers sent: how large a contribution is once it is decoded, and how much is kept of them.

Bytes on the wire say little: repetitive bytes shrink twentyfold, and an empty rollout is a few bits there and an object
here. So the memory of an index and of each decoded shard is counted against a share of its author, and a shard is not
expanded beyond it. Peers that do not count share 64 MiB; where this peer's own contributions are large, they may have
four times as much as its largest one, because an honest newcomer sends as much as we do. Pure state.
"""

from __future__ import annotations

import sys

from swarmgame.game.state import Contribution
from swarmgame.swarm.messages import CONTRIBUTION_BYTES
from swarmgame.swarm.shares import Pool, Share, Shares

OTHERS_BYTES, OTHER_BYTES = 64 << 20, 16 << 20
"""For all peers that do not count, and for one of them."""
COUNTED_BYTES = 2 << 30
OTHERS_CONTRIBUTIONS, PEER_CONTRIBUTIONS = 4, 3
"""The same in contributions as large as our own: for all others together, and for one peer of either pool."""
_SHARD_ENTRY_BYTES = 256
_ROLLOUT_BYTES, _GROUP_BYTES, _REFERENCE_BYTES, _MESSAGE_BYTES, _INTEGER_BYTES = 512, 768, 512, 128, 40
_SEGMENT_BYTES = 96


class KeptBytes:
    """The memory that is kept for other peers."""

    def __init__(self) -> None:
        self._own = 0
        self._shares = Shares(*self._pools())

    def _pools(self) -> tuple[Pool, Pool]:
        each = PEER_CONTRIBUTIONS * self._own
        counted = max(CONTRIBUTION_BYTES, each)
        return (
            Pool(counted, max(COUNTED_BYTES, counted)),
            Pool(max(OTHER_BYTES, each), max(OTHERS_BYTES, OTHERS_CONTRIBUTIONS * self._own)),
        )

    def note_own(self, contribution: Contribution) -> None:
        """Note what a contribution of our own takes: others may send as much."""
        size = decoded_bytes(contribution)
        if size > self._own:
            self._own = size
            self._shares.set_pools(*self._pools())

    def room(self, share: Share) -> int:
        """Return how many bytes more may be kept for the peer of a share."""
        return self._shares.room(share)

    def take(self, share: Share, size: int) -> bool:
        """Keep so many bytes more. Return False if a bound would be exceeded."""
        return self._shares.take(share, size)

    def give_back(self, share: Share, size: int | None = None) -> None:
        """Keep so many bytes less; by default nothing any more."""
        self._shares.give_back(share, size)

    def total(self, *, counts: bool) -> int:
        """Return the bytes that are kept for the peers that count, or for all others."""
        return self._shares.total(counts=counts)


def index_bytes(packed: int, shards: int) -> int:
    """Return what an index takes, given its length and the number of shards that it names."""
    return packed + _SHARD_ENTRY_BYTES * shards


def decoded_bytes(contribution: Contribution, buffer: int = 0) -> int:
    """Return about what a decoded contribution takes.

    Args:
        buffer: bytes of the expanded shard, which the numbers of all rollouts refer to; 0: what its numbers take.
    """
    total = buffer + sum(
        _REFERENCE_BYTES + sys.getsizeof(reference.environment) + sys.getsizeof(reference.config)
        for reference in contribution.references.values()
    )
    for group in contribution.groups:
        total += _GROUP_BYTES + _INTEGER_BYTES * len(group.prompt.token_ids) + _ROLLOUT_BYTES * len(group.rollouts)
        total += sum(_MESSAGE_BYTES + sys.getsizeof(message.content) for message in group.prompt.messages)
        total += sum(sys.getsizeof(rollout.text) for rollout in group.rollouts)
        segments = (segment for rollout in group.rollouts for segment in rollout.segments)
        total += sum(_SEGMENT_BYTES + sys.getsizeof(segment.text) for segment in segments)
        if not buffer:
            total += sum(6 * len(rollout.token_ids) + len(rollout.text) for rollout in group.rollouts)
    return total
