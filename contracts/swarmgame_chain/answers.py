"""Answers of a node, checked in one place: what is not of the expected form is `ChainUnreachable`.

A node is untrusted, and so is whatever answers in its place: a proxy's HTML, a limit of a public endpoint, a lagging or
pruned backend. A result that passes has the types and the bounds that this package relies on, so that `int(result, 16)`
cannot fail. Pure functions; nothing here waits or repeats.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from swarmgame_chain.errors import ChainUnreachable, RequestTooLarge, RpcError

MAX_BLOCK = 2**53
MAX_TIME = 2**40
"""Unix seconds; about 35,000 years from now."""
MAX_PRICE = 2**96
"""Wei per unit of gas."""
MAX_TEXT = 300
"""Characters of a node's message that are kept; it is shown to people and passed on to peers."""

_NUMBER = re.compile(r"0x[0-9a-fA-F]{1,64}")
_DIGITS = re.compile(r"0x[0-9a-fA-F]*")
_RATE_LIMITED = re.compile(
    r"rate.?limit|too many requests|request limit|quota|throttl|capacity|compute units|daily limit|credits", re.I
)
_NO_ACCESS = re.compile(r"unauthori[sz]ed|forbidden|api.?key|project id|authenticat|access denied", re.I)
_RATE_CODES = frozenset({429, -32029, -32016, -32097})


def check_answer(node: str, method: str, response: object) -> None:
    """Check a JSON-RPC response: a result of the form that the method returns, or an error of the call itself.

    Args:
        node: the node's name, for messages.
        response: the parsed JSON.

    Raises:
        ChainUnreachable: it is neither, or the node limits requests or refuses access.
    """
    if not isinstance(response, Mapping):
        raise ChainUnreachable(f"{node} does not speak JSON-RPC: it answers {method} with {_shown(response)}")
    if response.get("error") is not None:
        error = result_of(response)
        # Text beside data is that of a contract that reverted, and may be any.
        text = "" if error.data else error.message
        if error.code in _RATE_CODES or _RATE_LIMITED.search(text):
            raise ChainUnreachable(f"{node} limits requests: {error.message}")
        if _NO_ACCESS.search(text):
            raise ChainUnreachable(f"{node} refuses access: {error.message}")
        return
    if "result" not in response:
        raise ChainUnreachable(f"{node} does not speak JSON-RPC: it answers {method} without a result")
    result = response["result"]
    expected = _EXPECTED.get(method)
    if expected is not None and not expected[1](result):
        raise ChainUnreachable(f"{node} answers {method} with {_shown(result)}; expected {expected[0]}")


def check_batch(node: str, methods: Sequence[str], responses: object) -> None:
    """Check the responses of a batch, sorted by id: one for each method, each as `check_answer`.

    Raises:
        RequestTooLarge: the node does not answer the batch as one; single calls, or a smaller batch, may work.
        ChainUnreachable: as `check_answer`.
    """
    if not isinstance(responses, list):
        check_answer(node, "a batch", responses)
        raise RequestTooLarge(f"{node} does not answer a batch of {len(methods)} calls")
    ids = [each.get("id") if isinstance(each, Mapping) else None for each in responses]
    # web3.py numbers the calls of a batch consecutively.
    first = ids[0] if ids else None
    if not isinstance(first, int) or ids != list(range(first, first + len(methods))):
        raise RequestTooLarge(f"{node} does not answer each of {len(methods)} calls in a batch once")
    for method, response in zip(methods, responses, strict=True):
        check_answer(node, method, response)


def result_of(response: Mapping[str, Any]) -> Any | RpcError:
    """Return the result of a checked response, or the node's error for this call."""
    error = response.get("error")
    if error is None:
        return response["result"]
    fields = error if isinstance(error, Mapping) else {"message": error}
    data = fields.get("data")
    data = data.get("data") if isinstance(data, Mapping) else data
    text = data[2:] if isinstance(data, str) and _is_bytes(data) else ""
    return RpcError(_code(fields.get("code")), _text(fields.get("message")), bytes.fromhex(text))


def _code(value: object) -> int:
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,9}", value):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31 else 0


def _text(value: object) -> str:
    text = value if isinstance(value, str) else _shown(value)
    return "".join(character if character.isprintable() else " " for character in text[:MAX_TEXT])


def _shown(value: object) -> str:
    """Return a value of untrusted JSON as short text; its depth and length do not matter."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, str) and len(value) > 80:
        return f"text of {len(value)} characters"
    if isinstance(value, int) and abs(value) >= 2**64:
        return "a number of more than 64 bits"
    return "null" if value is None else repr(value)


def _is_number(value: object, most: int = 2**256 - 1) -> bool:
    return isinstance(value, str) and _NUMBER.fullmatch(value) is not None and int(value, 16) <= most


def _is_bytes(value: object, length: int | None = None) -> bool:
    if not isinstance(value, str) or (length is not None and len(value) != 2 + 2 * length):
        return False
    # A group that repeats would keep its state for each byte, many times the text.
    return len(value) % 2 == 0 and _DIGITS.fullmatch(value) is not None


def _is_log(value: object) -> bool:
    if not isinstance(value, Mapping):
        return False
    topics = value.get("topics")
    return (
        isinstance(topics, list)
        and len(topics) <= 4
        and all(_is_bytes(topic, 32) for topic in topics)
        and _is_bytes(value.get("address"), 20)
        and _is_bytes(value.get("data"))
        and _is_number(value.get("blockNumber"), MAX_BLOCK)
        and _is_bytes(value.get("blockHash"), 32)
        and _is_bytes(value.get("transactionHash"), 32)
    )


def _is_logs(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_log, value))


def _is_block(value: object) -> bool:
    # Null is the answer for a block that the node does not have, which is no answer here: every block that is read was
    # seen before.
    return (
        isinstance(value, Mapping)
        and _is_number(value.get("number"), MAX_BLOCK)
        and _is_number(value.get("timestamp"), MAX_TIME)
        and _is_bytes(value.get("hash"), 32)
        and (value.get("baseFeePerGas") is None or _is_number(value["baseFeePerGas"], MAX_PRICE))
    )


def _is_receipt(value: object) -> bool:
    if value is None:
        return True
    return (
        isinstance(value, Mapping)
        and _is_bytes(value.get("transactionHash"), 32)
        and _is_number(value.get("blockNumber"), MAX_BLOCK)
        and _is_bytes(value.get("blockHash"), 32)
        and _is_number(value.get("gasUsed"), 2**64)
        and _is_number(value.get("status"), 1)
        and (value.get("contractAddress") is None or _is_bytes(value["contractAddress"], 20))
        and _is_logs(value.get("logs"))
    )


def _is_transaction(value: object) -> bool:
    return value is None or (isinstance(value, Mapping) and _is_bytes(value.get("input")))


_PRICE = ("a price in wei, in hexadecimal digits", lambda value: _is_number(value, MAX_PRICE))
_EXPECTED: Mapping[str, tuple[str, Callable[[object], bool]]] = {
    "eth_chainId": ("a number in hexadecimal digits", lambda value: _is_number(value, 2**64)),
    "eth_blockNumber": ("the number of a block, in hexadecimal digits", lambda value: _is_number(value, MAX_BLOCK)),
    "eth_getTransactionCount": ("a number in hexadecimal digits", lambda value: _is_number(value, 2**64)),
    "eth_estimateGas": ("an amount of gas, in hexadecimal digits", lambda value: _is_number(value, 2**40)),
    "eth_gasPrice": _PRICE,
    "eth_maxPriorityFeePerGas": _PRICE,
    "eth_getBalance": ("a number in hexadecimal digits", _is_number),
    "eth_getCode": ("bytes in hexadecimal digits", _is_bytes),
    "eth_call": ("bytes in hexadecimal digits", _is_bytes),
    "eth_sendRawTransaction": ("the hash of a transaction", lambda value: _is_bytes(value, 32)),
    "eth_getBlockByNumber": ("a block with number, timestamp and hash", _is_block),
    "eth_getTransactionReceipt": ("a receipt, or null", _is_receipt),
    "eth_getTransactionByHash": ("a transaction, or null", _is_transaction),
    "eth_getLogs": ("a list of logs", _is_logs),
}
"""What each method that this package calls must return, in words and as a check."""
