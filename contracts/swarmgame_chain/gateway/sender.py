"""One nonce line: transactions go out, are bumped, re-sent and followed until a reorganisation can no longer take them
back.

At most eight are in flight. One that is not mined in time is replaced under the same nonce, an eighth dearer, up to a
cap; every hash that a nonce ever had is remembered, for any of them may be the one that is mined. A nonce that somebody
else has used is given up and its messages go back into the line: the contract takes nothing twice. Invariant: a job
comes out of `step` once, and only when its fate is settled.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from swarmgame_chain.deploy import fees
from swarmgame_chain.errors import RpcError
from swarmgame_chain.gateway.batcher import MessageBatch
from swarmgame_chain.keys import Wallet
from swarmgame_chain.rpc import RpcClient

log = logging.getLogger(__name__)
MAX_IN_FLIGHT = 8
PATIENCE = 3
"""Looks at a used nonce without a receipt before it counts as somebody else's: nodes show receipts a little late."""


class SendResult(Enum):
    """What a node means by refusing a transaction."""

    KNOWN = "known"
    NONCE_USED = "nonce used"
    UNDERPRICED = "underpriced"
    NO_FUNDS = "no funds"
    REFUSED = "refused"


class TxOutcome(Enum):
    """How a job ended."""

    MINED = "mined"
    REVERTED = "reverted"
    LOST = "lost"
    """Another transaction has its nonce."""


@dataclass(eq=False)
class TxRequest:
    """What a transaction is to do: calldata, gas, and what it carries (None for the round's end and for filling a gap)."""

    data: bytes
    gas: int
    batch: MessageBatch | None = None
    to: str = ""


@dataclass(frozen=True, slots=True)
class TxResult:
    """A job's fate, and the receipt where it was mined."""

    job: TxRequest
    outcome: TxOutcome
    receipt: dict[str, Any] | None = None


@dataclass(eq=False)
class PendingTx:
    job: TxRequest
    nonce: int
    fee: int = 0
    tip: int = 0
    raw: bytes = b""
    hashes: list[str] = field(default_factory=list)
    since: float = 0.0
    offered: float = -math.inf
    mined: int | None = None
    doubts: int = 0


@dataclass
class TxCounts:
    """What happened to transactions, for metrics."""

    sent: int = 0
    bumped: int = 0
    reorganised: int = 0
    lost: int = 0
    filled: int = 0
    gas: int = 0


def classify(error: RpcError) -> SendResult:
    """What a node's refusal means; nodes agree on the words, not on the codes."""
    words = error.message.lower()
    if "already known" in words or "already imported" in words or "known transaction" in words:
        return SendResult.KNOWN
    if "nonce too low" in words or "nonce is too low" in words or "nonce has already been used" in words:
        return SendResult.NONCE_USED
    if "underpriced" in words or "less than block base fee" in words or "fee too low" in words or "fee cap" in words:
        return SendResult.UNDERPRICED
    if "insufficient funds" in words or "insufficient balance" in words:
        return SendResult.NO_FUNDS
    return SendResult.REFUSED


class TransactionSender:
    """The nonce line of one wallet.

    Args:
        confirmations: blocks after which a transaction counts as final, its own included.
        bump_after: seconds after which an unmined transaction is replaced by a dearer one.
        max_fee: the most that is offered for a unit of gas, in wei.
        clock: seconds, growing.
    """

    def __init__(
        self,
        chain: RpcClient,
        wallet: Wallet,
        chain_id: int,
        contract: str,
        *,
        confirmations: int = 2,
        bump_after: float = 30.0,
        max_fee: int = 500 * 10**9,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._chain = chain
        self._wallet = wallet
        self._chain_id = chain_id
        self._contract = contract
        self._confirmations = confirmations
        self._bump_after = bump_after
        self._max_fee = max_fee
        self._clock = clock
        self._next: int | None = None
        self._gap_since: float | None = None
        self._pending: list[PendingTx] = []
        self.out_of_funds = False
        """Whether the wallet could not pay for the last transaction."""
        self.counts = TxCounts()

    @property
    def room(self) -> int:
        """How many more may go out now."""
        return 0 if self.out_of_funds else MAX_IN_FLIGHT - len(self._pending)

    @property
    def in_flight(self) -> int:
        return len(self._pending)

    def carries(self, name: str) -> bool:
        """Whether a call of this data is in flight already."""
        return any(pending.job.data.startswith(bytes.fromhex(name)) for pending in self._pending)

    async def send(self, job: TxRequest) -> None:
        """Sends a job; from here on it comes out of `step`.

        Raises:
            ChainUnreachable: the fee or the nonce could not be read; the job was not taken.
            RpcError: the node refuses it for good; the job was not taken.
        """
        if self._next is None:
            self._next = int(await self._chain.request("eth_getTransactionCount", self._wallet.address, "pending"), 16)
        pending = PendingTx(job, self._next)
        pending.fee, pending.tip = await self._price()
        self._seal(pending)
        # Before the first word to the node: whether it arrived is unknown if no answer comes, and then the nonce must
        # count as used.
        self._pending.append(pending)
        self._next += 1
        try:
            await self._offer(pending)
        except RpcError:
            self._pending.remove(pending)
            self._next -= 1
            raise
        self.counts.sent += 1

    async def step(self) -> list[TxResult]:
        """Looks after what is in flight; returns what is settled.

        Raises:
            ChainUnreachable: nothing changed.
        """
        if not self._pending:
            return []
        questions = [("eth_getTransactionReceipt", (name,)) for pending in self._pending for name in pending.hashes]
        asked = [("eth_blockNumber", ()), ("eth_getTransactionCount", (self._wallet.address, "latest")), *questions]
        answers = await self._chain.request_all(asked)
        if isinstance(answers[0], RpcError) or isinstance(answers[1], RpcError):
            return []
        head, used = int(answers[0], 16), int(answers[1], 16)
        receipts = {answer["transactionHash"]: answer for answer in answers[2:] if isinstance(answer, dict)}
        settled: list[TxResult] = []
        for pending in list(self._pending):
            receipt = next((receipts[name] for name in pending.hashes if name in receipts), None)
            outcome = self._mined(pending, receipt, head) if receipt is not None else await self._unmined(pending, used)
            if outcome is not None:
                self._pending.remove(pending)
                settled.append(outcome)
        await self._fill_gap(used)
        return settled

    def _mined(self, pending: PendingTx, receipt: dict[str, Any], head: int) -> TxResult | None:
        pending.mined, pending.doubts, self.out_of_funds = int(receipt["blockNumber"], 16), 0, False
        if head - pending.mined + 1 < self._confirmations:
            return None
        self.counts.gas += int(receipt["gasUsed"], 16)
        return TxResult(
            pending.job, TxOutcome.MINED if int(receipt["status"], 16) == 1 else TxOutcome.REVERTED, receipt
        )

    async def _unmined(self, pending: PendingTx, used: int) -> TxResult | None:
        if pending.mined is not None:
            log.warning(
                "a reorganisation took a transaction back; the same bytes go out again: nonce %d", pending.nonce
            )
            pending.mined, pending.offered, pending.since = None, -math.inf, self._clock()
            self.counts.reorganised += 1
        if used > pending.nonce:
            pending.doubts += 1
            if pending.doubts < PATIENCE:
                return None
            log.warning("nonce %d was used by another transaction; its messages go back into the line", pending.nonce)
            self.counts.lost += 1
            self._next = max(self._next or 0, used)
            return TxResult(pending.job, TxOutcome.LOST)
        pending.doubts = 0
        if self._clock() - pending.since >= self._bump_after:
            await self._bump(pending)
        if self._clock() - pending.offered >= min(5.0, self._bump_after):
            try:
                await self._offer(pending)
            except RpcError as error:
                log.warning("the node refuses a transaction that it took before: %s", error.message)
        return None

    async def _bump(self, pending: PendingTx) -> None:
        fee, tip = await self._price()
        # An eighth more is what nodes ask of a replacement, rounded up.
        fee, tip = max(fee, pending.fee + pending.fee // 8 + 1), max(tip, pending.tip + pending.tip // 8 + 1)
        pending.since = self._clock()
        if fee > self._max_fee:
            log.warning(
                "a transaction is not mined at the highest fee allowed, %d wei: nonce %d", pending.fee, pending.nonce
            )
            return
        pending.fee, pending.tip, pending.offered = fee, tip, -math.inf
        self._seal(pending)
        self.counts.bumped += 1

    async def _fill_gap(self, used: int) -> None:
        # Nothing of ours has the next nonce, yet later ones wait: another process's transaction is stuck there, or was
        # reorganised away.
        waiting = [pending.nonce for pending in self._pending if pending.mined is None]
        if not waiting or used in waiting or min(waiting) < used:
            self._gap_since = None
            return
        self._gap_since = self._gap_since or self._clock()
        if self._clock() - self._gap_since < self._bump_after:
            return
        pending = PendingTx(TxRequest(b"", 21_000, to=self._wallet.address), used)
        pending.fee, pending.tip = await self._price()
        pending.fee, pending.tip = min(2 * pending.fee, self._max_fee), min(2 * pending.tip, self._max_fee)
        self._seal(pending)
        self._pending.insert(0, pending)
        self.counts.filled += 1
        log.warning("nonce %d is free and later ones wait for it; an empty transaction fills it", used)

    async def _offer(self, pending: PendingTx) -> None:
        pending.offered = self._clock()
        try:
            await self._chain.request("eth_sendRawTransaction", "0x" + pending.raw.hex())
        except RpcError as error:
            answer = classify(error)
            if answer is SendResult.REFUSED:
                raise
            if answer is SendResult.UNDERPRICED:
                # Ours or another process's transaction has this nonce for more: the next look makes it dearer.
                pending.since = -math.inf
            if answer is SendResult.NO_FUNDS and not self.out_of_funds:
                log.error(
                    "the wallet %s cannot pay for its transactions; messages wait until it can", self._wallet.address
                )
            self.out_of_funds = answer is SendResult.NO_FUNDS
            return
        self.out_of_funds = False

    async def _price(self) -> tuple[int, int]:
        fee, tip = await fees(self._chain)
        return min(fee, self._max_fee), min(tip, self._max_fee)

    def _seal(self, pending: PendingTx) -> None:
        transaction: dict[str, object] = {
            "type": 2,
            "chainId": self._chain_id,
            "nonce": pending.nonce,
            "gas": pending.job.gas,
            "maxFeePerGas": pending.fee,
            "maxPriorityFeePerGas": min(pending.tip, pending.fee),
            "value": 0,
            "to": pending.job.to or self._contract,
            "data": pending.job.data,
        }
        pending.raw, name = self._wallet.sign(transaction)
        pending.hashes.append(name)
        pending.since = self._clock()
