"""Whether the contract recorded a message, read from its logs and transactions.

A node may search few blocks at a time, lag behind, or fail on one search, so the comparisons of a step share a time.
One that cannot be made delays its message only; after twenty blocks the message counts as repeated.
"""

from __future__ import annotations

import asyncio
import logging

from swarmgame_chain.errors import ChainUnreachable, RpcError
from swarmgame_chain.gateway.queue import QueuedMessage
from swarmgame_chain.messages.base import WAIT, Decision, reject
from swarmgame_chain.reader import Coordinator, PeerState, SwarmConfig

log = logging.getLogger(__name__)
MAX_FAILURES = 20
"""Blocks in which the node may fail to tell what the contract recorded for a message."""
SECONDS = 10.0
"""Longest time of the comparisons of one step."""


class Comparison:
    """Compares messages with what the contract recorded.

    Args:
        head: the number of the block that the messages are judged in.
    """

    def __init__(self, coordinator: Coordinator, swarm: SwarmConfig, head: int) -> None:
        self._coordinator = coordinator
        self._swarm = swarm
        self._head = head
        self._left = SECONDS

    async def decide(self, entry: QueuedMessage, newest: PeerState) -> Decision:
        """Return whether the contract recorded this message, and WAIT where the node cannot tell."""
        if self._left <= 0:
            return WAIT
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            async with asyncio.timeout(self._left):
                decision = await entry.message.outcome(self._coordinator, newest, self._swarm, self._head)
            failure = "the node shows nothing" if decision == WAIT else ""
        except ChainUnreachable:
            return WAIT
        except RpcError as error:
            failure = str(error)
        except TimeoutError:
            failure = f"the search takes more than {SECONDS:.0f} seconds"
        finally:
            self._left -= clock() - began
        if not failure:
            return decision
        entry.failures += 1
        if entry.failures < MAX_FAILURES:
            return WAIT
        log.warning("what the contract recorded cannot be read, so a message counts as repeated: %s", failure)
        return reject(entry.kind.repeated)
