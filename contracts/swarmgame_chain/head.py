"""The newest block of a node, and when to read it again.

An address may stand for many machines, some of which lag. What was read from a newer block is not contradicted by an
older one, so an older head is an error; the caller reads everything else as of the block that it got. `BlockPace` is
pure: it learns the time between blocks, so that an idle process reads the head about once a block.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from swarmgame_chain.errors import ChainUnreachable
from swarmgame_chain.rpc import RpcClient

log = logging.getLogger(__name__)
SHORTER_SECONDS = 45.0
"""After this time without the newest block seen, a shorter chain counts as reorganised."""
MAX_BUSY_SECONDS = 1.0
"""Longest wait between two reads of the head while a transaction is in flight."""
MAX_IDLE_SECONDS = 5.0
"""Longest wait between two reads of the head on a chain that makes blocks on demand."""


MAX_PERIOD_SECONDS = 60.0
"""Longest time that is expected between two blocks, whatever times the blocks claim."""


@dataclass(frozen=True, slots=True)
class Block:
    """A block: its number, its hash (0x and 64 digits), its time in unix seconds, and its base fee in wei."""

    number: int
    hash: str
    time: int
    base_fee: int = 0

    @property
    def tag(self) -> str:
        """The block as a parameter of a request."""
        return hex(self.number)


async def newest_block(chain: RpcClient) -> Block:
    """Return the node's newest block.

    Raises:
        ChainUnreachable, RpcError: the node does not answer.
    """
    found = await chain.request("eth_getBlockByNumber", "latest", False)
    return Block(
        int(found["number"], 16),
        found["hash"],
        int(found["timestamp"], 16),
        int(found.get("baseFeePerGas") or "0x0", 16),
    )


class HeadReader:
    """Reads the newest block, and refuses one that is older than the newest seen.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, chain: RpcClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._chain = chain
        self._clock = clock
        self._newest = -1
        self._seen_at = 0.0
        self.lagging = 0
        """How often the node was behind."""

    async def read(self) -> Block:
        """Return the newest block.

        Raises:
            ChainUnreachable: the node does not answer, or is behind what it answered before.
            RpcError: the node returns an error.
        """
        block, now = await newest_block(self._chain), self._clock()
        if block.number < self._newest:
            self.lagging += 1
            if now - self._seen_at < SHORTER_SECONDS:
                raise ChainUnreachable(
                    f"the node is behind: it was at block {self._newest} and is at {block.number}; if its address "
                    "stands for several machines, one of them lags"
                )
            log.warning("the chain is at block %d, was at %d: it was reorganised", block.number, self._newest)
        self._newest, self._seen_at = block.number, now
        return block


class BlockPace:
    """When to read the head again.

    Args:
        interval: least seconds between two reads.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._block: Block | None = None
        self._seen_at = 0.0
        self._gaps: deque[float] = deque(maxlen=8)

    @property
    def period(self) -> float:
        """Seconds between blocks: the shortest of the last gaps, at most 60; 0 until one is known."""
        return min(*self._gaps, MAX_PERIOD_SECONDS) if self._gaps else 0.0

    def observe(self, block: Block, now: float) -> None:
        """Take in a head."""
        last, self._block = self._block, block
        if last is not None and last.hash == block.hash:
            return
        self._seen_at = now
        if last is not None and block.number > last.number:
            self._gaps.append(max(0, block.time - last.time) / (block.number - last.number))

    def delay(self, now: float, sent_at: float | None = None) -> float:
        """Return the seconds until the next read.

        Args:
            sent_at: when a transaction was sent that is not final; None where there is none.
        """
        until_next = self._seen_at + self.period - now
        # A late block, or a chain that makes one only when it is needed: less and less often.
        wait = until_next if until_next > 0 else max(self.period / 6, min(-until_next / 2, MAX_IDLE_SECONDS))
        if sent_at is not None:
            # A chain may mine at once, and a usual one in the next block.
            wait = min(wait, max(0.0, now - sent_at), MAX_BUSY_SECONDS)
        return max(self._interval, wait)
