"""What a node may answer to each method, and what an answer of another form is."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from fake_node import BLOCK, HASH

from swarmgame_chain.answers import check_answer, check_batch, result_of
from swarmgame_chain.errors import ChainUnreachable, RequestTooLarge

LOG = {
    "address": "0x" + "11" * 20,
    "topics": [HASH],
    "data": "0x",
    "blockNumber": "0x1",
    "blockHash": HASH,
    "transactionHash": HASH,
}
RECEIPT = {
    "transactionHash": HASH,
    "blockNumber": "0x1",
    "blockHash": HASH,
    "gasUsed": "0x5208",
    "status": "0x1",
    "contractAddress": None,
    "logs": [LOG],
}
GOOD: dict[str, list[Any]] = {
    "eth_chainId": ["0x1", "0x7a69"],
    "eth_blockNumber": ["0x0"],
    "eth_getTransactionCount": ["0x0"],
    "eth_estimateGas": ["0x5208"],
    "eth_gasPrice": ["0x0"],
    "eth_maxPriorityFeePerGas": ["0x3b9aca00"],
    "eth_getBalance": ["0x" + "f" * 64],
    "eth_getCode": ["0x", "0x60"],
    "eth_call": ["0x", "0x" + "00" * 320],
    "eth_sendRawTransaction": [HASH],
    "eth_getBlockByNumber": [BLOCK, {**BLOCK, "baseFeePerGas": None}],
    "eth_getTransactionReceipt": [None, RECEIPT, {**RECEIPT, "contractAddress": "0x" + "11" * 20}],
    "eth_getTransactionByHash": [None, {"input": "0x00"}],
    "eth_getLogs": [[], [LOG]],
}
BAD = (
    None,
    True,
    1,
    1.5,
    "",
    "0",
    "0x",
    "0xg",
    "latest",
    [],
    {},
    ["0x1"],
    "0x" + "f" * 65,
    "0x 1",
    "-0x1",
    [None],
    [[]],
)


@pytest.mark.parametrize("method", GOOD)
def test_only_answers_of_the_methods_form_pass(method: str) -> None:
    for result in GOOD[method]:
        response = {"jsonrpc": "2.0", "id": 1, "result": result}
        check_answer("node", method, response)
        assert result_of(response) == result
    for result in (each for each in BAD if each not in GOOD[method]):
        with pytest.raises(ChainUnreachable, match=f"node answers {method} with .*; expected"):
            check_answer("node", method, {"result": result})


@pytest.mark.parametrize(
    ("method", "result"),
    [
        ("eth_blockNumber", hex(2**53 + 1)),
        ("eth_maxPriorityFeePerGas", hex(2**200)),
        ("eth_estimateGas", hex(2**63)),
        ("eth_chainId", hex(2**65)),
        *[("eth_getBlockByNumber", {**BLOCK, **change}) for change in ({"number": None}, {"timestamp": hex(2**60)})],
        *[("eth_getBlockByNumber", {**BLOCK, **change}) for change in ({"hash": "0x1"}, {"baseFeePerGas": 7})],
        *[
            ("eth_getTransactionReceipt", {key: RECEIPT[key] for key in RECEIPT if key != gone})
            for gone in RECEIPT
            if gone != "contractAddress"
        ],
        *[("eth_getLogs", [{key: LOG[key] for key in LOG if key != gone}]) for gone in LOG],
        ("eth_getLogs", [{**LOG, "topics": [HASH] * 5}]),
        ("eth_getLogs", [{**LOG, "topics": HASH}]),
        ("eth_getTransactionReceipt", {**RECEIPT, "status": "0x2"}),
        ("eth_getTransactionReceipt", {**RECEIPT, "logs": [{}]}),
        ("eth_call", "0x123"),
        ("eth_call", "0x1 "),
        ("eth_sendRawTransaction", "0x1234"),
    ],
)
def test_absurd_numbers_and_missing_fields_are_no_answers(method: str, result: Any) -> None:
    with pytest.raises(ChainUnreachable):
        check_answer("node", method, {"result": result})


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        ({"code": 3, "message": "execution reverted"}, 3, "execution reverted"),
        ({"code": "-32000", "message": "nonce too low"}, -32000, "nonce too low"),
        ({"message": None}, 0, "null"),
        ({"code": True, "message": {"a": 1}}, 0, "an object"),
        ({"code": 10**30, "message": "x" * 10_000}, 0, "x" * 300),
        ({"code": -1, "message": "line\nbreak\x1b[31m"}, -1, "line break [31m"),
        ("sorry", 0, "sorry"),
        (["sorry"], 0, "a list of 1"),
    ],
)
def test_an_error_of_any_form_is_an_error_with_short_printable_text(error: Any, code: int, message: str) -> None:
    response = {"error": error}
    check_answer("node", "eth_call", response)
    found = result_of(response)
    assert (found.code, found.message, found.data) == (code, message, b"")


@pytest.mark.parametrize("data", ["0x123", "xx", 5, None, {"data": None}, {"data": "0xzz"}, [], "0x12 34"])
def test_an_errors_data_that_is_no_bytes_is_left_out(data: Any) -> None:
    assert result_of({"error": {"code": 3, "message": "reverted", "data": data}}).data == b""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"code": 429, "message": "slow down"}, "limits requests"),
        ({"code": -32005, "message": "daily request count exceeded, request rate limited"}, "limits requests"),
        ({"code": -32097, "message": "Rate limit exceeded"}, "limits requests"),
        ({"code": -32000, "message": "Your app has exceeded its compute units per second capacity"}, "limits requests"),
        (
            {"code": -32001, "message": "Unauthorized: you must authenticate your request with an API key"},
            "refuses access",
        ),
        ("project id does not have access", "refuses access"),
    ],
)
def test_an_error_about_the_client_says_nothing_about_the_call(error: Any, expected: str) -> None:
    with pytest.raises(ChainUnreachable, match=expected):
        check_answer("node", "eth_call", {"error": error})


@pytest.mark.parametrize("text", ["Unauthorized", "authentication failed", "the quota is used up"])
def test_a_contracts_text_for_a_revert_is_not_taken_for_the_nodes(text: str) -> None:
    message = f"execution reverted: {text}"
    check_answer("node", "eth_call", {"error": {"code": 3, "message": message, "data": "0x08c379a0"}})
    with pytest.raises(ChainUnreachable):
        check_answer("node", "eth_call", {"error": {"code": 3, "message": message}})


def test_the_check_of_long_bytes_takes_no_memory() -> None:
    response = {"result": "0x" + "ab" * 500_000}
    tracemalloc.start()
    try:
        check_answer("node", "eth_call", response)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 50_000


def test_a_batch_has_one_answer_for_each_call() -> None:
    answers = [{"id": n, "result": "0x1"} for n in (4, 5)]
    check_batch("node", ["eth_chainId", "eth_blockNumber"], answers)
    for wrong in (answers[:1], [*answers, answers[1]], [answers[0], {"id": 6, "result": "0x1"}], [], [None, None]):
        with pytest.raises(RequestTooLarge):
            check_batch("node", ["eth_chainId", "eth_blockNumber"], wrong)
    with pytest.raises(ChainUnreachable, match="answers eth_blockNumber with null"):
        check_batch("node", ["eth_chainId", "eth_blockNumber"], [answers[0], {"id": 5, "result": None}])
