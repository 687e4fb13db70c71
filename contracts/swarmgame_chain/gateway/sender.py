"""Transactions of one wallet under consecutive nonces: sent, replaced at a higher fee, sent again, and followed until
a reorganisation can no longer undo them.

At most eight are in flight, and one more where it fills a gap before them. A transaction that is not mined in time is
replaced under the same nonce at a fee an eighth higher, up to a cap; every hash that a nonce ever had is remembered,
since any of them may be mined. When another process has used a nonce, its messages go back into the queue; the contract
takes nothing twice. `step` returns each request once, when its outcome is final.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from swarmgame_chain.errors import ChainUnreachable, RequestTooLarge, RpcError
from swarmgame_chain.gateway.batcher import GAS_CAP, MessageBatch
from swarmgame_chain.gateway.budget import GasBudget
from swarmgame_chain.keys import Wallet
from swarmgame_chain.rpc import RpcClient, successes
from swarmgame_chain.send_result import SendResult, classify

log = logging.getLogger(__name__)
MAX_IN_FLIGHT = 8
GWEI = 10**9
DEFAULT_TIP = GWEI
"""Wei per gas, where the node proposes none."""
MAX_MISSING_RECEIPTS = 3
"""Steps in which a used nonce may lack a receipt before it counts as lost: nodes show receipts a little late."""


class TxOutcome(Enum):
    """How a request ended."""

    MINED = "mined"
    REVERTED = "reverted"
    LOST = "lost"
    """Another transaction used its nonce."""


@dataclass(eq=False)
class TxRequest:
    """A transaction to send.

    Args:
        batch: the messages that it carries; None where it ends a round or fills a gap.
        to: the contract by default.
    """

    data: bytes
    gas: int
    batch: MessageBatch | None = None
    to: str = ""


@dataclass(frozen=True, slots=True)
class TxResult:
    """A request's outcome, and the receipt where it was mined."""

    request: TxRequest
    outcome: TxOutcome
    receipt: dict[str, Any] | None = None


@dataclass(eq=False)
class PendingTx:
    """A transaction in flight.

    Args:
        raw: the newest signed bytes; `hashes` has the hash of every version.
        since: when the newest version was signed.
        offered: when it was last sent to the node.
        mined: the block of its receipt.
        missing: in how many steps its nonce was used and no receipt was there.
    """

    request: TxRequest
    nonce: int
    fee: int = 0
    tip: int = 0
    raw: bytes = b""
    hashes: list[str] = field(default_factory=list)
    since: float = 0.0
    offered: float = -math.inf
    mined: int | None = None
    missing: int = 0


@dataclass
class TxCounts:
    """Counts of transactions, for metrics."""

    sent: int = 0
    bumped: int = 0
    reorganised: int = 0
    lost: int = 0
    filled: int = 0
    gas: int = 0


class TransactionSender:
    """Sends the transactions of one wallet.

    Args:
        confirmations: blocks after which a transaction counts as final, its own included.
        bump_after: seconds after which an unmined transaction is replaced by one at a higher fee.
        max_fee: the highest fee per unit of gas, in wei.
        max_tip: the highest tip of a first offer, in wei; the node proposes one. A replacement may offer more.
        gas_per_hour: gas that transactions may use in an hour; 0 sets no limit.
        clock: monotonic seconds.
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
        max_tip: int = 30 * 10**9,
        gas_per_hour: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._chain = chain
        self._wallet = wallet
        self._chain_id = chain_id
        self._contract = contract
        self._confirmations = confirmations
        self._bump_after = bump_after
        self._max_fee = max_fee
        self._max_tip = max_tip
        self._budget = GasBudget(gas_per_hour)
        self._clock = clock
        self._next: int | None = None
        self._gap_since: float | None = None
        self._pending: list[PendingTx] = []
        self._results: list[TxResult] = []
        self._tip_capped = False
        self.sent_at = -math.inf
        """When the newest version of a transaction was signed."""
        self.out_of_funds = False
        """Whether the wallet could not pay for the last transaction."""
        self.counts = TxCounts()

    @property
    def room(self) -> int:
        """How many more may be sent now."""
        # A transaction that fills a gap may be a ninth.
        return 0 if self.out_of_funds or self.budget_spent else max(0, MAX_IN_FLIGHT - len(self._pending))

    @property
    def budget_spent(self) -> bool:
        """Whether the gas of this hour is used up."""
        return self._budget.is_spent(self._clock())

    @property
    def in_flight(self) -> int:
        return len(self._pending)

    def carries(self, data: bytes, head: int) -> bool:
        """Return whether a transaction whose data begins with this is on its way: not mined up to the block `head`."""
        return any(
            pending.request.data.startswith(data) and (pending.mined is None or pending.mined > head)
            for pending in self._pending
        )

    async def send(self, request: TxRequest) -> None:
        """Send a transaction; `step` returns its outcome.

        Raises:
            ChainUnreachable: the fee or the nonce could not be read; it was not sent.
            RpcError, RequestTooLarge: the node refuses it; it was not sent.
        """
        if self._next is None:
            self._next = int(await self._chain.request("eth_getTransactionCount", self._wallet.address, "pending"), 16)
        pending = PendingTx(request, self._next)
        pending.fee, pending.tip = await self._price()
        self._sign(pending)
        # Recorded before it is sent: when the node does not answer, the transaction may have arrived, and the nonce
        # must count as used.
        self._pending.append(pending)
        self._next += 1
        try:
            await self._offer(pending)
        except (RpcError, RequestTooLarge):
            self._pending.remove(pending)
            self._next -= 1
            raise
        except ChainUnreachable as error:
            # It may have arrived: its messages must not be sent under another nonce too. `step` offers it again.
            log.warning("whether a transaction arrived is not known, nonce %d: %s", pending.nonce, error)
        self.counts.sent += 1
        self._budget.add(request.gas, self._clock())

    async def send_first(self, calls: Sequence[bytes]) -> bool:
        """Send the first of these calls that the contract would take; return whether there is one.

        Raises:
            ChainUnreachable, RpcError, RequestTooLarge: as of `send`.
        """
        for data in calls:
            call = {"from": self._wallet.address, "to": self._contract, "data": "0x" + data.hex()}
            (gas,) = await self._chain.request_all([("eth_estimateGas", (call,))])
            if not isinstance(gas, RpcError):
                await self.send(TxRequest(data, min(int(gas, 16) * 5 // 4, GAS_CAP)))
                return True
        return False

    async def step(self, head: int) -> list[TxResult]:
        """Follow the transactions in flight; return those with a final outcome.

        Args:
            head: the number of the newest block. Nonces are read as of it; a receipt of a later block counts as mined,
                not as final.

        Raises:
            ChainUnreachable, RpcError: the next call returns what this one found.
        """
        if not self._pending:
            return []
        names = [name for pending in self._pending for name in pending.hashes]
        calls = [
            ("eth_getTransactionCount", (self._wallet.address, hex(head))),
            *(("eth_getTransactionReceipt", (name,)) for name in names),
        ]
        count, *answers = await self._chain.request_all(calls)
        used = int(successes([count])[0], 16)
        found = dict(zip(names, answers, strict=True))
        for pending in list(self._pending):
            answered = [found[name] for name in pending.hashes if name in found]
            receipt = next((each for each in answered if isinstance(each, dict)), None)
            if receipt is None and any(isinstance(each, RpcError) for each in answered):
                # Whether it is mined is not known, so it is neither missing nor reorganised.
                continue
            result = self._mined(pending, receipt, head) if receipt is not None else await self._unmined(pending, used)
            if result is not None:
                self._pending.remove(pending)
                self._results.append(result)
        if not self._pending:
            # None is left whose offer would tell whether the wallet can pay again; the next one does.
            self.out_of_funds = False
        await self._fill_gap(used)
        results, self._results = self._results, []
        return results

    def _mined(self, pending: PendingTx, receipt: dict[str, Any], head: int) -> TxResult | None:
        pending.mined, pending.missing, self.out_of_funds = int(receipt["blockNumber"], 16), 0, False
        if head - pending.mined + 1 < self._confirmations:
            return None
        self.counts.gas += int(receipt["gasUsed"], 16)
        return TxResult(
            pending.request, TxOutcome.MINED if int(receipt["status"], 16) == 1 else TxOutcome.REVERTED, receipt
        )

    async def _unmined(self, pending: PendingTx, used: int) -> TxResult | None:
        if pending.mined is not None:
            log.warning("a reorganisation removed a transaction; it is sent again: nonce %d", pending.nonce)
            pending.mined, pending.offered, pending.since = None, -math.inf, self._clock()
            self.counts.reorganised += 1
        if used > pending.nonce:
            pending.missing += 1
            if pending.missing < MAX_MISSING_RECEIPTS:
                return None
            log.warning("nonce %d was used by another transaction; its messages go back into the queue", pending.nonce)
            self.counts.lost += 1
            self._next = max(self._next or 0, used)
            return TxResult(pending.request, TxOutcome.LOST)
        pending.missing = 0
        # An empty wallet cannot pay a higher fee either.
        if not self.out_of_funds and self._clock() - pending.since >= self._bump_after:
            await self._bump(pending)
        if self._clock() - pending.offered >= min(5.0, self._bump_after):
            try:
                await self._offer(pending)
            except RpcError as error:
                log.warning("the node refuses a transaction that it accepted before: %s", error.message)
        return None

    async def _bump(self, pending: PendingTx) -> None:
        fee, tip = await self._price()
        # Nodes require a fee an eighth higher of a replacement, rounded up.
        fee, tip = max(fee, pending.fee + pending.fee // 8 + 1), max(tip, pending.tip + pending.tip // 8 + 1)
        pending.since = self._clock()
        if fee > self._max_fee:
            log.warning(
                "a transaction is not mined at the highest fee allowed, %d wei: nonce %d", pending.fee, pending.nonce
            )
            return
        pending.fee, pending.tip, pending.offered = fee, tip, -math.inf
        self._sign(pending)
        self.counts.bumped += 1

    async def _fill_gap(self, used: int) -> None:
        # No transaction of this sender has the next nonce, yet later ones wait: another process's transaction is stuck
        # there, or a reorganisation removed it.
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
        self._sign(pending)
        self._pending.insert(0, pending)
        self.counts.filled += 1
        log.warning("nonce %d is free and later ones wait for it; an empty transaction fills it", used)

    async def _offer(self, pending: PendingTx) -> None:
        pending.offered = self._clock()
        try:
            await self._chain.request("eth_sendRawTransaction", "0x" + pending.raw.hex())
        except RpcError as error:
            result = classify(error)
            if result is SendResult.REFUSED:
                raise
            if result is SendResult.UNDERPRICED:
                # A transaction with this nonce has a higher fee: the next step replaces it.
                pending.since = -math.inf
            if result is SendResult.NO_FUNDS:
                # It is offered at this fee for as long as any other, once the wallet can pay.
                pending.since = self._clock()
                if not self.out_of_funds:
                    log.error(
                        "the wallet %s cannot pay for its transactions; messages wait until it can",
                        self._wallet.address,
                    )
            self.out_of_funds = result is SendResult.NO_FUNDS
            return
        self.out_of_funds = False

    async def _price(self) -> tuple[int, int]:
        """Return the fees to offer now, in wei per gas: the maximum (twice the base fee plus the tip), and the tip."""
        block = await self._chain.request("eth_getBlockByNumber", "latest", False)
        base = int(block.get("baseFeePerGas") or "0x0", 16)
        try:
            tip = int(await self._chain.request("eth_maxPriorityFeePerGas"), 16)
        except RpcError:
            tip = DEFAULT_TIP
        if tip > self._max_tip:
            if not self._tip_capped:
                log.warning(
                    "the node proposes a tip of %.3g gwei; %.3g gwei are offered (SWARMGAME_GATEWAY_MAX_TIP_GWEI)",
                    tip / GWEI,
                    self._max_tip / GWEI,
                )
            tip = self._max_tip
            self._tip_capped = True
        return min(2 * base + tip, self._max_fee), min(tip, self._max_fee)

    def _sign(self, pending: PendingTx) -> None:
        transaction: dict[str, object] = {
            "type": 2,
            "chainId": self._chain_id,
            "nonce": pending.nonce,
            "gas": pending.request.gas,
            "maxFeePerGas": pending.fee,
            "maxPriorityFeePerGas": min(pending.tip, pending.fee),
            "value": 0,
            "to": pending.request.to or self._contract,
            "data": pending.request.data,
        }
        pending.raw, name = self._wallet.sign(transaction)
        pending.hashes.append(name)
        pending.since = self.sent_at = self._clock()
