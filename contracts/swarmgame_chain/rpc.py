"""JSON-RPC clients of an Ethereum node: over HTTP, and to an Ethereum machine inside this process for unit tests.

Both implement `RpcClient`, at the level of methods and hexadecimal results. They do not retry: the caller knows what
waiting costs. A missing answer is `ChainUnreachable`; an error that the node returns is `RpcError`.
"""

from __future__ import annotations

import ast
import asyncio
import json
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

import aiohttp

from swarmgame_chain.errors import ChainUnreachable, RpcError

MAX_ANSWER = 64 << 20
BATCH = 256
"""Calls in one JSON-RPC batch; public endpoints refuse longer ones."""
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


class HttpRpcClient:
    """A client of a node over HTTP.

    Args:
        url: the endpoint. It may hold credentials and is never logged; `name` may be.
        timeout: seconds that a request may take.
        session: the HTTP session to use; by default the client has its own.
    """

    def __init__(self, url: str, timeout: float = 15.0, session: aiohttp.ClientSession | None = None) -> None:
        self._url = url
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._session = session
        self._owns_session = session is None
        self._id = 0

    @property
    def name(self) -> str:
        """The endpoint's host, without credentials and without the path, which may hold a key."""
        return self._url.split("://")[-1].split("/")[0].split("@")[-1]

    async def request(self, method: str, *parameters: Any) -> Any:
        self._id += 1
        answer = await self._post({"jsonrpc": "2.0", "id": self._id, "method": method, "params": list(parameters)})
        result = _result(answer)
        if isinstance(result, RpcError):
            raise result
        return result

    async def request_all(self, calls: Sequence[Call]) -> list[Any | RpcError]:
        results: list[Any | RpcError] = []
        for start in range(0, len(calls), BATCH):
            part = calls[start : start + BATCH]
            body = [
                {"jsonrpc": "2.0", "id": i, "method": method, "params": list(parameters)}
                for i, (method, parameters) in enumerate(part)
            ]
            answers = await self._post(body)
            if not isinstance(answers, list):
                raise ChainUnreachable(f"{self.name} does not answer batches of calls")
            by_id = {answer.get("id"): answer for answer in answers if isinstance(answer, dict)}
            results += [
                _result(by_id.get(i, {"error": {"code": 0, "message": "no answer in the batch"}}))
                for i in range(len(part))
            ]
        return results

    async def close(self) -> None:
        if self._session is not None and self._owns_session:
            await self._session.close()
            self._session = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _post(self, body: object) -> Any:
        if self._session is None:
            self._session = aiohttp.ClientSession()
        try:
            async with self._session.post(self._url, json=body, timeout=self._timeout) as response:
                raw = bytearray()
                async for part in response.content.iter_chunked(1 << 16):
                    raw += part
                    if len(raw) > MAX_ANSWER:
                        raise ChainUnreachable(f"{self.name} answers with more than {MAX_ANSWER} bytes")
                if response.status >= 500 or response.status == 429:
                    raise ChainUnreachable(f"{self.name} answers with HTTP status {response.status}")
            return json.loads(raw)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ChainUnreachable(f"{self.name} does not answer: {type(error).__name__}") from error
        except ValueError as error:
            raise ChainUnreachable(f"{self.name} does not speak JSON-RPC") from error


class TesterRpcClient:
    """A client of an Ethereum machine in this process (eth-tester), for unit tests; every transaction makes a block.

    It needs `web3[tester]`. It is not thread-safe, so calls are made one at a time in the caller's thread.
    """

    name = "eth-tester"
    __test__ = False

    def __init__(self) -> None:
        from eth_tester import EthereumTester, PyEVMBackend
        from web3 import EthereumTesterProvider, Web3

        genesis = PyEVMBackend.generate_genesis_params(overrides={"gas_limit": 60_000_000})
        self.tester = EthereumTester(PyEVMBackend(genesis_parameters=genesis))
        self._web3 = Web3(EthereumTesterProvider(self.tester))
        self._lock = asyncio.Lock()

    async def request(self, method: str, *parameters: Any) -> Any:
        from web3.exceptions import Web3Exception
        from web3.types import RPCEndpoint

        async with self._lock:
            try:
                result = self._web3.manager.request_blocking(RPCEndpoint(method), list(parameters))
            except Web3Exception as error:
                raise RpcError(3, str(error)) from error
            # eth-tester raises exceptions of many unrelated kinds; each stands for an error of the node.
            except Exception as error:
                raise RpcError(3, str(error), _reverted(str(error))) from error
        return _plain(result)

    async def request_all(self, calls: Sequence[Call]) -> list[Any | RpcError]:
        results: list[Any | RpcError] = []
        for method, parameters in calls:
            try:
                results.append(await self.request(method, *parameters))
            except RpcError as error:
                results.append(error)
        return results

    async def close(self) -> None:
        return


def successes(answers: Sequence[Any | RpcError]) -> list[Any]:
    """Return the results of `request_all`, where all are needed.

    Raises:
        RpcError: the first error among them.
    """
    for answer in answers:
        if isinstance(answer, RpcError):
            raise answer
    return list(answers)


def _result(answer: Any) -> Any | RpcError:
    if not isinstance(answer, dict):
        return RpcError(0, "an answer that is no object")
    error = answer.get("error")
    if error is None:
        return answer.get("result")
    data = error.get("data") if isinstance(error, dict) else None
    data = data.get("data") if isinstance(data, dict) else data
    raw = bytes.fromhex(data[2:]) if isinstance(data, str) and data.startswith("0x") and len(data) % 2 == 0 else b""
    return RpcError(int(error.get("code", 0)), str(error.get("message", "")), raw)


def _reverted(text: str) -> bytes:
    # eth-tester gives a custom error only as "execution reverted: b'…'".
    _, found, data = text.partition("execution reverted: b")
    try:
        return bytes(ast.literal_eval("b" + data)) if found else b""
    except (ValueError, SyntaxError):
        return b""


def _plain(value: Any) -> Any:
    # web3 returns numbers and bytes where a node returns hexadecimal text.
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return hex(value) if isinstance(value, int) and not isinstance(value, bool) else value
