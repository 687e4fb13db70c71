"""The sender against a simulated node; the test sets the time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from chain_crowd import CARRIER

from swarmgame_chain.errors import RpcError
from swarmgame_chain.gateway.sender import SendResult, TransactionSender, TxOutcome, TxRequest, TxResult, classify
from swarmgame_chain.rpc import Call

CONTRACT = "0x" + "11" * 20


class Node:
    """A mempool with one account: transactions by nonce, the highest fee wins, mined when the test decides."""

    def __init__(self) -> None:
        self.head, self.used, self.refusal = 10, 0, ""
        self.pool: dict[int, dict[str, Any]] = {}
        self.receipts: dict[str, dict[str, str]] = {}
        self.base = 100

    async def request(self, method: str, *parameters: Any) -> Any:
        (answer,) = await self.request_all([(method, parameters)])
        if isinstance(answer, RpcError):
            raise answer
        return answer

    async def request_all(self, calls: Sequence[Call]) -> list[Any]:
        return [self._answer(method, parameters) for method, parameters in calls]

    async def close(self) -> None:
        return

    def mine(self, *nonces: int) -> None:
        self.head += 1
        for nonce in nonces:
            name = self.pool.pop(nonce)["hash"]
            self.receipts[name] = {
                "transactionHash": name,
                "blockNumber": hex(self.head),
                "status": "0x1",
                "gasUsed": "0x5208",
            }
            self.used = max(self.used, nonce + 1)

    def _answer(self, method: str, parameters: Sequence[Any]) -> Any:
        if method == "eth_sendRawTransaction":
            return self._take(parameters[0])
        plain = {
            "eth_blockNumber": hex(self.head),
            "eth_getTransactionCount": hex(self.used),
            "eth_maxPriorityFeePerGas": "0xa",
            "eth_getBlockByNumber": {"baseFeePerGas": hex(self.base)},
        }
        return self.receipts.get(parameters[0]) if method == "eth_getTransactionReceipt" else plain[method]

    def _take(self, raw: str) -> Any:
        from eth_account.typed_transactions import TypedTransaction
        from eth_utils.crypto import keccak
        from hexbytes import HexBytes

        if self.refusal:
            return RpcError(-32000, self.refusal)
        data = bytes.fromhex(raw[2:])
        fields = TypedTransaction.from_bytes(HexBytes(data)).as_dict()
        nonce, fee, name = int(fields["nonce"]), int(fields["maxFeePerGas"]), "0x" + keccak(data).hex()
        if nonce < self.used:
            return RpcError(-32003, "nonce too low")
        rival = self.pool.get(nonce)
        if rival and rival["hash"] == name:
            return RpcError(-32003, "already known")
        if rival and fee < rival["fee"] * 11 // 10:
            return RpcError(-32003, "replacement transaction underpriced")
        self.pool[nonce] = {"fee": fee, "hash": name}
        return name


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def line(node: Node, **options: Any) -> tuple[TransactionSender, Time]:
    time = Time()
    return TransactionSender(
        node, CARRIER, 31337, CONTRACT, clock=time, **({"confirmations": 2, "bump_after": 30.0} | options)
    ), time


async def step_times(sender: TransactionSender, times: int) -> list[TxResult]:
    settled: list[TxResult] = []
    for _ in range(times):
        settled += await sender.step()
    return settled


async def test_a_stuck_transaction_gets_a_fee_an_eighth_higher_and_any_of_its_hashes_counts() -> None:
    node = Node()
    sender, time = line(node)
    await sender.send(TxRequest(b"a", 21_000))
    first = dict(node.pool[0])
    time.now = 31
    await sender.step()
    assert node.pool[0]["fee"] >= first["fee"] * 9 // 8
    node.pool[0] = first
    node.mine(0)
    assert await sender.step() == []
    node.mine()
    assert [result.outcome for result in await sender.step()] == [TxOutcome.MINED]
    assert sender.counts.bumped == 1


async def test_the_fee_stops_at_its_cap() -> None:
    node = Node()
    sender, time = line(node, max_fee=240)
    await sender.send(TxRequest(b"a", 21_000))
    for _ in range(5):
        time.now += 31
        await sender.step()
    assert node.pool[0]["fee"] <= 240


async def test_an_underpriced_transaction_is_replaced_until_the_node_takes_it() -> None:
    node = Node()
    node.pool[0] = {"fee": 400, "hash": "0xother"}
    sender, time = line(node)
    await sender.send(TxRequest(b"a", 21_000))
    for _ in range(12):
        time.now += 1
        await sender.step()
    assert node.pool[0]["hash"] != "0xother"


async def test_a_nonce_that_another_process_used_gives_the_request_back() -> None:
    node = Node()
    sender, _ = line(node)
    await sender.send(TxRequest(b"a", 21_000))
    node.pool[0] = {"fee": 999, "hash": "0xother"}
    node.mine(0)
    assert [result.outcome for result in await step_times(sender, 3)] == [TxOutcome.LOST]
    await sender.send(TxRequest(b"b", 21_000))
    assert list(node.pool) == [1]


async def test_a_receipt_that_is_gone_is_a_reorganisation_and_the_same_bytes_are_sent_again() -> None:
    node = Node()
    sender, _ = line(node, confirmations=5)
    await sender.send(TxRequest(b"a", 21_000))
    name = node.pool[0]["hash"]
    node.mine(0)
    await sender.step()
    node.receipts.clear()
    node.used = 0
    await sender.step()
    assert node.pool[0]["hash"] == name
    assert sender.counts.reorganised == 1


async def test_a_gap_below_what_waits_is_filled() -> None:
    node = Node()
    sender, time = line(node)
    node.used = 1
    await sender.send(TxRequest(b"a", 21_000))
    node.used = 0
    for _ in range(3):
        time.now += 31
        await sender.step()
    assert sorted(node.pool) == [0, 1]
    assert sender.counts.filled == 1


async def test_an_empty_wallet_stops_sending_until_it_can_pay() -> None:
    node = Node()
    node.refusal = "insufficient funds for gas * price + value"
    sender, time = line(node)
    await sender.send(TxRequest(b"a", 21_000))
    assert (sender.out_of_funds, sender.room) == (True, 0)
    node.refusal = ""
    time.now = 6
    await sender.step()
    assert (sender.out_of_funds, list(node.pool)) == (False, [0])


async def test_a_refused_transaction_uses_no_nonce() -> None:
    node = Node()
    node.refusal = "intrinsic gas too high"
    sender, _ = line(node)
    with pytest.raises(RpcError):
        await sender.send(TxRequest(b"a", 21_000))
    node.refusal = ""
    await sender.send(TxRequest(b"b", 21_000))
    assert list(node.pool) == [0]


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("already known", SendResult.KNOWN),
        ("transaction already imported", SendResult.KNOWN),
        ("Nonce too low: next nonce 5", SendResult.NONCE_USED),
        ("replacement transaction underpriced", SendResult.UNDERPRICED),
        ("max fee per gas less than block base fee", SendResult.UNDERPRICED),
        ("insufficient funds for gas * price + value", SendResult.NO_FUNDS),
        ("exceeds block gas limit", SendResult.REFUSED),
    ],
)
def test_a_refusal_is_classified_by_its_text(text: str, result: SendResult) -> None:
    assert classify(RpcError(-32000, text)) is result
