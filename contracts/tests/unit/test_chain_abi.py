"""Bytes of the chain as values: whatever they are, decoding gives a value or one kind of error, at little memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from chain_crowd import peer, secret
from eth_abi.abi import encode
from fake_node import HASH

from swarmgame_chain.abi import MAX_DATA, MAX_RESULT, decode_call, decode_log, decode_result, encode_call, topic
from swarmgame_chain.errors import NoCoordinator
from swarmgame_chain.gateway.batcher import BYTES_TARGET
from swarmgame_chain.messages import Domain, sign_report

BOOTNODE = "/ip4/10.0.0.1/tcp/38331/p2p/Qm"


@contextmanager
def at_most(most: int) -> Iterator[None]:
    """Fail when more memory is taken, in bytes."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < most


def word(value: int) -> bytes:
    return value.to_bytes(32)


def test_bootnodes_that_are_not_text_are_no_answer() -> None:
    data = encode(["string[]"], [[BOOTNODE]])
    assert decode_result("getBootnodes", data) == (BOOTNODE,)
    with pytest.raises(NoCoordinator, match=r"getBootnodes\(\) answers"):
        decode_result("getBootnodes", data.replace(b"/ip4", b"\xff\xfe\xfd\xfc"))


def test_the_longest_results_decode_and_longer_ones_are_no_answer() -> None:
    bootnodes = ("x" * 256,) * 16
    assert decode_result("getBootnodes", encode(["string[]"], [bootnodes])) == bootnodes
    reasons = (b"1234",) * 256
    assert decode_result("submitReports", encode(["bytes4[]"], [reasons])) == reasons
    with pytest.raises(NoCoordinator):
        decode_result("getBootnodes", encode(["string[]"], [["x" * MAX_RESULT]]))


def test_the_longest_transaction_decodes_and_a_longer_one_is_no_call() -> None:
    domain = Domain(31337, "0x" + "11" * 20)
    winners = tuple(peer(n) for n in range(8))
    report = sign_report(domain, secret(9), peer=peer(9), round=1, reward=5, winners=winners)
    reports = [report.encode()] * (BYTES_TARGET // report.size())
    data = encode_call("submitReports", reports)
    found = decode_call("submitReports", data)
    assert found is not None
    assert [entry[3] for entry in found[0]] == [winners] * len(reports)
    assert decode_call("submitReports", data + bytes(MAX_DATA)) is None


def overlapping_strings(count: int, length: int) -> bytes:
    """Return a `string[]` whose entries are all the same string."""
    return word(32) + word(count) + word(32 * count) * count + word(length) + b"x" * length


def test_offsets_that_point_to_the_same_bytes_are_no_result() -> None:
    data = overlapping_strings(1_000, 32_000)
    assert len(data) < MAX_RESULT
    with at_most(1 << 20), pytest.raises(NoCoordinator):
        decode_result("getBootnodes", data)


def test_offsets_that_point_to_the_same_bytes_are_no_call_and_no_log() -> None:
    # 1,000 reports that are one report, whose 1,000 winners are one text of 32,000 bytes: 32 GB.
    fields = [word(6 * 32), word(1), word(1), word(7 * 32), word(0), word(6 * 32)]
    report = b"".join(fields) + word(0) + overlapping_strings(1_000, 32_000)[32:]
    call = encode_call("submitReports", [])[:4] + word(32) + word(1_000) + word(32_000) * 1_000 + report
    event: dict[str, Any] = {
        "topics": [topic("WinnerSubmitted"), HASH, HASH],
        "data": "0x" + (word(64) + word(96) + word(0) + overlapping_strings(1_000, 32_000)[32:]).hex(),
    }
    assert len(call) < MAX_DATA
    with at_most(1 << 20):
        assert decode_call("submitReports", call) is None
        assert decode_log(event, 0) is None
