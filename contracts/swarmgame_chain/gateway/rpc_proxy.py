"""The window: a read-only view of one contract through the gateway's node, as JSON-RPC.

Peers of mode External see the chain through it, so that the node's address, which may hold a password, stays with the
gateway, and a network policy needs no hole. Only questions about our contract pass, in the forms that `reader` asks
them; it is no way to use somebody's node for something else. Invariant: nothing that passes can change anything, and
what one question may cost is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic_core import from_json

from swarmgame_chain.errors import BadMessage, ChainUnreachable, RpcError
from swarmgame_chain.reader import SPAN
from swarmgame_chain.rpc import BATCH, Call, RpcClient

MAX_CONCURRENT = 32
"""Requests that may wait for the node together; more are asked to come again."""
MAX_DATA = 4_096
"""Characters of a call's data; the longest that a reader asks is a peer id's."""
NOT_ALLOWED = -32601
MALFORMED = -32600
TAGS = frozenset({"latest", "safe", "finalized", "earliest"})


class ReadOnlyRpcProxy:
    """What may be asked of a node by anyone who reaches the gateway.

    Args:
        contract: the only address that may be asked about.
    """

    def __init__(self, chain: RpcClient, contract: str) -> None:
        self._chain = chain
        self._contract = contract.lower()
        self._open = 0
        self._allowed: Mapping[str, Callable[[Sequence[Any]], bool]] = {
            "eth_chainId": lambda asked: not asked,
            "eth_blockNumber": lambda asked: not asked,
            "eth_getCode": lambda asked: len(asked) == 2 and self._ours(asked[0]) and _is_block(asked[1]),
            "eth_getBlockByNumber": lambda asked: len(asked) == 2 and _is_block(asked[0]) and asked[1] is False,
            "eth_call": self._is_call,
            "eth_getLogs": self._is_search,
        }

    async def answer(self, body: bytes) -> Any:
        """The answer to a request or to a batch of them, as JSON's types.

        Raises:
            BadMessage: it is no JSON-RPC, or too many requests.
            ChainUnreachable: the node does not answer, or too many ask.
        """
        try:
            loaded = from_json(body, allow_inf_nan=False)
        except ValueError as error:
            raise BadMessage("the body is no JSON") from error
        requests = loaded if isinstance(loaded, list) else [loaded]
        if not 0 < len(requests) <= BATCH or not all(isinstance(request, dict) for request in requests):
            raise BadMessage(f"expected a JSON-RPC request, or 1 to {BATCH} of them")
        if self._open >= MAX_CONCURRENT:
            raise ChainUnreachable("too many ask at once")
        self._open += 1
        try:
            answers = await self._ask(requests)
        finally:
            self._open -= 1
        return answers if isinstance(loaded, list) else answers[0]

    async def _ask(self, requests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        judged = [self._judge(request) for request in requests]
        calls = [each for each in judged if not isinstance(each, RpcError)]
        results = iter(await self._chain.request_all(calls) if calls else [])
        found = [each if isinstance(each, RpcError) else next(results) for each in judged]
        return [_answer(request, result) for request, result in zip(requests, found, strict=True)]

    def _judge(self, request: Mapping[str, Any]) -> Call | RpcError:
        method, asked = request.get("method"), request.get("params", [])
        if not isinstance(method, str) or not isinstance(asked, list):
            return RpcError(MALFORMED, "no JSON-RPC request")
        allowed = self._allowed.get(method)
        if allowed is None or not allowed(asked):
            return RpcError(NOT_ALLOWED, f"not allowed here: this is a read-only view of the contract {self._contract}")
        return method, asked

    def _ours(self, address: object) -> bool:
        return isinstance(address, str) and address.lower() == self._contract

    def _is_call(self, asked: Sequence[Any]) -> bool:
        if len(asked) != 2 or not isinstance(asked[0], dict) or not _is_block(asked[1]):
            return False
        data = asked[0].get("data")
        return (
            set(asked[0]) == {"to", "data"}
            and self._ours(asked[0]["to"])
            and isinstance(data, str)
            and len(data) <= MAX_DATA
        )

    def _is_search(self, asked: Sequence[Any]) -> bool:
        if (
            len(asked) != 1
            or not isinstance(asked[0], dict)
            or not set(asked[0]) <= {"fromBlock", "toBlock", "address", "topics"}
        ):
            return False
        query = asked[0]
        addresses = query.get("address")
        first, last = _number(query.get("fromBlock")), _number(query.get("toBlock"))
        ours = isinstance(addresses, list) and len(addresses) == 1 and self._ours(addresses[0])
        return ours and first is not None and last is not None and last - first < SPAN


def _is_block(value: object) -> bool:
    return isinstance(value, str) and (value in TAGS or _number(value) is not None)


def _number(value: object) -> int | None:
    if not isinstance(value, str) or not value.startswith("0x") or len(value) > 18:
        return None
    try:
        return int(value, 16)
    except ValueError:
        return None


def _answer(request: Mapping[str, Any], result: Any) -> dict[str, Any]:
    identifier = request.get("id")
    head = {"jsonrpc": "2.0", "id": identifier if isinstance(identifier, int | str) else None}
    if not isinstance(result, RpcError):
        return {**head, "result": result}
    error: dict[str, Any] = {"code": result.code, "message": result.message}
    return {**head, "error": error | ({"data": "0x" + result.data.hex()} if result.data else {})}
