"""The gateway's loop: take messages in, judge them by the chain, send them, follow them, end rounds.

One task. A node that is away stops nothing but itself: messages wait, and when it answers again, it is first asked
whether it is still the same chain. Invariant: a message leaves the queue by `finish` alone, and is final only when the
contract's settled state says so.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from swarmgame_chain.abi import encode_call
from swarmgame_chain.errors import BadMessage, ChainUnreachable, RpcError
from swarmgame_chain.gateway.admission import Admission
from swarmgame_chain.gateway.batcher import simulate
from swarmgame_chain.gateway.decisions import Action, ChainState, decide
from swarmgame_chain.gateway.outcomes import Outcomes
from swarmgame_chain.gateway.queue import MessageQueue, MessageState, QueuedMessage
from swarmgame_chain.gateway.round_advancer import EVENTS, RoundAdvancer
from swarmgame_chain.gateway.sender import TransactionSender, TxOutcome, TxRequest, TxResult
from swarmgame_chain.keys import Wallet
from swarmgame_chain.messages import Domain, Report, SignedMessage
from swarmgame_chain.reader import Coordinator, EventCursor, PeerState, RoundClock, SwarmConfig
from swarmgame_chain.rpc import RpcClient
from swarmgame_chain.wire import Kind

log = logging.getLogger(__name__)
KINDS: tuple[Kind, ...] = ("registrations", "reports", "commits")
"""In the order in which they are sent: the contract keeps one seal a peer, so a report is opened before the next one is
sealed.
"""
TICK = "updateStageAndRound"
REVERTED = 3
"""What nodes call a call that reverted."""
MOST_COUNTED = 100_000
"""Registered peers that are counted; more are as many."""
TRIES = 3
"""Transactions that may fail to take a message, though nothing speaks against it, before it is rejected."""


class GatewayProblem(StrEnum):
    """What is in the way, for `/status`. A chain that is another one is not among them: it ends the process."""

    RPC_UNAVAILABLE = "RPCUnavailable"
    INSUFFICIENT_FUNDS = "InsufficientFunds"
    TRANSACTION_REVERTED = "TransactionReverted"


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """How a gateway works. Seconds, blocks, counts, wei."""

    confirmations: int = 2
    interval: float = 0.25
    """Between two looks at the chain while something is on its way; messages that come together within it share a
    transaction.
    """
    bump_after: float = 30.0
    max_fee: int = 500 * 10**9
    capacity: int = 10_000
    registrations_per_minute: int = 2_000
    """Registrations taken in; each costs gas, and anyone can make keys."""
    quorum: float = 0.67
    ticks: bool = True
    """Whether it ends rounds; its wallet then needs the stage manager's role to do so before their deadline."""


class Gateway:
    """A gateway to one contract.

    Args:
        chain: the node.
        domain: the chain and the contract that it must be.
        wallet: the funded key.
    """

    def __init__(self, chain: RpcClient, domain: Domain, wallet: Wallet, config: GatewayConfig | None = None) -> None:
        self.config = config or GatewayConfig()
        self.coordinator = Coordinator(chain, domain)
        self.queue = MessageQueue(self.config.capacity)
        self.sender = TransactionSender(
            chain,
            wallet,
            domain.chain_id,
            domain.contract,
            confirmations=self.config.confirmations,
            bump_after=self.config.bump_after,
            max_fee=self.config.max_fee,
        )
        self.wallet = wallet
        self.advancer = RoundAdvancer(self.config.quorum)
        self.swarm: SwarmConfig | None = None
        self.clock: RoundClock | None = None
        self.problem = "not started"
        """Why it is not ready; empty when it is."""
        self.chain = chain
        self.domain = domain
        self._problem_kind = GatewayProblem.RPC_UNAVAILABLE
        self._reverted = ""
        self._proven: set[str] = set()
        self._cursor = EventCursor(self.coordinator, names=EVENTS)
        self._ticked = -math.inf
        self._admission = Admission(self.coordinator, self.queue, self.config.registrations_per_minute)
        self._outcomes = Outcomes(self.coordinator)
        self._awake = asyncio.Event()

    @property
    def ready(self) -> bool:
        return not self.problem

    def status(self) -> dict[str, Any]:
        """What a person, or a metric, wants to know."""
        now, swarm = self.clock, self.swarm
        return {
            "ready": self.ready,
            "problem": self.problem,
            "chainId": self.domain.chain_id,
            "contract": self.domain.contract,
            "wallet": self.wallet.address,
            "walletEmpty": self.sender.out_of_funds,
            "round": now.round if now else -1,
            "roundAge": now.now - now.deadline + swarm.round_duration if now and swarm else 0,
            "live": self.advancer.live(now.round) if now else 0,
            "spoken": self.advancer.reported(now.round) if now else 0,
            "lastBlock": now.block if now else 0,
            "registered": len(self._proven | self._admission.proven),
            "waiting": {kind: self.queue.waiting(kind) for kind in KINDS},
            "rejected": self.queue.rejections(),
            "reverted": self._reverted,
            "inFlight": self.sender.in_flight,
            "error": self._error(),
        }

    def _error(self) -> dict[str, str] | None:
        """What is in the way at present, by a word for machines and a sentence for people."""
        if self.sender.out_of_funds:
            return {
                "reason": str(GatewayProblem.INSUFFICIENT_FUNDS),
                "message": f"the wallet {self.wallet.address} cannot pay for gas",
            }
        if self.problem:
            return {"reason": str(self._problem_kind), "message": self.problem}
        if self._reverted:
            message = f"the contract does not take a registration: {self._reverted}"
            return {"reason": str(GatewayProblem.TRANSACTION_REVERTED), "message": message}
        return None

    async def take(self, messages: Sequence[SignedMessage | BadMessage]) -> list[QueuedMessage | BadMessage]:
        """Takes messages in, each checked: signature, bounds, round, whether it is there already.

        Raises:
            ChainUnreachable: the node that must be asked does not answer; nothing was taken.
        """
        if self.swarm is None or self.clock is None:
            raise ChainUnreachable("the chain has not answered yet")
        taken = await self._admission.take(messages, self.swarm, self.clock)
        self._awake.set()
        return taken

    async def run(self) -> None:
        """Works until cancelled.

        Raises:
            ChainRefused: the chain or the contract is not the one that was asked for.
        """
        waits = self.config.interval
        while True:
            try:
                if self.problem:
                    await self.start()
                await self.step()
                waits = self.config.interval
            except (ChainUnreachable, RpcError) as error:
                if str(error) != self.problem:
                    log.warning("the chain is away; messages wait: %s", error)
                reverted = isinstance(error, RpcError) and error.code == REVERTED
                self.problem, self._problem_kind = (
                    str(error),
                    GatewayProblem.TRANSACTION_REVERTED if reverted else GatewayProblem.RPC_UNAVAILABLE,
                )
                waits = min(2 * waits, 30.0)
            await self._rest(waits)

    async def start(self) -> None:
        """Asks the chain whether it is the right one; ready afterwards.

        Raises:
            ChainRefused, ChainUnreachable, RpcError: it is not, or does not say.
        """
        await self.coordinator.check()
        self.swarm = self.swarm or await self.coordinator.config()
        self.clock = await self.coordinator.clock()
        if self._cursor.block == 0:
            # Who takes part is known from recent events; what is older only matters to those who index.
            head = int(await self.chain.request("eth_blockNumber"), 16)
            self._cursor.block = max(0, head - 5_000)
        self.problem = ""

    async def step(self) -> None:
        """One look at the chain, and what follows from it.

        Raises:
            ChainUnreachable, RpcError: what was not done is done the next time.
        """
        for settled in await self.sender.step():
            await self._settle(settled)
        self.clock = await self.coordinator.clock()
        for kind in KINDS:
            await self._send(kind)
        if self.config.ticks:
            await self._tick()

    async def _rest(self, waits: float) -> None:
        try:
            # Not wait_for: in Python 3.11 it swallows a cancellation that comes together with the event.
            async with asyncio.timeout(waits):
                await self._awake.wait()
        except TimeoutError:
            return
        self._awake.clear()
        # Those who report together should share a transaction.
        await asyncio.sleep(min(waits, self.config.interval) / 5)

    async def _send(self, kind: Kind) -> None:
        rounds = 2 * self.sender.room
        while self.sender.room and self.queue.waiting(kind) and rounds:
            rounds -= 1
            entries = self.queue.take(kind, 256)
            try:
                ready, waiting = await self._judge(entries)
            except BaseException:
                self.queue.give_back(entries)
                raise
            try:
                while ready and self.sender.room:
                    ready = await self._dispatch(ready)
            finally:
                self.queue.give_back(ready)
                self.queue.give_back(waiting, first=False)
            if waiting:
                return

    async def _judge(self, entries: Sequence[QueuedMessage]) -> tuple[list[QueuedMessage], list[QueuedMessage]]:
        """Ends what is over; returns what is to be sent, and what has to wait."""
        assert self.swarm is not None
        assert self.clock is not None
        peers = [entry.message.peer for entry in entries]
        newest, settled = await self._outcomes.states(peers, self.config.confirmations)
        ready: list[QueuedMessage] = []
        waiting: list[QueuedMessage] = []
        # The contract takes no report that is older than the peer's last: each waits for those before it, whatever
        # order the line has come to.
        unsent = self.queue.unsent_reports() if any(isinstance(entry.message, Report) for entry in entries) else {}
        for entry, now, then in zip(entries, newest, settled, strict=True):
            awaits = self.queue.registration_of(entry.message.peer) is not None
            decision = decide(
                entry.message, now, then, ChainState(self.domain, self.swarm, self.clock.round, self.clock.now, awaits)
            )
            if decision.do is Action.COMPARE:
                same = await self._outcomes.is_reported(entry.message, now, self.swarm)
                self._finish(
                    entry,
                    MessageState.FINAL if same else MessageState.REJECTED,
                    "" if same else "RewardAlreadySubmitted",
                )
            elif decision.do is Action.DONE:
                self._finish(entry, MessageState.FINAL)
            elif decision.do is Action.REJECT:
                self._finish(entry, MessageState.REJECTED, decision.reason)
            elif decision.do is Action.WAIT or _comes_after(entry.message, now, unsent):
                entry.waited_in = self.clock.round
                waiting.append(entry)
                continue
            else:
                ready.append(entry)
            if isinstance(entry.message, Report):
                unsent[entry.message.peer].discard(entry.message.round)
        return ready, waiting

    async def _dispatch(self, ready: Sequence[QueuedMessage]) -> list[QueuedMessage]:
        """Sends one transaction's worth; returns the rest."""
        simulation = await simulate(self.chain, self.wallet.address, self.domain.contract, ready)
        for entry, reason in simulation.refused:
            self._refused(entry, reason)
        left = list(simulation.left)
        if simulation.reverted:
            raise RpcError(REVERTED, f"the contract takes nothing: {simulation.reverted}")
        if simulation.batch is not None:
            await self.sender.send(TxRequest(simulation.batch.data, simulation.batch.gas, simulation.batch))
            for entry in simulation.batch.entries:
                entry.state = MessageState.SENT
        return left

    async def _settle(self, settled: TxResult) -> None:
        batch = settled.job.batch
        if batch is None:
            return
        if settled.outcome is not TxOutcome.MINED or settled.receipt is None:
            if settled.outcome is TxOutcome.REVERTED:
                for entry in batch.entries:
                    entry.attempts += 1
            self.queue.give_back(batch.entries)
            return
        rejected = self._outcomes.rejected(settled.receipt)
        for index, entry in enumerate(batch.entries):
            if index in rejected:
                # Somebody else may have carried it: the next judgement, by the chain's state, knows.
                self._refused(entry, rejected[index])
                continue
            self._finish(entry, MessageState.FINAL, transaction=settled.receipt["transactionHash"])

    def _refused(self, entry: QueuedMessage, reason: str) -> None:
        entry.attempts += 1
        if entry.attempts >= TRIES:
            self._finish(entry, MessageState.REJECTED, reason)
        else:
            self.queue.give_back([entry], first=False)

    def _finish(self, entry: QueuedMessage, state: MessageState, reason: str = "", transaction: str = "") -> None:
        if entry.kind == "registrations":
            self._reverted = reason
            if state is MessageState.FINAL and len(self._proven) < MOST_COUNTED:
                self._proven.add(entry.message.peer)
        self.queue.finish(entry, state, reason, transaction)

    async def _tick(self) -> None:
        assert self.swarm is not None
        assert self.clock is not None
        if time.monotonic() - self._ticked < 4 * self.config.interval:
            return
        self._ticked = time.monotonic()
        new, removed = await self._cursor.poll()
        self.advancer.read(new, removed, self.clock.round)
        if len(self._proven) < MOST_COUNTED:
            self._proven |= {event.values["peerId"] for event in new if event.name == "PeerProven"}
        data = encode_call(TICK)
        if self.sender.carries(data.hex()) or not self.sender.room:
            return
        round = self.clock.round
        bound = self.swarm.sealed_reports and self.queue.has_bound_to(round)
        if not self.advancer.is_over(self.clock, self.swarm, ahead=self.queue.ahead_of(round), bound=bound):
            return
        call = {"from": self.wallet.address, "to": self.domain.contract, "data": "0x" + data.hex()}
        answers = await self.chain.request_all([("eth_estimateGas", (call,))])
        # A revert means that it is not ours to end yet: no role, or too early; the deadline will come.
        if not isinstance(answers[0], RpcError):
            await self.sender.send(TxRequest(data, int(answers[0], 16) * 5 // 4))


def _comes_after(message: SignedMessage, of_peer: PeerState, unsent: Mapping[str, Set[int]]) -> bool:
    """Whether a report has to wait for an older one of its peer that the contract would still take."""
    return isinstance(message, Report) and any(
        of_peer.next_round <= round < message.round for round in unsent[message.peer]
    )
