"""Search a contract's logs in spans of blocks that the node accepts.

Public endpoints bound a search by its blocks, its logs, or its bytes, each with an error of its own. Whatever the error
says, a search that fails is halved, down to one block; the size that worked is kept for later searches.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from swarmgame_chain.errors import RequestTooLarge, RpcError
from swarmgame_chain.rpc import RETRY_AFTER, RpcClient

log = logging.getLogger(__name__)
SPAN = 2_000
"""Blocks in one search at first; public endpoints refuse more."""


class LogSearch:
    """Searches the logs of one contract.

    Args:
        contract: its address.

    Attributes:
        span: the blocks of one search.
    """

    def __init__(self, chain: RpcClient, contract: str) -> None:
        self._chain = chain
        self._contract = contract
        self.span = SPAN
        self._least_span = SPAN
        self._searches = 0

    async def find(self, first: int, last: int, topics: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Return the logs of the blocks from `first` to `last`, both included, in the chain's order.

        Args:
            topics: as in `eth_getLogs`.

        Raises:
            ChainUnreachable: the node does not answer.
            RpcError: it refuses even a search of one block.
        """
        found: list[dict[str, Any]] = []
        while first <= last:
            until = min(first + self.span - 1, last)
            query: dict[str, Any] = {"fromBlock": hex(first), "toBlock": hex(until), "address": [self._contract]}
            if topics:
                query["topics"] = list(topics)
            try:
                found += await self._chain.request("eth_getLogs", query)
            except (RpcError, RequestTooLarge) as error:
                size = until - first + 1
                if size == 1:
                    raise
                self.span, self._searches = size // 2, 0
                if self.span < self._least_span:
                    self._least_span = self.span
                    log.warning("%s: searches have at most %d blocks from now on", error, self.span)
                continue
            first = until + 1
            self._widen()
        return found

    def _widen(self) -> None:
        # The refusal may have been a passing one.
        self._searches += 1
        if self._searches >= RETRY_AFTER and self.span < SPAN:
            self.span, self._searches = min(2 * self.span, SPAN), 0
