"""The gate: how often and how much other peers may call, before anything of a call is read.

A call costs one unit, and one more for each 4 KiB of message and answer. A call of the directory costs one for each
512 bytes that it stores, since each value has a signature to check, and for each 64 KiB that it reads. Units come back
with time. A peer that counts (see `counted_peers`) has a rate of
its own; all other peers share one, of which one peer has a part: identities are free, so the rate in all is what
protects. A call above a rate is refused, and counted as `too-many-calls`.

What an honest newcomer needs is far below: in a stage one announcement, with at most 64 KiB of bodies 17 units; a few
calls of the directory and a hello for each heartbeat.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from swarmgame.game.state import PeerId
from swarmgame.swarm.shares import Pool, Share, Shares

logger = logging.getLogger(__name__)

UNIT_BYTES, STORE_UNIT_BYTES, READ_UNIT_BYTES = 4096, 512, 64 << 10
DIRECTORY_BYTES = {"rpc_find": 256, "rpc_ping": 256, "rpc_store": 64 << 10}
"""Longest calls of the directory: a search names one key in about 60 bytes, and each further key would cost a search in
the routing table; a value is at most a heartbeat."""
STREAMS_PER_PEER = 8
"""Twice as many as a fetcher uses at once for one peer."""
COUNTED_STREAMS = Pool(STREAMS_PER_PEER, total=512)
OTHER_STREAMS = Pool(STREAMS_PER_PEER, total=64, address=32)
"""Each stream takes two descriptors, and a quarter of a MiB while a body is sent."""
MAX_SENDERS = 4096
"""Senders whose rate is remembered; the one that has not called for longest is forgotten first."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Units a second, and how many may be used at once after a pause."""

    per_second: float
    burst: float


COUNTED = Rate(4000.0, 20_000.0)
OTHER = Rate(200.0, 1000.0)
OTHERS_TOGETHER = Rate(1000.0, 5000.0)


@dataclass(slots=True)
class _Bucket:
    """Units that are left. An answer may take more than are left; then the sender waits for them."""

    left: float
    at: float

    def refill(self, rate: Rate, now: float) -> float:
        self.left = min(rate.burst, self.left + max(0.0, now - self.at) * rate.per_second)
        self.at = now
        return self.left


class Gate:
    """Decides which calls are read.

    Args:
        now: the time, in seconds.
        counts: whether a peer counts.
        outcomes: where refused calls are counted.
        together: the rate of all peers that do not count.
    """

    def __init__(
        self,
        now: Callable[[], float],
        counts: Callable[[PeerId], bool],
        outcomes: Counter[str],
        together: Rate = OTHERS_TOGETHER,
    ) -> None:
        self._now = now
        self._counts = counts
        self._outcomes = outcomes
        self._together = together
        self._senders: OrderedDict[PeerId, _Bucket] = OrderedDict()
        self._others = _Bucket(together.burst, now())
        self._streams = Shares(COUNTED_STREAMS, OTHER_STREAMS)
        self._warned = False

    def admits(self, sender: PeerId, size: int, protocol: str = "") -> bool:
        """Return whether a call is read, and charge it to its sender.

        Args:
            size: bytes of the message.
            protocol: of a call of the directory; empty for our own.
        """
        method = protocol.rpartition(".")[2]
        if size > DIRECTORY_BYTES.get(method, size):
            self.refuse("too-large")
            return False
        now, units = self._now(), 1.0 + size // (STORE_UNIT_BYTES if protocol else UNIT_BYTES)
        counts = self._counts(sender)
        bucket = self._bucket(sender, COUNTED if counts else OTHER, now)
        admitted = bucket.left >= units and (counts or self._others.refill(self._together, now) >= units)
        if not admitted:
            self.refuse("too-many-calls")
            self._say(sender, counts)
            return False
        self._charge(bucket, units, counts)
        return True

    def answered(self, sender: PeerId, size: int, protocol: str = "") -> None:
        """Charge the answer to a call to its sender."""
        bucket = self._senders.get(sender)
        if bucket is not None:
            self._charge(bucket, size // (READ_UNIT_BYTES if protocol else UNIT_BYTES), self._counts(sender))

    def open_stream(self, sender: PeerId, address: str = "") -> Share | None:
        """Return the place of a stream that a peer has opened; None, and count it, where it has to be closed."""
        place = Share(sender, self._counts(sender), address)
        if not self._streams.take(place, 1):
            self.refuse("too-many-streams")
            return None
        return place

    def close_stream(self, place: Share) -> None:
        """Give back the place of a stream."""
        self._streams.give_back(place)

    def refuse(self, reason: str) -> None:
        """Count something that is refused."""
        self._outcomes[reason] += 1

    def _charge(self, bucket: _Bucket, units: float, counts: bool) -> None:
        bucket.left -= units
        if not counts:
            self._others.left -= units

    def _bucket(self, sender: PeerId, rate: Rate, now: float) -> _Bucket:
        bucket = self._senders.get(sender)
        if bucket is None:
            bucket = self._senders[sender] = _Bucket(rate.burst, now)
            if len(self._senders) > MAX_SENDERS:
                self._senders.popitem(last=False)
        self._senders.move_to_end(sender)
        bucket.refill(rate, now)
        return bucket

    def _say(self, sender: PeerId, counts: bool) -> None:
        """Log once that calls are refused."""
        if self._warned:
            return
        self._warned = True
        logger.warning(
            "peer …%s, which %s, calls more often than a peer of this game needs to: its calls are refused until it "
            "calls less (counted: too-many-calls). Likely cause: a hostile peer, or one of another version. Find it by "
            "its id, and admit known peers only: communication.admission Allowlist or Registered",
            sender[-6:],
            "counts" if counts else "does not count",
        )
