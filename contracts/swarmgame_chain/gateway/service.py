"""The gateway's loop: decide on the queued messages by the contract's state, send them, follow them, end rounds.

One task does all of it. While the node does not answer, messages wait; when it answers again, it is checked first that
it is still the same chain. A message leaves the queue through `MessageQueue.finish` only, and is final only when the
contract's settled state confirms it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from swarmgame_chain.abi import encode_call, rejected_entries
from swarmgame_chain.errors import BadMessage, ChainUnreachable, RpcError
from swarmgame_chain.gateway.admission import Admission
from swarmgame_chain.gateway.batcher import simulate
from swarmgame_chain.gateway.queue import MessageQueue, MessageState, QueuedMessage
from swarmgame_chain.gateway.round_advancer import EVENTS, RoundAdvancer
from swarmgame_chain.gateway.sender import TransactionSender, TxOutcome, TxRequest, TxResult
from swarmgame_chain.keys import Wallet
from swarmgame_chain.messages import KINDS, Action, ChainState, Domain, MessageKind, Registration, SignedMessage
from swarmgame_chain.reader import Coordinator, EventCursor, RoundClock, SwarmConfig
from swarmgame_chain.rpc import RpcClient

log = logging.getLogger(__name__)
ADVANCE = "updateStageAndRound"
REVERTED = 3
"""JSON-RPC's code for a call that reverted."""
MAX_PROVEN = 100_000
"""Registered peers that are counted."""
MAX_ATTEMPTS = 3
"""Transactions that may fail to take a message, though the contract's state allows it, before it is rejected."""


class GatewayProblem(StrEnum):
    """Why the gateway is not working, for `/status`. The wrong chain is not among them: it ends the process."""

    RPC_UNAVAILABLE = "RPCUnavailable"
    INSUFFICIENT_FUNDS = "InsufficientFunds"
    TRANSACTION_REVERTED = "TransactionReverted"


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """Options of a gateway, in seconds, blocks, counts and wei."""

    confirmations: int = 2
    interval: float = 0.25
    """Seconds between two steps; messages that arrive within it share a transaction."""
    bump_after: float = 30.0
    max_fee: int = 500 * 10**9
    capacity: int = 10_000
    registrations_per_minute: int = 2_000
    """Limit of registrations: each costs gas, and anyone can make keys."""
    quorum: float = 0.67
    ends_rounds: bool = True
    """Whether it ends rounds. To end them before their deadline, its wallet needs the stage manager's role."""


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
        self.round_advancer = RoundAdvancer(self.config.quorum)
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
        self._last_advance = -math.inf
        self._admission = Admission(self.coordinator, self.queue, self.config.registrations_per_minute)
        self._awake = asyncio.Event()

    @property
    def ready(self) -> bool:
        return not self.problem

    def status(self) -> dict[str, Any]:
        """Return the state of the gateway, for `/status` and the metrics."""
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
            "live": self.round_advancer.live(now.round) if now else 0,
            "spoken": self.round_advancer.reported(now.round) if now else 0,
            "lastBlock": now.block if now else 0,
            "registered": len(self._proven | self._admission.proven),
            "waiting": {kind.path: self.queue.waiting(kind) for kind in KINDS},
            "rejected": self.queue.rejections(),
            "reverted": self._reverted,
            "inFlight": self.sender.in_flight,
            "error": self._error(),
        }

    def _error(self) -> dict[str, str] | None:
        """Return the present problem: a reason for machines and a message for people."""
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

    async def submit(self, messages: Sequence[SignedMessage | BadMessage]) -> list[QueuedMessage | BadMessage]:
        """Check messages and queue them; return the entry of each, in order.

        Raises:
            ChainUnreachable: signers had to be read from the chain and the node does not answer; nothing was queued.
        """
        if self.swarm is None or self.clock is None:
            raise ChainUnreachable("the chain has not answered yet")
        entries = await self._admission.submit(messages, self.swarm, self.clock)
        self._awake.set()
        return entries

    async def run(self) -> None:
        """Run until cancelled.

        Raises:
            ChainRefused: the chain or the contract is not the expected one.
        """
        delay = self.config.interval
        while True:
            try:
                if self.problem:
                    await self.start()
                await self.step()
                delay = self.config.interval
            except (ChainUnreachable, RpcError) as error:
                if str(error) != self.problem:
                    log.warning("the chain does not answer; messages wait: %s", error)
                reverted = isinstance(error, RpcError) and error.code == REVERTED
                self.problem, self._problem_kind = (
                    str(error),
                    GatewayProblem.TRANSACTION_REVERTED if reverted else GatewayProblem.RPC_UNAVAILABLE,
                )
                delay = min(2 * delay, 30.0)
            await self._rest(delay)

    async def start(self) -> None:
        """Check that the chain is the right one; the gateway is ready afterwards.

        Raises:
            ChainRefused, ChainUnreachable, RpcError: it is not, or the node does not answer.
        """
        await self.coordinator.check()
        self.swarm = self.swarm or await self.coordinator.config()
        self.clock = await self.coordinator.clock()
        if self._cursor.block == 0:
            # Live peers have recent events; older ones are not needed.
            head = int(await self.chain.request("eth_blockNumber"), 16)
            self._cursor.block = max(0, head - 5_000)
        self.problem = ""

    async def step(self) -> None:
        """Settle what was sent, send what is ready, and end the round if it is over.

        Raises:
            ChainUnreachable, RpcError: the next step does what is left.
        """
        for result in await self.sender.step():
            await self._settle(result)
        self.clock = await self.coordinator.clock()
        for kind in KINDS:
            await self._send(kind)
        if self.config.ends_rounds:
            await self._advance_round()

    async def _rest(self, delay: float) -> None:
        try:
            # Not wait_for: in Python 3.11 it swallows a cancellation that comes together with the event.
            async with asyncio.timeout(delay):
                await self._awake.wait()
        except TimeoutError:
            return
        self._awake.clear()
        # Peers that report at the same time should share a transaction.
        await asyncio.sleep(min(delay, self.config.interval) / 5)

    async def _send(self, kind: MessageKind) -> None:
        rounds = 2 * self.sender.room
        while self.sender.room and self.queue.waiting(kind) and rounds:
            rounds -= 1
            entries = self.queue.take(kind, 256)
            try:
                ready, waiting = await self._decide(kind, entries)
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

    async def _decide(
        self, kind: MessageKind, entries: Sequence[QueuedMessage]
    ) -> tuple[list[QueuedMessage], list[QueuedMessage]]:
        """Finish the messages that are over; return those to send, and those that have to wait."""
        assert self.swarm is not None
        assert self.clock is not None
        peers = [entry.message.peer for entry in entries]
        newest, settled = await self.coordinator.newest_and_settled(peers, self.config.confirmations)
        ready: list[QueuedMessage] = []
        waiting: list[QueuedMessage] = []
        # The contract takes no report that is older than the peer's last one, so each delay for those before it,
        # whatever order they arrived in.
        unsent = self.queue.unsent_rounds(kind) if kind.in_order else {}
        for entry, now, then in zip(entries, newest, settled, strict=True):
            message = entry.message
            pending = self.queue.registration_of(message.peer) is not None
            state = ChainState(self.domain, self.swarm, self.clock.round, self.clock.now, pending)
            decision = message.decide(now, then, state)
            if decision.action is Action.COMPARE:
                decision = await message.outcome(self.coordinator, now, self.swarm)
            if decision.action is Action.DONE:
                self._finish(entry, MessageState.FINAL)
            elif decision.action is Action.REJECT:
                self._finish(entry, MessageState.REJECTED, decision.reason)
            elif decision.action is Action.WAIT or message.follows(unsent.get(message.peer, set()), now):
                entry.waited_in = self.clock.round
                waiting.append(entry)
                continue
            else:
                ready.append(entry)
            unsent.get(message.peer, set()).discard(message.about_round)
        return ready, waiting

    async def _dispatch(self, ready: Sequence[QueuedMessage]) -> list[QueuedMessage]:
        """Send one transaction; return the messages that did not fit."""
        simulation = await simulate(self.chain, self.wallet.address, self.domain.contract, ready)
        for entry, reason in simulation.refused:
            self._refused(entry, reason)
        if simulation.reverted:
            raise RpcError(REVERTED, f"the contract takes nothing: {simulation.reverted}")
        if simulation.batch is not None:
            await self.sender.send(TxRequest(simulation.batch.data, simulation.batch.gas, simulation.batch))
            for entry in simulation.batch.entries:
                entry.state = MessageState.SENT
        return list(simulation.left)

    async def _settle(self, result: TxResult) -> None:
        batch = result.request.batch
        if batch is None:
            return
        if result.outcome is not TxOutcome.MINED or result.receipt is None:
            if result.outcome is TxOutcome.REVERTED:
                for entry in batch.entries:
                    entry.attempts += 1
            self.queue.give_back(batch.entries)
            return
        rejected = rejected_entries(result.receipt)
        for index, entry in enumerate(batch.entries):
            if index in rejected:
                # Another gateway may have carried it; the next decision, by the contract's state, knows.
                self._refused(entry, rejected[index])
                continue
            self._finish(entry, MessageState.FINAL, transaction=result.receipt["transactionHash"])

    def _refused(self, entry: QueuedMessage, reason: str) -> None:
        entry.attempts += 1
        if entry.attempts >= MAX_ATTEMPTS:
            self._finish(entry, MessageState.REJECTED, reason)
        else:
            self.queue.give_back([entry], first=False)

    def _finish(self, entry: QueuedMessage, state: MessageState, reason: str = "", transaction: str = "") -> None:
        if entry.kind is Registration:
            self._reverted = reason
            if state is MessageState.FINAL and len(self._proven) < MAX_PROVEN:
                self._proven.add(entry.message.peer)
        self.queue.finish(entry, state, reason, transaction)

    async def _advance_round(self) -> None:
        assert self.swarm is not None
        assert self.clock is not None
        if time.monotonic() - self._last_advance < 4 * self.config.interval:
            return
        self._last_advance = time.monotonic()
        new, removed = await self._cursor.poll()
        self.round_advancer.read(new, removed, self.clock.round)
        if len(self._proven) < MAX_PROVEN:
            self._proven |= {event.values["peerId"] for event in new if event.name == "PeerProven"}
        data = encode_call(ADVANCE)
        if self.sender.carries(data) or not self.sender.room:
            return
        round = self.clock.round
        needed = self.swarm.sealed_reports and self.queue.needs_round(round)
        if not self.round_advancer.is_over(self.clock, self.swarm, ahead=self.queue.ahead_of(round), needed=needed):
            return
        call = {"from": self.wallet.address, "to": self.domain.contract, "data": "0x" + data.hex()}
        answers = await self.chain.request_all([("eth_estimateGas", (call,))])
        # A revert means that this wallet may not end the round yet: it has no role, or it is too early.
        if not isinstance(answers[0], RpcError):
            await self.sender.send(TxRequest(data, int(answers[0], 16) * 5 // 4))
