"""The sender against a simulated node; the test sets the time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from chain_crowd import CARRIER

from swarmgame_chain.errors import ChainUnreachable, RpcError
from swarmgame_chain.gateway.sender import TransactionSender, TxOutcome, TxRequest, TxResult
from swarmgame_chain.rpc import Call
from swarmgame_chain.send_result import SendResult, classify

CONTRACT = "0x" + "11" * 20


class Node:
    """A mempool with one account: transactions by nonce, the highest fee wins, mined when the test decides."""

    def __init__(self) -> None:
        self.head, self.used, self.refusal = 10, 0, ""
        self.pool: dict[int, dict[str, Any]] = {}
        self.receipts: dict[str, dict[str, str]] = {}
        self.base, self.tip = 100, 10
        self.broken = False
        self.unanswered: set[str] = set()
        """Methods that are carried out and not answered."""

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
            taken = self._take(parameters[0])
            if method in self.unanswered:
                raise ChainUnreachable("the node does not answer: TimeoutError")
            return taken
        if method in self.unanswered:
            raise ChainUnreachable("the node answers with HTTP status 429")
        if method == "eth_getTransactionReceipt" and self.broken:
            return RpcError(-32000, "transaction indexing is in progress")
        plain = {
            "eth_getTransactionCount": hex(self.used),
            "eth_maxPriorityFeePerGas": hex(self.tip),
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
        settled += await sender.step(sender._chain.head)  # type: ignore[attr-defined]
    return settled


async def test_a_stuck_transaction_gets_a_fee_an_eighth_higher_and_any_of_its_hashes_counts() -> None:
    node = Node()
    sender, time = line(node)
    await sender.send(TxRequest(b"a", 21_000))
    first = dict(node.pool[0])
    time.now = 31
    await sender.step(node.head)
    assert node.pool[0]["fee"] >= first["fee"] * 9 // 8
    node.pool[0] = first
    node.mine(0)
    assert await sender.step(node.head) == []
    node.mine()
    assert [result.outcome for result in await sender.step(node.head)] == [TxOutcome.MINED]
    assert sender.counts.bumped == 1


async def test_the_fee_stops_at_its_cap() -> None:
    node = Node()
    sender, time = line(node, max_fee=240)
    await sender.send(TxRequest(b"a", 21_000))
    for _ in range(5):
        time.now += 31
        await sender.step(node.head)
    assert node.pool[0]["fee"] <= 240


async def test_the_tip_of_a_first_offer_has_a_cap_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    node = Node()
    node.tip = 400 * 10**9
    sender, time = line(node, max_tip=30 * 10**9)
    for _ in range(3):
        await sender.send(TxRequest(b"", 21_000))
    assert [sent["fee"] for sent in node.pool.values()] == [2 * node.base + 30 * 10**9] * 3
    assert caplog.text.count("the node proposes a tip of 400 gwei; 30 gwei are offered") == 1
    time.now = 31.0
    await sender.step(node.head)
    assert node.pool[0]["fee"] > 2 * node.base + 30 * 10**9


async def test_the_gas_of_an_hour_is_a_budget(caplog: pytest.LogCaptureFixture) -> None:
    node = Node()
    sender, time = line(node, gas_per_hour=100_000)
    await sender.send(TxRequest(b"", 60_000))
    assert sender.room
    time.now = 1_000.0
    await sender.send(TxRequest(b"", 60_000))
    assert (sender.room, sender.budget_spent) == (0, True)
    assert caplog.text.count("the gas of this hour is used up: 100000; messages wait") == 1
    time.now = 3_599.0
    assert sender.room == 0
    time.now = 3_600.0
    assert (sender.room, sender.budget_spent) == (6, False)


async def test_a_node_that_cannot_tell_a_receipt_loses_no_transaction() -> None:
    node = Node()
    sender, _ = line(node)
    await sender.send(TxRequest(b"", 21_000))
    node.mine(0)
    node.broken = True
    assert await step_times(sender, 10) == []
    node.broken = False
    node.head += 5
    assert [result.outcome for result in await sender.step(node.head)] == [TxOutcome.MINED]
    assert sender.counts.lost == 0


async def test_an_underpriced_transaction_is_replaced_until_the_node_takes_it() -> None:
    node = Node()
    node.pool[0] = {"fee": 400, "hash": "0xother"}
    sender, time = line(node)
    await sender.send(TxRequest(b"a", 21_000))
    for _ in range(12):
        time.now += 1
        await sender.step(node.head)
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
    await sender.step(node.head)
    node.receipts.clear()
    node.used = 0
    await sender.step(node.head)
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
        await sender.step(node.head)
    assert sorted(node.pool) == [0, 1]
    assert sender.counts.filled == 1


async def test_a_transaction_that_fills_a_gap_leaves_no_room_below_zero() -> None:
    node = Node()
    sender, time = line(node)
    node.used = 1
    for _ in range(8):
        await sender.send(TxRequest(b"a", 21_000))
    node.used = 0
    for _ in range(3):
        time.now += 31
        await sender.step(node.head)
    assert (sender.in_flight, sender.counts.filled, sender.room) == (9, 1, 0)


async def test_an_empty_wallet_stops_sending_until_it_can_pay() -> None:
    node = Node()
    node.refusal = "insufficient funds for gas * price + value"
    sender, time = line(node)
    await sender.send(TxRequest(b"a", 21_000))
    assert (sender.out_of_funds, sender.room) == (True, 0)
    node.refusal = ""
    time.now = 6
    await sender.step(node.head)
    assert (sender.out_of_funds, list(node.pool)) == (False, [0])


async def test_an_empty_wallet_sends_again_though_another_process_used_its_only_nonce() -> None:
    node = Node()
    node.refusal = "insufficient funds for gas * price + value"
    sender, _ = line(node)
    await sender.send(TxRequest(b"a", 21_000))
    node.used = 1
    assert [result.outcome for result in await step_times(sender, 3)] == [TxOutcome.LOST]
    assert (sender.out_of_funds, sender.room) == (False, 8)
    node.refusal = ""
    await sender.send(TxRequest(b"b", 21_000))
    assert list(node.pool) == [1]


async def test_a_fee_stays_while_the_wallet_is_empty() -> None:
    node = Node()
    node.refusal = "insufficient funds for gas * price + value"
    sender, time = line(node)
    await sender.send(TxRequest(b"a", 21_000))
    for _ in range(20):
        time.now += 31
        await sender.step(node.head)
    node.refusal = ""
    time.now += 6
    await sender.step(node.head)
    assert (node.pool[0]["fee"], sender.counts.bumped) == (2 * node.base + node.tip, 0)


@pytest.mark.parametrize("method", ["eth_getBlockByNumber", "eth_sendRawTransaction"])
@pytest.mark.parametrize("outcome", [TxOutcome.MINED, TxOutcome.LOST])
async def test_a_result_is_returned_though_the_node_fails_on_a_later_transaction(
    method: str, outcome: TxOutcome
) -> None:
    node = Node()
    sender, time = line(node, confirmations=1)
    first, second = TxRequest(b"a", 21_000), TxRequest(b"b", 21_000)
    await sender.send(first)
    await sender.send(second)
    node.mine(0)
    if outcome is TxOutcome.LOST:
        node.receipts.clear()
    node.unanswered = {method}
    for _ in range(4):
        time.now += 31
        with pytest.raises(ChainUnreachable):
            await sender.step(node.head)
    node.unanswered = set()
    assert [(result.request, result.outcome) for result in await sender.step(node.head)] == [(first, outcome)]
    node.mine(1)
    assert [result.request for result in await sender.step(node.head)] == [second], "each result is returned once"


async def test_a_transaction_that_is_not_answered_counts_as_sent_and_is_offered_again() -> None:
    node = Node()
    sender, time = line(node, gas_per_hour=50_000)
    node.unanswered = {"eth_sendRawTransaction"}
    await sender.send(TxRequest(b"a", 60_000))
    assert (sender.in_flight, sender.counts.sent, sender.budget_spent) == (1, 1, True)
    node.pool.clear()
    node.unanswered = set()
    time.now = 6
    await sender.step(node.head)
    assert list(node.pool) == [0]


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


async def test_a_call_is_on_its_way_until_it_is_mined_and_not_until_it_is_final() -> None:
    node = Node()
    sender, _ = line(node)
    await sender.send(TxRequest(b"advance", 21_000))
    assert sender.carries(b"adv", node.head)
    node.mine(0)
    assert await sender.step(node.head) == []
    assert (sender.in_flight, sender.carries(b"adv", node.head)) == (1, False)
    assert sender.carries(b"adv", node.head - 1), "that block has it not yet"
