"""A peer's reporter: it registers the peer, reports its rounds through the gateway, and checks on chain which other
peers have proven their id.

One thread runs one asyncio loop with one HTTP session and two tasks: one reads the contract, the other exchanges
messages with the gateway. `report` signs and queues; only `start` and `finish` wait, for a bounded time. The chain may
be unreachable at the start, in between, or always: the peer plays on, and its messages wait in a bounded queue. Only a
wrong chain or contract is refused, at the start.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import cast

import aiohttp
from pydantic_core import from_json

from swarmgame_chain.errors import ChainError, ChainRefused
from swarmgame_chain.messages import (
    KINDS,
    MAX_VOTES,
    Domain,
    Report,
    SignedMessage,
    is_peer_id,
    peer_id,
    public_key,
    sign_commit,
    sign_registration,
    sign_report,
)
from swarmgame_chain.pending import PendingMessage, PendingMessages
from swarmgame_chain.reader import Coordinator
from swarmgame_chain.rpc import NodeClient
from swarmgame_chain.wire import dump

log = logging.getLogger(__name__)
SCALE = 1_000_000
"""A reward of 1.0 as the contract's integer."""
REGISTRATION_SECONDS = 24 * 3600
POLL_SECONDS = 0.5
REQUEST_SECONDS = 10.0
"""Longest wait for an answer of the node or the gateway."""
MAX_BACKOFF = 30.0
MAX_UNKNOWN = 1_024
"""Unknown peers that are checked on chain at once; remote peers can invent as many ids as they like."""


@dataclass(frozen=True, slots=True)
class ReporterStatus:
    """How far the reporter is.

    Args:
        registered: whether the registration is final.
        rejected: the reason of the last rejection.
        problem: why no message gets through at present.
    """

    registered: bool
    waiting: int
    final: int
    rejected_count: int
    rejected: str
    dropped: int
    problem: str


class ChainReporter:
    """Reports for one peer.

    Args:
        rpc: the node's address, or a gateway's `/rpc`.
        domain: the chain and the contract.
        identity: the libp2p key's 32 secret bytes; it proves the peer id, and signs the reports.
        gateway: the gateway's address, `http://host:port`.
        on_change: called with the status, from the reporter's thread, whenever it has changed.
    """

    def __init__(
        self,
        rpc: str,
        domain: Domain,
        identity: bytes,
        gateway: str,
        on_change: Callable[[ReporterStatus], None] = lambda status: None,
    ) -> None:
        self.peer = peer_id(public_key(identity))
        self._rpc = rpc
        self._domain = domain
        self._identity = identity
        self._gateway = gateway
        self._on_change = on_change
        self._lock = threading.Lock()
        self._pending = PendingMessages()
        """Guarded by the lock, as is `_unknown`."""
        self._sealed: bool | None = None
        """Whether reports are committed first; None until the contract has answered."""
        self._unknown: set[str] = set()
        self._proven = frozenset({self.peer})
        self._register_at = 0.0
        self._problem = "the node does not answer"
        self._registered = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._new_message = asyncio.Event()
        self._finishing = False
        self._first_answer: Future[tuple[str, ...]] = Future()
        self._last_status: ReporterStatus | None = None
        self._thread = threading.Thread(target=self._run, name="chain-reporter", daemon=True)

    def start(self) -> tuple[str, ...]:
        """Start the thread, and register; return the bootnodes on chain, none when the node does not answer now.

        Raises:
            ChainRefused: another chain, no contract, or another contract; the message names it.
        """
        self._thread.start()
        try:
            return self._first_answer.result()
        except ChainRefused:
            self.stop()
            raise
        except ChainError as error:
            log.warning("the chain does not answer (%s); the peer plays without it until it does", error)
            return ()

    def admits(self, peer: str) -> bool:
        """Return whether a peer is known to have proven its id. A new id is checked on chain, for later calls."""
        if peer in self._proven:
            return True
        if is_peer_id(peer):
            with self._lock:
                if len(self._unknown) < MAX_UNKNOWN:
                    self._unknown.add(peer)
        return False

    def wait_until_registered(self, seconds: float, interrupted: Callable[[], bool] = lambda: False) -> bool:
        """Wait for the registration to become final; return whether it is."""
        end = time.monotonic() + seconds
        while not self._registered.wait(0.1) and not interrupted() and time.monotonic() < end:
            continue
        return self._registered.is_set()

    def report(self, round: int, mean_reward: float, winners: Sequence[str] = ()) -> None:
        """Sign and queue the report of a round; returns at once.

        Args:
            mean_reward: the mean over this peer's own rollouts; recorded in millionths.
            winners: the peers whose groups were trained on most; at most 8 are named, this peer never.
        """
        others = tuple(dict.fromkeys(winner for winner in winners if winner != self.peer))[:MAX_VOTES]
        reward = to_millionths(mean_reward)
        report = sign_report(self._domain, self._identity, peer=self.peer, round=round, reward=reward, winners=others)
        with self._lock:
            self._add_report(report)
        self._call_in_thread(self._new_message.set)

    def status(self) -> ReporterStatus:
        """Return the status; cheap, from any thread."""
        with self._lock:
            pending = self._pending
            return ReporterStatus(
                registered=self._registered.is_set(),
                waiting=len(pending),
                final=pending.final,
                rejected_count=pending.rejected_count,
                rejected=pending.rejected,
                dropped=pending.dropped,
                problem=self._problem,
            )

    def pending(self) -> tuple[PendingMessage, ...]:
        """Return the messages that are not over, oldest first."""
        with self._lock:
            return self._pending.messages

    def finish(self, seconds: float, interrupted: Callable[[], bool] = lambda: False) -> ReporterStatus:
        """Wait until all messages are over, then stop; log how many are not. A gateway that was away is asked again at
        once, and often.
        """
        self._finishing = True
        self._call_in_thread(self._new_message.set)
        end = time.monotonic() + seconds
        while self.pending() and not interrupted() and time.monotonic() < end:
            time.sleep(0.05)
        status = self.status()
        if status.waiting:
            log.warning("%d messages did not reach the chain: %s", status.waiting, status.problem or "it was too slow")
        self.stop()
        return status

    def stop(self) -> None:
        """Stop at once; idempotent."""
        if self._thread.is_alive():
            self._call_in_thread(self._task.cancel)
            self._thread.join(5.0)

    def _add(self, message: SignedMessage) -> None:
        self._pending.add(message.id(self._domain), message)

    def _add_report(self, report: Report) -> None:
        if self._sealed:
            self._add(sign_commit(self._domain, self._identity, report))
        self._add(report)

    def _call_in_thread(self, function: Callable[[], object]) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the reporter has stopped
                self._loop.call_soon_threadsafe(function)

    # What follows runs in the thread.

    def _run(self) -> None:
        try:
            asyncio.run(self._work())
        except asyncio.CancelledError:
            self._publish()
        except BaseException as error:
            if not self._first_answer.done():
                self._first_answer.set_exception(error)
            raise

    async def _work(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), cast("asyncio.Task[None]", asyncio.current_task())
        # web3 is imported by peers that have a chain, in their reporter's thread.
        from swarmgame_chain.providers import http_session

        async with (
            http_session(REQUEST_SECONDS) as session,
            NodeClient(self._rpc, REQUEST_SECONDS, session) as chain,
        ):
            coordinator = Coordinator(chain, self._domain)
            await asyncio.gather(self._follow_contract(coordinator), self._exchange_messages(session))

    async def _follow_contract(self, coordinator: Coordinator) -> None:
        retry_at = 0.0
        while True:
            if self._sealed is None and time.monotonic() >= retry_at:
                # A node that lags has no contract yet, so that the wrong chain may become the right one.
                refused = await self._connect(coordinator)
                retry_at = time.monotonic() + (MAX_BACKOFF if refused else 0.0)
            await self._register_again(coordinator)
            await self._update_proven(coordinator)
            self._publish()
            await asyncio.sleep(POLL_SECONDS)

    async def _register_again(self, coordinator: Coordinator) -> None:
        """Sign the registration again where the chain did not take it in time, or does not know it any more."""
        now = time.monotonic()
        if not self._pending.needs_registration or now < self._register_at:
            return
        self._register_at = now + MAX_BACKOFF
        with contextlib.suppress(ChainError):  # it is tried again
            # This machine's clock may be behind the chain's.
            deadline = max(int(time.time()), (await coordinator.clock()).now) + REGISTRATION_SECONDS
            registration = sign_registration(self._domain, self._identity, deadline=deadline)
            with self._lock:
                self._pending.needs_registration = False
                self._add(registration)
            self._new_message.set()

    async def _connect(self, coordinator: Coordinator) -> bool:
        """Read the contract's terms and register; return whether the chain or the contract is the wrong one."""
        try:
            bootnodes, sealed = await read_terms(coordinator)
        except ChainError as error:
            refused = isinstance(error, ChainRefused)
            if refused and self._problem != str(error):
                self._problem = str(error)
                log.error("the chain is not the expected one: %s", error)
            if not self._first_answer.done():
                self._first_answer.set_exception(error)
            return refused
        deadline = int(time.time()) + REGISTRATION_SECONDS
        registration = sign_registration(self._domain, self._identity, deadline=deadline)
        with self._lock:
            self._sealed, self._problem = sealed, ""
            early = self._pending.take_all()
            self._add(registration)
            for report in early:
                assert isinstance(report, Report)
                self._add_report(report)
        if self._first_answer.done():
            log.info("the chain answers again")
        else:
            self._first_answer.set_result(bootnodes)
        self._new_message.set()
        return False

    async def _update_proven(self, coordinator: Coordinator) -> None:
        with self._lock:
            unknown, self._unknown = tuple(self._unknown), set()
        if unknown and self._sealed is not None:
            # After an error, a peer is checked again at its next call.
            with contextlib.suppress(ChainError):
                self._proven |= await coordinator.proven(unknown)

    async def _exchange_messages(self, session: aiohttp.ClientSession) -> None:
        delay = POLL_SECONDS
        while True:
            # Without anything pending, or before the contract has answered, there is nothing to do but wait.
            idle = self._sealed is None or not len(self._pending)
            pause = POLL_SECONDS if self._finishing else delay
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if idle else pause):
                    await self._new_message.wait()
            self._new_message.clear()
            if self._sealed is None:
                continue
            try:
                over = self._pending.over
                await self._exchange_once(session)
                # A gateway that takes nothing now is not asked twice a second.
                idle = self._pending.over == over and bool(self._pending.waiting)
                delay, self._problem = min(2 * delay, MAX_BACKOFF / 6) if idle else POLL_SECONDS, ""
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                self._problem = f"the gateway does not answer: {error or type(error).__name__}"
                delay = min(2 * delay, MAX_BACKOFF)
            self._publish()

    async def _exchange_once(self, session: aiohttp.ClientSession) -> None:
        """Submit what waits, and look up what is on its way.

        Raises:
            aiohttp.ClientError, TimeoutError, OSError, ValueError: the gateway does not answer, or its answer is
            invalid; the next call repeats the request.
        """
        for kind in KINDS:
            with self._lock:
                line = self._pending.to_submit(kind)
            if line:
                answers = await post(session, f"{self._gateway}/v1/{kind.path}", [dump(each.message) for each in line])
                self._apply(line, answers)
        with self._lock:
            line = self._pending.in_transit()
        if line:
            answers = await post(session, f"{self._gateway}/v1/lookups", {"ids": [each.id for each in line]})
            self._apply(line, answers)

    def _apply(self, line: Sequence[PendingMessage], answers: Sequence[dict[str, str]]) -> None:
        with self._lock:
            for pending, answer in zip(line, answers, strict=True):
                self._pending.apply(pending, answer)
            if self._pending.registered:
                self._registered.set()

    def _publish(self) -> None:
        status = self.status()
        if status != self._last_status:
            self._last_status = status
            self._on_change(status)


async def read_terms(coordinator: Coordinator) -> tuple[tuple[str, ...], bool]:
    """Check the contract; return its bootnodes, and whether reports are sealed.

    Raises:
        ChainRefused: another chain, no contract, or another contract; the message names it.
        ChainUnreachable: the node does not answer.
    """
    await coordinator.check()
    return await coordinator.bootnodes(), (await coordinator.config()).sealed_reports


async def post(
    session: aiohttp.ClientSession, url: str, body: list[dict[str, object]] | dict[str, list[str]]
) -> list[dict[str, str]]:
    """Post to the gateway, and return its answer for each message or id, in order."""
    async with session.post(url, json=body) as response:
        if response.status not in (200, 202, 400):
            raise aiohttp.ClientError(f"HTTP status {response.status}")
        answer = from_json(await response.read(), allow_inf_nan=False)
    messages = answer.get("messages") if isinstance(answer, dict) else None
    expected = len(body if isinstance(body, list) else body["ids"])
    if not isinstance(messages, list) or len(messages) != expected or not all(map(_is_state, messages)):
        raise ValueError("the gateway's answer does not fit the request")
    return messages


def _is_state(message: object) -> bool:
    return isinstance(message, dict) and all(isinstance(value, str) for value in message.values())


def to_millionths(reward: float) -> int:
    """Return a reward as the contract's integer; 0 for what is not a number or beyond the contract's range."""
    scaled = reward * SCALE
    return round(scaled) if abs(scaled) < 2**200 else 0
