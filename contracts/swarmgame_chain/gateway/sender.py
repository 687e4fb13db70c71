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

from swarmgame_chain.backends import Chain
from swarmgame_chain.deploy import fees
from swarmgame_chain.errors import RpcError
from swarmgame_chain.gateway.batcher import Batch
from swarmgame_chain.keys import Wallet

log = logging.getLogger(__name__)
MAX_IN_FLIGHT = 8
PATIENCE = 3
"""Looks at a used nonce without a receipt before it counts as somebody else's: nodes show receipts a little late."""


class Answer(Enum):
    """What a node means by refusing a transaction."""

    KNOWN = "known"
    NONCE_USED = "nonce used"
    UNDERPRICED = "underpriced"
    NO_FUNDS = "no funds"
    REFUSED = "refused"


class Fate(Enum):
    """How a job ended."""

    MINED = "mined"
    REVERTED = "reverted"
    LOST = "lost"
    """Another transaction has its nonce."""


@dataclass(eq=False)
class Job:
    """What a transaction is to do: calldata, gas, and what it carries (None for the round's end and for filling a gap)."""

    data: bytes
    gas: int
    batch: Batch | None = None
    to: str = ""


@dataclass(frozen=True, slots=True)
class Settled:
    """A job's fate, and the receipt where it was mined."""

    job: Job
    fate: Fate
    receipt: dict[str, Any] | None = None


@dataclass(eq=False)
class _Flight:
    job: Job
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
class Counts:
    """What happened to transactions, for metrics."""

    sent: int = 0
    bumped: int = 0
    reorganised: int = 0
    lost: int = 0
    filled: int = 0
    gas: int = 0


def classify(error: RpcError) -> Answer:
    """What a node's refusal means; nodes agree on the words, not on the codes."""
    words = error.message.lower()
    if "already known" in words or "already imported" in words or "known transaction" in words:
        return Answer.KNOWN
    if "nonce too low" in words or "nonce is too low" in words or "nonce has already been used" in words:
        return Answer.NONCE_USED
    if "underpriced" in words or "less than block base fee" in words or "fee too low" in words or "fee cap" in words:
        return Answer.UNDERPRICED
    if "insufficient funds" in words or "insufficient balance" in words:
        return Answer.NO_FUNDS
    return Answer.REFUSED


class Sender:
    """The nonce line of one wallet.

    Args:
        confirmations: blocks after which a transaction counts as final, its own included.
        bump_after: seconds after which an unmined transaction is replaced by a dearer one.
        max_fee: the most that is offered for a unit of gas, in wei.
        clock: seconds, growing.
    """

    def __init__(
        self,
        chain: Chain,
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
        self._flights: list[_Flight] = []
        self.broke = False
        """Whether the wallet could not pay for the last transaction."""
        self.counts = Counts()

    @property
    def room(self) -> int:
        """How many more may go out now."""
        return 0 if self.broke else MAX_IN_FLIGHT - len(self._flights)

    @property
    def in_flight(self) -> int:
        return len(self._flights)

    def carries(self, name: str) -> bool:
        """Whether a call of this data is in flight already."""
        return any(flight.job.data.startswith(bytes.fromhex(name)) for flight in self._flights)

    async def send(self, job: Job) -> None:
        """Sends a job; from here on it comes out of `step`.

        Raises:
            ChainUnreachable: the fee or the nonce could not be read; the job was not taken.
            RpcError: the node refuses it for good; the job was not taken.
        """
        if self._next is None:
            self._next = int(await self._chain.ask("eth_getTransactionCount", self._wallet.address, "pending"), 16)
        flight = _Flight(job, self._next)
        flight.fee, flight.tip = await self._price()
        self._seal(flight)
        # Before the first word to the node: whether it arrived is unknown if no answer comes, and then the nonce must
        # count as used.
        self._flights.append(flight)
        self._next += 1
        try:
            await self._offer(flight)
        except RpcError:
            self._flights.remove(flight)
            self._next -= 1
            raise
        self.counts.sent += 1

    async def step(self) -> list[Settled]:
        """Looks after what is in flight; returns what is settled.

        Raises:
            ChainUnreachable: nothing changed.
        """
        if not self._flights:
            return []
        questions = [("eth_getTransactionReceipt", (name,)) for flight in self._flights for name in flight.hashes]
        asked = [("eth_blockNumber", ()), ("eth_getTransactionCount", (self._wallet.address, "latest")), *questions]
        answers = await self._chain.ask_all(asked)
        if isinstance(answers[0], RpcError) or isinstance(answers[1], RpcError):
            return []
        head, used = int(answers[0], 16), int(answers[1], 16)
        receipts = {answer["transactionHash"]: answer for answer in answers[2:] if isinstance(answer, dict)}
        settled: list[Settled] = []
        for flight in list(self._flights):
            receipt = next((receipts[name] for name in flight.hashes if name in receipts), None)
            outcome = self._mined(flight, receipt, head) if receipt is not None else await self._unmined(flight, used)
            if outcome is not None:
                self._flights.remove(flight)
                settled.append(outcome)
        await self._fill_gap(used)
        return settled

    def _mined(self, flight: _Flight, receipt: dict[str, Any], head: int) -> Settled | None:
        flight.mined, flight.doubts, self.broke = int(receipt["blockNumber"], 16), 0, False
        if head - flight.mined + 1 < self._confirmations:
            return None
        self.counts.gas += int(receipt["gasUsed"], 16)
        return Settled(flight.job, Fate.MINED if int(receipt["status"], 16) == 1 else Fate.REVERTED, receipt)

    async def _unmined(self, flight: _Flight, used: int) -> Settled | None:
        if flight.mined is not None:
            log.warning("a reorganisation took a transaction back; the same bytes go out again: nonce %d", flight.nonce)
            flight.mined, flight.offered, flight.since = None, -math.inf, self._clock()
            self.counts.reorganised += 1
        if used > flight.nonce:
            flight.doubts += 1
            if flight.doubts < PATIENCE:
                return None
            log.warning("nonce %d was used by another transaction; its messages go back into the line", flight.nonce)
            self.counts.lost += 1
            self._next = max(self._next or 0, used)
            return Settled(flight.job, Fate.LOST)
        flight.doubts = 0
        if self._clock() - flight.since >= self._bump_after:
            await self._bump(flight)
        if self._clock() - flight.offered >= min(5.0, self._bump_after):
            try:
                await self._offer(flight)
            except RpcError as error:
                log.warning("the node refuses a transaction that it took before: %s", error.message)
        return None

    async def _bump(self, flight: _Flight) -> None:
        fee, tip = await self._price()
        # An eighth more is what nodes ask of a replacement, rounded up.
        fee, tip = max(fee, flight.fee + flight.fee // 8 + 1), max(tip, flight.tip + flight.tip // 8 + 1)
        flight.since = self._clock()
        if fee > self._max_fee:
            log.warning(
                "a transaction is not mined at the highest fee allowed, %d wei: nonce %d", flight.fee, flight.nonce
            )
            return
        flight.fee, flight.tip, flight.offered = fee, tip, -math.inf
        self._seal(flight)
        self.counts.bumped += 1

    async def _fill_gap(self, used: int) -> None:
        # Nothing of ours has the next nonce, yet later ones wait: another process's transaction is stuck there, or was
        # reorganised away.
        waiting = [flight.nonce for flight in self._flights if flight.mined is None]
        if not waiting or used in waiting or min(waiting) < used:
            self._gap_since = None
            return
        self._gap_since = self._gap_since or self._clock()
        if self._clock() - self._gap_since < self._bump_after:
            return
        flight = _Flight(Job(b"", 21_000, to=self._wallet.address), used)
        flight.fee, flight.tip = await self._price()
        flight.fee, flight.tip = min(2 * flight.fee, self._max_fee), min(2 * flight.tip, self._max_fee)
        self._seal(flight)
        self._flights.insert(0, flight)
        self.counts.filled += 1
        log.warning("nonce %d is free and later ones wait for it; an empty transaction fills it", used)

    async def _offer(self, flight: _Flight) -> None:
        flight.offered = self._clock()
        try:
            await self._chain.ask("eth_sendRawTransaction", "0x" + flight.raw.hex())
        except RpcError as error:
            answer = classify(error)
            if answer is Answer.REFUSED:
                raise
            if answer is Answer.UNDERPRICED:
                # Ours or another process's transaction has this nonce for more: the next look makes it dearer.
                flight.since = -math.inf
            if answer is Answer.NO_FUNDS and not self.broke:
                log.error(
                    "the wallet %s cannot pay for its transactions; messages wait until it can", self._wallet.address
                )
            self.broke = answer is Answer.NO_FUNDS
            return
        self.broke = False

    async def _price(self) -> tuple[int, int]:
        fee, tip = await fees(self._chain)
        return min(fee, self._max_fee), min(tip, self._max_fee)

    def _seal(self, flight: _Flight) -> None:
        transaction: dict[str, object] = {
            "type": 2,
            "chainId": self._chain_id,
            "nonce": flight.nonce,
            "gas": flight.job.gas,
            "maxFeePerGas": flight.fee,
            "maxPriorityFeePerGas": min(flight.tip, flight.fee),
            "value": 0,
            "to": flight.job.to or self._contract,
            "data": flight.job.data,
        }
        flight.raw, name = self._wallet.sign(transaction)
        flight.hashes.append(name)
        flight.since = self._clock()
