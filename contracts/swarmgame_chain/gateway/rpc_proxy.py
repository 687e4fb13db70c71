"""A read-only JSON-RPC proxy: one contract, seen through the gateway's node.

Peers of mode External read the chain through it, so the node's address, which may hold a password, stays with the
gateway, and a network policy needs no exception. It allows only the requests about the contract that `reader` makes;
none of them changes anything, and the cost of one request is bounded: calls of the contract may be many, anything else
comes once, and the answers have at most 1 MiB together. Whoever gets 413 asks for less, as `NodeClient` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic_core import from_json

from swarmgame_chain.errors import BadMessage, ChainUnreachable, RequestTooLarge, RpcError
from swarmgame_chain.logs import SPAN
from swarmgame_chain.rpc import BATCH, Call, RpcClient

MAX_CONCURRENT = 32
"""Requests that may wait for the node at the same time; more are refused with 503."""
MAX_ANSWERS = 1 << 20
"""Characters of the answers to one body. A gateway has 256 MiB, and slow readers keep their answers in memory."""
PART = 32
"""Calls that are sent to the node together; their answers are in memory before their size is known."""
MAX_SEARCHES = 2
"""Searches of logs that wait for the node at the same time; an answer of the node may have 8 MiB."""
MAX_WAITING = 8
"""Searches that wait for these."""
MAX_DATA = 4_096
"""Characters of a call's data; the longest argument of a reader is a peer id."""
SEARCH = "eth_getLogs"
NOT_ALLOWED = -32601
MALFORMED = -32600
TAGS = frozenset({"latest", "safe", "finalized", "earliest"})


class ReadOnlyRpcProxy:
    """The requests to the node that anyone who reaches the gateway may make.

    Args:
        contract: the only address that they may concern.
    """

    def __init__(self, chain: RpcClient, contract: str) -> None:
        self._chain = chain
        self._contract = contract.lower()
        self._in_progress = 0
        self._searches = asyncio.Semaphore(MAX_SEARCHES)
        self._searching = 0
        self._allowed: Mapping[str, Callable[[Sequence[Any]], bool]] = {
            "eth_chainId": lambda params: not params,
            "eth_blockNumber": lambda params: not params,
            "eth_getCode": lambda params: len(params) == 2 and self._is_contract(params[0]) and _is_block(params[1]),
            "eth_getBlockByNumber": lambda params: len(params) == 2 and _is_block(params[0]) and params[1] is False,
            "eth_call": self._is_call,
            SEARCH: self._is_search,
        }

    async def answer(self, body: bytes) -> Any:
        """Answer a request or a batch of them, given as JSON types.

        Raises:
            BadMessage: it is not JSON-RPC, or has too many requests.
            ChainUnreachable: the node does not answer, or too many requests wait for it.
            RequestTooLarge: the answers are too large.
        """
        try:
            loaded = from_json(body, allow_inf_nan=False)
        except ValueError as error:
            raise BadMessage("the body is no JSON") from error
        requests = loaded if isinstance(loaded, list) else [loaded]
        if not 0 < len(requests) <= BATCH or not all(isinstance(request, dict) for request in requests):
            raise BadMessage(f"expected a JSON-RPC request, or 1 to {BATCH} of them")
        if self._in_progress >= MAX_CONCURRENT:
            raise ChainUnreachable("too many requests at once")
        self._in_progress += 1
        try:
            answers = await self._forward(requests)
        finally:
            self._in_progress -= 1
        return answers if isinstance(loaded, list) else answers[0]

    async def _forward(self, requests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        checked = self._check_all(requests)
        calls = [each for each in checked if not isinstance(each, RpcError)]
        is_search = any(method == SEARCH for method, _ in calls)
        if is_search and self._searching >= MAX_SEARCHES + MAX_WAITING:  # others need places too
            raise ChainUnreachable("too many searches of logs at once")
        self._searching += is_search
        try:
            async with self._searches if is_search else contextlib.nullcontext():
                results = iter(await self._read(calls))
        finally:
            self._searching -= is_search
        found = [each if isinstance(each, RpcError) else next(results) for each in checked]
        return [_answer(request, result) for request, result in zip(requests, found, strict=True)]

    async def _read(self, calls: Sequence[Call]) -> list[Any | RpcError]:
        results: list[Any | RpcError] = []
        size = 0
        for start in range(0, len(calls), PART):
            part = await self._chain.request_all(calls[start : start + PART])
            size += sum(map(_size, part))
            if size > MAX_ANSWERS:
                raise RequestTooLarge(f"the answers have more than {MAX_ANSWERS} characters; ask for less at once")
            results += part
        return results

    def _check_all(self, requests: Sequence[Mapping[str, Any]]) -> list[Call | RpcError]:
        found: list[Call | RpcError] = []
        methods = set()
        for request in requests:
            checked = self._check(request)
            if not isinstance(checked, RpcError) and checked[0] != "eth_call":
                if checked[0] in methods:
                    checked = RpcError(NOT_ALLOWED, f"not allowed here: more than one {checked[0]} in a batch")
                else:
                    methods.add(checked[0])
            found.append(checked)
        return found

    def _check(self, request: Mapping[str, Any]) -> Call | RpcError:
        method, params = request.get("method"), request.get("params", [])
        if not isinstance(method, str) or not isinstance(params, list):
            return RpcError(MALFORMED, "no JSON-RPC request")
        allowed = self._allowed.get(method)
        if allowed is None or not allowed(params):
            return RpcError(NOT_ALLOWED, f"not allowed here: this is a read-only view of the contract {self._contract}")
        return method, params

    def _is_contract(self, address: object) -> bool:
        return isinstance(address, str) and address.lower() == self._contract

    def _is_call(self, params: Sequence[Any]) -> bool:
        if len(params) != 2 or not isinstance(params[0], dict) or not _is_block(params[1]):
            return False
        data = params[0].get("data")
        return (
            set(params[0]) == {"to", "data"}
            and self._is_contract(params[0]["to"])
            and isinstance(data, str)
            and len(data) <= MAX_DATA
        )

    def _is_search(self, params: Sequence[Any]) -> bool:
        if (
            len(params) != 1
            or not isinstance(params[0], dict)
            or not set(params[0]) <= {"fromBlock", "toBlock", "address", "topics"}
        ):
            return False
        query = params[0]
        addresses = query.get("address")
        first, last = _number(query.get("fromBlock")), _number(query.get("toBlock"))
        known = isinstance(addresses, list) and len(addresses) == 1 and self._is_contract(addresses[0])
        return known and first is not None and last is not None and last - first < SPAN


def _is_block(value: object) -> bool:
    return isinstance(value, str) and (value in TAGS or _number(value) is not None)


def _number(value: object) -> int | None:
    if not isinstance(value, str) or not value.startswith("0x") or len(value) > 18:
        return None
    try:
        return int(value, 16)
    except ValueError:
        return None


def _size(result: Any) -> int:
    """Return about how many characters a result has as JSON."""
    if isinstance(result, RpcError):
        return len(result.message) + 2 * len(result.data)
    return len(result) if isinstance(result, str) else len(json.dumps(result))


def _answer(request: Mapping[str, Any], result: Any) -> dict[str, Any]:
    identifier = request.get("id")
    head = {"jsonrpc": "2.0", "id": identifier if isinstance(identifier, int | str) else None}
    if not isinstance(result, RpcError):
        return {**head, "result": result}
    error: dict[str, Any] = {"code": result.code, "message": result.message}
    return {**head, "error": error | ({"data": "0x" + result.data.hex()} if result.data else {})}
