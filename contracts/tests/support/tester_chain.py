"""A client of an Ethereum machine in this process (eth-tester), for unit tests; every transaction makes a block."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from eth_tester import EthereumTester, PyEVMBackend
from web3 import EthereumTesterProvider, Web3
from web3.exceptions import Web3Exception
from web3.types import RPCEndpoint

from swarmgame_chain.errors import RpcError
from swarmgame_chain.rpc import Call


class TesterClient:
    """Implements `RpcClient`. The machine is not thread-safe: calls are made one at a time, in the caller's thread."""

    name = "eth-tester"
    __test__ = False

    def __init__(self) -> None:
        genesis = PyEVMBackend.generate_genesis_params(overrides={"gas_limit": 60_000_000})
        self.tester = EthereumTester(PyEVMBackend(genesis_parameters=genesis))
        self.web3 = Web3(EthereumTesterProvider(self.tester))
        self._lock = asyncio.Lock()
        self._reader = self.tester.get_accounts()[0]

    async def request(self, method: str, *parameters: Any) -> Any:
        if method == "eth_call":  # web3 would read all accounts three times to take the first
            parameters = ({"from": self._reader} | parameters[0], *parameters[1:])
        async with self._lock:
            try:
                result = self.web3.manager.request_blocking(RPCEndpoint(method), list(parameters))
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
