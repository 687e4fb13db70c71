"""web3.py as the transport: an AsyncWeb3 for each node, with web3.py's provider for HTTP, WebSocket or IPC.

Requests pass web3.py's middlewares. The innermost one, `CheckedAnswers`, turns whatever fails or is malformed into
`ChainUnreachable`. Methods and results stay JSON-RPC's: web3.py's own objects cost 87 times the processor time in a
batch of 100 calls (docs/decisions/0061-web3-is-the-client.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from typing import Any, cast

import aiohttp
from pydantic_core import from_json, to_json

from swarmgame_chain.answers import check_answer, check_batch, result_of
from swarmgame_chain.errors import ChainError, ChainUnreachable, RequestTooLarge, RpcError
from swarmgame_chain.light_imports import light_imports
from swarmgame_chain.rpc import Call

with light_imports():
    from web3 import AsyncHTTPProvider, AsyncIPCProvider, AsyncWeb3, PersistentConnectionProvider, WebSocketProvider
    from web3._utils.http_session_manager import HTTPSessionManager
    from web3.exceptions import ReadBufferLimitReached, Web3Exception
    from web3.middleware import Web3Middleware
    from web3.providers.rpc.utils import ExceptionRetryConfiguration
    from web3.types import RPCEndpoint, RPCResponse
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.frames import CloseCode

MAX_ANSWER = 8 << 20
"""Bytes of one answer. A gateway's largest, the receipts of eight full transactions, has 3 MB; longer searches of logs
and longer batches are halved. An answer is held three times while it is read, and a gateway has 256 MiB.
"""
TRIES = 2
"""How often a request is sent whose connection is lost; nodes close connections that are idle."""
CONTENT_TOO_LARGE = 413
_CLOSE_SECONDS = 1

# They log a node's address, which may hold a password, at the levels INFO and DEBUG.
for _name in ("web3", "websockets"):
    logging.getLogger(_name).setLevel(logging.WARNING)


class NodeConnection:
    """The connection to one node.

    Args:
        url: the node's address: http(s), ws(s), or the path of a socket.
        name: the part of it that may be shown.
        timeout: seconds that a request may take.
        session: the HTTP session to use, of `http_session`; by default the connection has its own.

    Attributes:
        w3: web3.py's object for the node; `w3.middleware_onion` takes further middlewares.
    """

    def __init__(self, url: str, name: str, timeout: float, session: aiohttp.ClientSession | None = None) -> None:
        self._provider = _provider(url, timeout, session)
        # A contract's answer may name addresses that web3.py would then fetch (EIP-3668).
        self._provider.global_ccip_read_enabled = False
        self.w3: AsyncWeb3[Any] = AsyncWeb3(self._provider, middleware=[])
        self.w3.middleware_onion.inject(cast(Any, partial(CheckedAnswers, node=name)), "checked answers", layer=0)
        self._is_connected = not isinstance(self._provider, PersistentConnectionProvider)
        # web3.py gives all batches of a persistent connection one id, so such a connection has one request at a time.
        self._turn = None if self._is_connected else asyncio.Lock()
        self._name = name

    async def request(self, method: str, parameters: list[Any]) -> Any | RpcError:
        """Return the result of one call, or the node's error.

        Raises:
            ChainUnreachable: no answer, or a malformed one.
        """
        send = await self._provider.request_func(self.w3, self.w3.middleware_onion)
        return result_of(await self._in_turn(lambda: send(RPCEndpoint(method), parameters)))

    async def request_batch(self, calls: Sequence[Call]) -> list[Any | RpcError]:
        """Return the results of many calls in one request, in order.

        Raises:
            ChainUnreachable: no answer, or a malformed one.
        """
        send = await self._provider.batch_request_func(self.w3, self.w3.middleware_onion)
        requests = [(RPCEndpoint(method), list(parameters)) for method, parameters in calls]
        return [result_of(each) for each in await self._in_turn(lambda: send(requests))]

    async def close(self) -> None:
        """Close the connection; idempotent."""
        # The task that listens may have ended with an error of this package.
        with contextlib.suppress(ChainError, *_FAILURES):
            await self._provider.disconnect()

    async def _in_turn(self, send: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        if self._turn is None:
            return await send()
        async with self._turn:
            if self._is_connected and self._provider.is_lost:
                await self._disconnect()
            if not self._is_connected:
                with node_failures(self._name):
                    await self._provider.connect()
                self._is_connected, self._provider.is_lost = True, False
            try:
                return await send()
            except BaseException:
                # A late answer would be taken for the answer of the next request.
                await self._disconnect()
                raise

    async def _disconnect(self) -> None:
        self._is_connected = False
        # Where its listener had failed, web3.py leaves the connection open at the first call.
        for _ in range(2):
            await self.close()


class CheckedAnswers(Web3Middleware):
    """Lets only well-formed answers pass; everything else is `ChainUnreachable`.

    Args:
        node: the node's name, for messages.
    """

    def __init__(self, w3: AsyncWeb3[Any], node: str) -> None:
        super().__init__(w3)
        self.node = node

    async def async_wrap_make_request(self, make_request: Any) -> Any:
        async def checked(method: RPCEndpoint, parameters: Any) -> RPCResponse:
            with node_failures(self.node):
                response: RPCResponse = await make_request(method, parameters)
            check_answer(self.node, method, response)
            return response

        return checked

    async def async_wrap_make_batch_request(self, make_batch_request: Any) -> Any:
        async def checked(requests: list[tuple[RPCEndpoint, Any]]) -> list[RPCResponse]:
            with node_failures(self.node):
                responses: list[RPCResponse] = await make_batch_request(requests)
            check_batch(self.node, [method for method, _ in requests], responses)
            return responses

        return checked


@contextlib.contextmanager
def node_failures(node: str) -> Iterator[None]:
    """Raise `ChainUnreachable` for whatever a provider raises.

    The original error is not its cause: its text may hold the node's address.
    """
    try:
        yield
    except aiohttp.ClientResponseError as error:
        kind = RequestTooLarge if error.status == CONTENT_TOO_LARGE else ChainUnreachable
        raise kind(f"{node} answers with HTTP status {error.status}") from None
    except _AnswerTooLarge:
        raise RequestTooLarge(f"{node} answers with more than {MAX_ANSWER} bytes") from None
    except (aiohttp.ClientError, WebSocketException, Web3Exception, OSError) as error:
        raise ChainUnreachable(f"{node} does not answer: {type(error).__name__}") from None
    except _NO_JSON_RPC:
        raise ChainUnreachable(f"{node} does not speak JSON-RPC") from None


def http_session(timeout: float | None = None) -> aiohttp.ClientSession:
    """Return a session whose answers are bounded, to share among clients of one event loop.

    Args:
        timeout: seconds that a request may take where it names none itself.
    """
    return aiohttp.ClientSession(response_class=_BoundedResponse, timeout=aiohttp.ClientTimeout(total=timeout))


def _provider(url: str, timeout: float, session: aiohttp.ClientSession | None) -> Any:
    if url.startswith(("ws://", "wss://")):
        options = {"max_size": MAX_ANSWER, "open_timeout": timeout, "close_timeout": _CLOSE_SECONDS}
        return _WebSocketProvider(url, options, use_text_frames=True, request_timeout=timeout, max_connection_retries=1)
    if url.startswith("/"):
        return _IpcProvider(url, MAX_ANSWER, request_timeout=timeout, max_connection_retries=1)
    return _HttpProvider(url, timeout, session)


class _AnswersByCall:
    """Leaves the errors of calls to their callers; web3.py's listener ends with the first one that it receives."""

    is_lost = False
    """Whether the listener has ended, so that no answer would be received."""

    async def socket_recv(self) -> Any:
        try:
            message = await super().socket_recv()  # type: ignore[misc]
        except BaseException as error:
            self.is_lost = True
            if _is_too_large(error):
                raise RequestTooLarge(f"the node answers with more than {MAX_ANSWER} bytes") from None
            raise
        if isinstance(message, dict) and message.get("id") is None:
            raise RequestTooLarge("the node answers with an error of no call")
        return message

    def _raise_stray_errors_from_cache(self) -> None:
        return


def _is_too_large(error: BaseException) -> bool:
    if isinstance(error, ConnectionClosed):
        return error.sent is not None and error.sent.code == CloseCode.MESSAGE_TOO_BIG
    return isinstance(error, ReadBufferLimitReached)


class _WebSocketProvider(_AnswersByCall, WebSocketProvider):
    pass


class _IpcProvider(_AnswersByCall, AsyncIPCProvider):
    pass


class _HttpProvider(AsyncHTTPProvider):
    def __init__(self, url: str, timeout: float, session: aiohttp.ClientSession | None) -> None:
        # Not where connecting takes too long: that would double the deadline.
        lost = ExceptionRetryConfiguration(_LOST, retries=TRIES, backoff_factor=0.1)
        limits = {"timeout": aiohttp.ClientTimeout(total=timeout)}
        super().__init__(url, request_kwargs=limits, exception_retry_configuration=lost)
        self._sessions = self._request_session_manager = _OneSession(session)

    async def make_batch_request(self, batch_requests: list[tuple[RPCEndpoint, Any]]) -> Any:
        try:
            return await super().make_batch_request(batch_requests)
        except aiohttp.ServerDisconnectedError:
            # web3.py repeats single requests only.
            return await super().make_batch_request(batch_requests)

    def encode_batch_rpc_request(self, requests: list[tuple[RPCEndpoint, Any]]) -> bytes:
        # web3.py makes an encoder for each call of a batch.
        return to_json([self.form_request(method, parameters) for method, parameters in requests])

    async def disconnect(self) -> None:
        await self._sessions.close()

    @staticmethod
    def decode_rpc_response(raw_response: bytes) -> Any:
        # Bounded in depth, unlike json.loads, and four times as fast.
        return from_json(raw_response, allow_inf_nan=False)


class _OneSession(HTTPSessionManager):
    """One session, which keeps its connections.

    web3.py's own opens a connection for each request, and takes a lock of the whole process in another thread for each:
    a request that is cancelled at that moment leaves the lock taken, and every client of the process waits for ever.
    """

    def __init__(self, session: aiohttp.ClientSession | None) -> None:
        super().__init__()
        self._session = session
        self._is_owner = session is None

    async def async_cache_and_return_session(
        self, endpoint_uri: Any, session: Any = None, request_timeout: Any = None
    ) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = http_session()
        return self._session

    async def close(self) -> None:
        if self._session is not None and self._is_owner:
            await self._session.close()
            self._session = None


class _AnswerTooLarge(aiohttp.ClientError):
    """An answer of more than MAX_ANSWER bytes."""


class _BoundedResponse(aiohttp.ClientResponse):
    async def read(self) -> bytes:
        body = bytearray()
        try:
            async for part in self.content.iter_chunked(1 << 16):
                body += part
                if len(body) > MAX_ANSWER:
                    raise _AnswerTooLarge
        except BaseException:
            self.close()
            raise
        return bytes(body)

    def raise_for_status(self) -> None:
        # Public endpoints put errors of JSON-RPC, a range that is too wide, into answers of status 400.
        if self.status != 400:
            super().raise_for_status()


_LOST = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)
_NO_JSON_RPC = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""What web3.py raises for answers that are not JSON, or JSON of another form."""
_FAILURES = (aiohttp.ClientError, WebSocketException, Web3Exception, OSError, *_NO_JSON_RPC)
