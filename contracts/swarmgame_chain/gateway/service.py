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
from dataclasses import replace
from typing import Any

from swarmgame_chain.abi import encode_call, rejected_entries
from swarmgame_chain.errors import (
    REVERTED,
    BadMessage,
    ChainError,
    ChainRefused,
    ChainUnreachable,
    RequestTooLarge,
    RpcError,
)
from swarmgame_chain.gateway.admission import Admission
from swarmgame_chain.gateway.batcher import MAX_FAILED, BatchSize, simulate
from swarmgame_chain.gateway.comparison import Comparison
from swarmgame_chain.gateway.config import GatewayConfig, GatewayProblem, shown_problem
from swarmgame_chain.gateway.queue import MessageQueue, MessageState, QueuedMessage
from swarmgame_chain.gateway.round_advancer import EVENTS, RoundAdvancer
from swarmgame_chain.gateway.sender import TransactionSender, TxOutcome, TxRequest, TxResult
from swarmgame_chain.head import Block, BlockPace, HeadReader
from swarmgame_chain.keys import Wallet
from swarmgame_chain.messages import KINDS, Action, ChainState, Domain, MessageKind, Registration, SignedMessage
from swarmgame_chain.reader import Coordinator, EventCursor, RoundClock, SwarmConfig
from swarmgame_chain.rpc import CountedClient, RpcClient

log = logging.getLogger(__name__)
ADVANCE = "advanceTo"
MAX_PROVEN = 100_000
"""Registered peers that are counted."""
MAX_ATTEMPTS = 3
"""Transactions that may fail to take a message, though the contract's state allows it, before it is rejected."""
MAX_BACKOFF = 30.0
MAX_REFUSALS = 3
"""Checks in a row that must find the wrong chain or contract, once it was the right one."""
REFUSED_SECONDS = 2.0


class Gateway:
    """A gateway to one contract.

    Args:
        chain: the node.
        domain: the chain and the contract that it must be.
        wallet: the funded key.
    """

    def __init__(self, chain: RpcClient, domain: Domain, wallet: Wallet, config: GatewayConfig | None = None) -> None:
        self.config = config or GatewayConfig()
        self.chain = chain = CountedClient(chain)
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
            max_tip=self.config.max_tip,
            gas_per_hour=self.config.gas_per_hour,
        )
        self.wallet = wallet
        self.round_advancer = RoundAdvancer(self.config.quorum)
        self.swarm: SwarmConfig | None = None
        self.clock: RoundClock | None = None
        self.problem = "not started"
        """Why it is not ready; empty when it is."""
        self.failures = 0
        """How often a step ended because the node did not answer, or not as it should."""
        self.domain = domain
        self._problem_kind = GatewayProblem.RPC_UNAVAILABLE
        self._reverted = ""
        self._proven: set[str] = set()
        self._cursor = EventCursor(self.coordinator, names=EVENTS)
        self._last_refused = self._last_followed = -math.inf
        self._head = HeadReader(chain)
        self._pace = BlockPace(self.config.interval)
        self._size = BatchSize()
        self._done = self._head_hash = ""
        """The hash of the last block for which a step was complete, and of the newest block."""
        self._head_at = 0.0  # when the newest block was first seen
        self._refusals = 0
        self._reported = False
        self._admission = Admission(self.coordinator, self.queue, self.config.registrations_per_minute)
        self._admission.on_early = self.round_advancer.note_early
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
            "live": self.round_advancer.live(swarm) if swarm else 0,
            "spoken": self.round_advancer.reported(now.round) if now else 0,
            "lastBlock": now.block if now else 0,
            "registered": len(self._proven | self._admission.proven),
            "waiting": {kind.path: self.queue.waiting(kind) for kind in KINDS},
            "rejected": self.queue.rejections(),
            "reverted": self._reverted,
            "inFlight": self.sender.in_flight,
            "error": shown_problem(
                self.wallet.address if self.sender.out_of_funds else "",
                self.problem,
                self._problem_kind,
                self._reverted,
            ),
        }

    async def submit(
        self, messages: Sequence[SignedMessage | BadMessage], client: str = ""
    ) -> list[QueuedMessage | BadMessage]:
        """Check messages from one address and queue them; return the entry of each, in order.

        Raises:
            ChainUnreachable: signers had to be read from the chain and the node does not answer; nothing was queued.
        """
        if self.swarm is None or self.clock is None:
            raise ChainUnreachable("the chain has not answered yet")
        entries = await self._admission.submit(messages, self.swarm, self.clock, client)
        self._awake.set()
        return entries

    async def run(self) -> None:
        """Run until cancelled.

        Raises:
            ChainRefused: the chain or the contract is not the expected one.
        """
        backoff = self.config.interval
        while True:
            try:
                if self.problem:
                    await self.start()
                await self.step()
                self._refusals, backoff = 0, self.config.interval
                if self._reported:
                    log.info("the chain answers again")
                self._reported = False
                await self._rest(
                    self._pace.delay(time.monotonic(), self.sender.sent_at if self.sender.in_flight else None)
                )
            except (ChainUnreachable, RpcError) as error:
                reverted = isinstance(error, RpcError) and error.is_revert
                self._fail(error, GatewayProblem.TRANSACTION_REVERTED if reverted else GatewayProblem.RPC_UNAVAILABLE)
                backoff = min(2 * backoff, MAX_BACKOFF)
                # In full, whatever is submitted: a node that limits requests must not be asked at every message.
                await asyncio.sleep(backoff)
            except ChainRefused as error:
                # A machine behind the node's address that lags has no contract yet. One that was right once is the
                # wrong one only when it says so again.
                self._refusals += 1
                if self.clock is None or self._refusals >= MAX_REFUSALS:
                    raise
                self._fail(error, GatewayProblem.RPC_UNAVAILABLE)
                await asyncio.sleep(REFUSED_SECONDS)

    def _fail(self, error: ChainError, kind: GatewayProblem) -> None:
        self.failures += 1
        if not self._reported:
            log.warning("the chain does not answer as it should; messages wait: %s", error)
        self._reported = True
        self.problem, self._problem_kind = str(error), kind

    async def start(self) -> None:
        """Check that the chain is the right one; the gateway is ready afterwards.

        Raises:
            ChainRefused, ChainUnreachable, RpcError: it is not, or the node does not answer.
        """
        # First, since a machine that lags may have no contract yet.
        head = await self._head.read()
        await self.coordinator.check()
        self.swarm = self.swarm or await self.coordinator.config()
        self.clock = await self.coordinator.clock(head)
        if self._cursor.block == 0:
            # Live peers have recent events; older ones are not needed.
            self._cursor.block = max(0, self.clock.block - 5_000)
        self.problem = ""

    async def step(self) -> None:
        """Settle what was sent, send what is ready, and end the round if it is over.

        Raises:
            ChainUnreachable, RpcError: the next step does what is left.
        """
        now = time.monotonic()
        head = await self._head.read()
        self._pace.observe(head, now)
        is_new = head.hash != self._done
        if head.hash != self._head_hash:
            self._head_hash, self._head_at = head.hash, now
        # Without a new block there is nothing new to read, but what is not mined in time has to be replaced.
        if is_new or now - self._last_followed >= min(5.0, self.config.bump_after) / 2:
            self._last_followed = now
            for result in await self.sender.step(head.number):
                await self._settle(result)
        if is_new:
            self.clock = await self.coordinator.clock(head)
        for kind in KINDS:
            await self._send(kind, head)
        if self.config.ends_rounds:
            await self._advance_round(head, is_new)
        self._done = head.hash

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

    async def _send(self, kind: MessageKind, head: Block) -> None:
        assert self.clock is not None
        rounds = 2 * self.sender.room
        while self.sender.room and rounds:
            rounds -= 1
            entries = self.queue.take(kind, 256, head.hash, self.clock.round)
            if not entries:
                return
            try:
                ready, waiting = await self._decide(kind, entries, head)
            except BaseException:
                self.queue.give_back(entries)
                raise
            try:
                while ready and self.sender.room:
                    ready, error = await self._dispatch(ready, head)
                    if error is not None:
                        raise error
            finally:
                self.queue.give_back(ready)
                self.queue.give_back(waiting, first=False)
            if waiting:
                return

    async def _decide(
        self, kind: MessageKind, entries: Sequence[QueuedMessage], head: Block
    ) -> tuple[list[QueuedMessage], list[QueuedMessage]]:
        """Finish the messages that are over; return those to send, and those that have to wait."""
        assert self.swarm is not None
        assert self.clock is not None
        peers = [entry.message.peer for entry in entries]
        newest, settled = await self.coordinator.newest_and_settled(peers, self.config.confirmations, head)
        ready: list[QueuedMessage] = []
        waiting: list[QueuedMessage] = []
        comparison = Comparison(self.coordinator, self.swarm, head.number)
        for entry, now, then in zip(entries, newest, settled, strict=True):
            message = entry.message
            pending = self.queue.registration_of(message.peer) is not None
            state = ChainState(self.domain, self.swarm, self.clock.round, self.clock.now, pending)
            decision = message.decide(now, then, state)
            if decision.action is Action.COMPARE:
                decision = await comparison.decide(entry, now)
            if decision.action is Action.DONE:
                self._finish(entry, MessageState.FINAL)
            elif decision.action is Action.REJECT:
                self._finish(entry, MessageState.REJECTED, decision.reason)
            elif decision.action is Action.WAIT:
                entry.judged_at = head.hash
                if now.proven and not pending:  # Another one may be taken in this round, once its peer is registered.
                    entry.waited_in = self.clock.round
                waiting.append(entry)
            else:
                ready.append(entry)
        # One whose comparison takes long must not be the first again.
        waiting.sort(key=lambda entry: entry.failures)
        return ready, waiting

    async def _dispatch(
        self, ready: Sequence[QueuedMessage], head: Block
    ) -> tuple[list[QueuedMessage], RpcError | RequestTooLarge | None]:
        """Send one transaction; return the messages that are left, and the node's error where none was sent."""
        kind = ready[0].kind
        simulation = await simulate(self.chain, self.wallet.address, self.domain.contract, ready, self._size, head.tag)
        for entry, reason in simulation.refused:
            entry.judged_at = head.hash  # the same block would refuse it again
            self._refused(entry, reason)
        self._delay(simulation.failed, head)
        for entry in simulation.failed:
            if not entry.failures:
                log.warning("the node fails on a message of %s, which waits: %s", entry.message.peer, simulation.error)
            entry.failures += 1
        if simulation.reverted:
            raise RpcError(REVERTED, f"the contract takes nothing: {simulation.reverted}")
        batch, left = simulation.batch, list(simulation.left)
        if batch is None:
            # The node fails for all of them, not on one of them.
            return left, simulation.error if len(simulation.failed) >= MAX_FAILED else None
        try:
            await self.sender.send(TxRequest(batch.data, batch.gas, batch))
        except (RpcError, RequestTooLarge) as error:
            # A limit of the node: bytes, gas, or the price of one transaction.
            self._size.refused(kind, len(batch.entries))
            if len(batch.entries) == 1:
                self._delay(batch.entries, head)
                return left, error
            log.warning("%s; transactions have at most %d %s", error, self._size.most(kind), kind.path)
            return [*batch.entries, *left], None
        self._size.taken(kind)
        for entry in batch.entries:
            entry.state = MessageState.SENT
        return left, None

    def _delay(self, entries: Sequence[QueuedMessage], head: Block) -> None:
        """Put messages at the end of the line until the next block."""
        for entry in entries:
            entry.judged_at = head.hash
        self.queue.give_back(entries, first=False)

    async def _settle(self, result: TxResult) -> None:
        batch = result.request.batch
        if batch is None:
            return
        if result.outcome is TxOutcome.REVERTED:
            kind, count = batch.entries[0].kind, len(batch.entries)
            log.warning("a transaction with %d %s reverted; it was paid for, and they are sent again", count, kind.path)
            # Much smaller, and alone in the last attempt: no message is rejected for one beside it.
            self._size.refused(kind, count // 8)
            for entry in batch.entries:
                self._refused(entry, "TransactionReverted")
            return
        if result.outcome is not TxOutcome.MINED or result.receipt is None:
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

    async def _advance_round(self, head: Block, is_new: bool) -> None:
        assert self.swarm is not None
        assert self.clock is not None
        if is_new or self._cursor.is_behind:
            new, removed = await self._cursor.poll(head.number)
            self.round_advancer.read(new, removed, self.clock.round)
            if len(self._proven) < MAX_PROVEN:
                self._proven |= {event.values["peerId"] for event in new if event.name == "PeerProven"}
        if self.sender.carries(encode_call(ADVANCE, 0)[:4], head.number) or not self.sender.room:
            return
        # A chain that makes blocks on demand makes none while all wait for the deadline.
        clock = replace(self.clock, now=self.clock.now + int(time.monotonic() - self._head_at))
        last = self.queue.last_round(self.swarm, clock.round)
        target = self.round_advancer.target(clock, self.swarm, self.queue.newest_rounds(self.swarm), last)
        if target == clock.round or (not is_new and time.monotonic() - self._last_refused < 4 * self.config.interval):
            return
        # A wallet without a role may end one round, after the deadline.
        rounds = [target] if target == clock.round + 1 else [target, clock.round + 1]
        calls = [encode_call(ADVANCE, round) for round in rounds]
        if not await self.sender.send_first(calls):
            # This wallet may not end the round yet: it has no role, or it is too early.
            self._last_refused = time.monotonic()
