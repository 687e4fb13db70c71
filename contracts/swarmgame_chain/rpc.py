"""Clients of an Ethereum node, at the level of JSON-RPC methods and hexadecimal results.

`NodeClient` sends requests through web3.py's providers (HTTP, WebSocket, IPC); `contract.py` offers web3.py's contract
objects over any client. A client repeats a request only where a connection was lost, since the caller knows what
waiting costs. A missing or malformed answer is `ChainUnreachable`; an error that the node returns is `RpcError`.
Importing this module loads neither web3 nor aiohttp.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from swarmgame_chain.errors import RequestTooLarge, RpcError

if TYPE_CHECKING:
    import aiohttp

    from swarmgame_chain.providers import NodeConnection

log = logging.getLogger(__name__)
BATCH = 256
"""Calls in one JSON-RPC batch; public endpoints refuse longer ones."""
RETRY_AFTER = 100
"""Requests within a limit of the node, after which twice as much is tried again."""
NODE_ADDRESSES = "http(s)://…, ws(s)://…, or the absolute path of a node's socket"
Call = tuple[str, Sequence[Any]]


class RpcClient(Protocol):
    """A client of one node."""

    async def request(self, method: str, *parameters: Any) -> Any:
        """Return the result of one JSON-RPC call.

        Raises:
            ChainUnreachable: no answer.
            RpcError: the node returns an error.
        """
        ...

    async def request_all(self, calls: Sequence[Call]) -> list[Any | RpcError]:
        """Return the results of many calls, in order; each is a result or the node's error.

        Raises:
            ChainUnreachable: no answer.
        """
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


class NodeClient:
    """A client of a node.

    Args:
        url: `http(s)://…`, `ws(s)://…`, or the absolute path of the node's socket. It may hold credentials and is never
            logged; `name` may be.
        timeout: seconds that a request may take.
        session: the HTTP session to use, of `providers.http_session`; by default the client has its own.
    """

    def __init__(self, url: str, timeout: float = 15.0, session: aiohttp.ClientSession | None = None) -> None:
        self._url = url
        self._timeout = timeout
        self._session = session
        self._opened: NodeConnection | None = None
        self.batch_limit = BATCH
        """Calls in one batch; halved whenever the node refuses a batch."""
        self._least_limit = BATCH
        self._batches = 0

    @property
    def name(self) -> str:
        """The endpoint's host, without credentials and without the path, which may hold a key."""
        return shown_name(self._url)

    async def request(self, method: str, *parameters: Any) -> Any:
        result = await self._connection().request(method, list(parameters))
        if isinstance(result, RpcError):
            raise result
        return result

    async def request_all(self, calls: Sequence[Call]) -> list[Any | RpcError]:
        results: list[Any | RpcError] = []
        while len(results) < len(calls):
            part = calls[len(results) : len(results) + self.batch_limit]
            try:
                results += await self._request_part(part)
            except RequestTooLarge as error:
                if len(part) == 1:
                    raise
                self.batch_limit, self._batches = max(1, len(part) // 2), 0
                if self.batch_limit < self._least_limit:
                    self._least_limit = self.batch_limit
                    log.warning("%s: batches have at most %d calls from now on", error, self.batch_limit)
            else:
                self._widen()
        return results

    def separate(self) -> NodeClient:
        """Return another client of the same node, with limits and connections of its own."""
        return NodeClient(self._url, self._timeout, self._session)

    async def close(self) -> None:
        if self._opened is not None:
            await self._opened.close()
            self._opened = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _widen(self) -> None:
        # The refusal may have been a passing one; a limit that stays costs one refused request in a hundred.
        self._batches += 1
        if self._batches >= RETRY_AFTER and self.batch_limit < BATCH:
            self.batch_limit, self._batches = min(2 * self.batch_limit, BATCH), 0

    async def _request_part(self, part: Sequence[Call]) -> list[Any | RpcError]:
        if self.batch_limit > 1:
            return await self._connection().request_batch(part)
        # Some nodes take no batches at all.
        ((method, parameters),) = part
        return [await self._connection().request(method, list(parameters))]

    def _connection(self) -> NodeConnection:
        if self._opened is None:
            # web3 costs a tenth of a second of processor time, and most peers play without a chain.
            from swarmgame_chain.providers import NodeConnection

            self._opened = NodeConnection(self._url, self.name, self._timeout, self._session)
        return self._opened


class CountedClient:
    """Counts the calls of a client, for metrics.

    Attributes:
        calls: method → count.
    """

    def __init__(self, client: RpcClient, calls: Counter[str] | None = None) -> None:
        self._client = client
        self.calls: Counter[str] = Counter() if calls is None else calls

    def separate(self) -> CountedClient:
        """Return a client with limits of its own, whose calls are counted here; itself where there are no limits."""
        if not isinstance(self._client, NodeClient):
            return self
        return CountedClient(self._client.separate(), self.calls)

    async def request(self, method: str, *parameters: Any) -> Any:
        self.calls[method] += 1
        return await self._client.request(method, *parameters)

    async def request_all(self, calls: Sequence[Call]) -> list[Any | RpcError]:
        self.calls.update(method for method, _ in calls)
        return await self._client.request_all(calls)

    async def close(self) -> None:
        await self._client.close()


def is_node_address(text: str) -> bool:
    """Return whether a client can be made for an address; it is not contacted."""
    return text.startswith(("http://", "https://", "ws://", "wss://", "/"))


def is_address(text: str) -> bool:
    """Return whether a text is the address of an account or a contract: 0x and 40 hexadecimal digits."""
    return re.fullmatch(r"0x[0-9a-fA-F]{40}", text) is not None


def shown_name(url: str) -> str:
    """Return the part of a node's address that may be shown: the host and the port."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return scheme
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    # Such a letter in a password would end the authority too early, and show the user and half of the password.
    return "the node" if "@" in rest[len(authority) :] else authority.rpartition("@")[2]


def successes(answers: Sequence[Any | RpcError]) -> list[Any]:
    """Return the results of `request_all`, where all are needed.

    Raises:
        RpcError: the first error among them.
    """
    for answer in answers:
        if isinstance(answer, RpcError):
            raise answer
    return list(answers)
