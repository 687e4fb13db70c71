"""The blocking facade: ordinary threads call a node that runs on an asyncio loop in a thread of its own.

Every call has a time after which it fails, so that the caller never hangs on the loop. No coroutine runs on the
caller's thread; of the caller's code only `stopped` runs on the loop.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from swarmgame.errors import Temporary
from swarmgame.game.protocol import Claim, Collected, CollectPolicy, Member
from swarmgame.game.state import Contribution, PeerId
from swarmgame.swarm.node import SwarmNode
from swarmgame.swarm.stage_barrier import StageBarrier

logger = logging.getLogger(__name__)

T = TypeVar("T")

_CALL_SECONDS = 60.0
"""The loop answers in milliseconds; a machine that swaps may take longer."""
_LEAVE_SECONDS = 15.0
_START_SECONDS = 180.0
"""A transport may be started several times before it gives up."""
_STOP_SECONDS = 2.0
"""Whoever stops this process may stop its transport a moment before: that is no failure."""
_LEFT = "this peer has left the swarm"


class EventLoopThread:
    """An asyncio loop in a daemon thread."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.set_exception_handler(_ignore_closed_connections)
        self.loop.run_forever()
        pending = asyncio.all_tasks(self.loop)
        for task in pending:
            task.cancel()
        if pending:
            self.loop.run_until_complete(asyncio.wait(pending, timeout=1.0))
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start work on the loop.

        Raises:
            Temporary: the loop is closed.
        """
        try:
            return asyncio.run_coroutine_threadsafe(work, self.loop)
        except RuntimeError as error:
            work.close()
            raise Temporary(_LEFT) from error

    def run(self, work: Coroutine[Any, Any, T], seconds: float = _CALL_SECONDS) -> T:
        """Run work on the loop and return its result. If the caller is interrupted, the work is cancelled.

        Raises:
            Temporary: it took longer than `seconds`, or the loop is closed.
        """
        return self.result(self.submit(work), seconds)

    def result(self, future: Future[T], seconds: float) -> T:
        """Return the result of submitted work; see `run`."""
        try:
            return future.result(seconds)
        except CancelledError as error:
            raise Temporary(_LEFT) from error
        except TimeoutError as error:
            if future.done():
                raise
            raise Temporary(f"the exchange did not answer within {seconds:g} s") from error
        finally:
            future.cancel()

    def close(self) -> None:
        """Stop the loop and wait for its thread; may be called twice."""
        if self._thread.is_alive() and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(_LEAVE_SECONDS)


def _ignore_closed_connections(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log at debug level if a daemon closes a connection that hivemind reads from; handle the rest as usual."""
    if isinstance(context.get("exception"), EOFError | ConnectionError):
        logger.debug("a connection was closed: %s", context.get("message"))
    else:
        loop.default_exception_handler(context)


def _comes_true(condition: Callable[[], bool], seconds: float) -> bool:
    """Return whether a condition is true within some seconds."""
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return found


class BlockingCommunication:
    """A `CommunicationManager` over a node and its loop.

    Args:
        own_loop: whether leaving closes the loop too.
    """

    def __init__(self, node: SwarmNode, thread: EventLoopThread, *, own_loop: bool) -> None:
        self._node = node
        self._barrier = StageBarrier(node)
        self._thread = thread
        self._own_loop = own_loop
        self._left = False
        self._restored: Mapping[str, Any] | None = None

    @property
    def peer(self) -> PeerId:
        return self._node.peer

    @property
    def run(self) -> str:
        """The name of the run."""
        return self._node.run

    def start(self) -> None:
        """Open the transport before joining, so that other peers can join by this one's address. A start that fails
        closes everything.

        Raises:
            Temporary: the transport could not be started.
        """
        self._or_leave(self._node.start(), _START_SECONDS)

    def join(self, *, expect: Sequence[PeerId] = (), min_replicas: int = 1, timeout_seconds: float = 120.0) -> None:
        """See `CommunicationManager.join`. A join that fails closes everything."""
        self._or_leave(self._join(tuple(expect), min_replicas, timeout_seconds), timeout_seconds + _START_SECONDS)

    async def _join(self, expect: Sequence[PeerId], min_replicas: int, timeout_seconds: float) -> None:
        node = self._node
        if self._restored is not None:
            # Only now: standings of peers that are not expected yet would be forgotten with the first message.
            node.members.expect(expect, node.clock.now())
            self._barrier.load_state_dict(self._restored)
        await node.join(expect, min_replicas, timeout_seconds)
        if self._restored is not None:
            await self._barrier.catch_up()

    def state_dict(self) -> Mapping[str, Any]:
        """Return which peers count, for a checkpoint."""

        async def state() -> Mapping[str, Any]:
            return self._barrier.state_dict()

        return self._run(state())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back which peers count, before joining.

        Raises:
            KeyError, ValueError, TypeError: it is not such a state.
        """

        async def load() -> None:
            self._barrier.load_state_dict(state)

        self._run(load())
        self._restored = state

    def _or_leave(self, work: Coroutine[Any, Any, None], seconds: float) -> None:
        try:
            self._thread.run(work, seconds)
        except BaseException:
            self.leave()
            raise

    def membership(self) -> tuple[Member, ...]:
        """See `CommunicationManager.membership`."""

        async def members() -> tuple[Member, ...]:
            return self._node.members.members(self._node.clock.now())

        return self._run(members())

    def announce_progress(self, round: int, stage: int) -> None:
        """See `CommunicationManager.announce_progress`."""

        async def progress() -> None:
            self._node.progress(round, stage)

        self._run(progress())

    def publish(self, contribution: Contribution, claims: Sequence[Claim] = ()) -> None:
        """See `CommunicationManager.publish`.

        Raises:
            ValueError: it is another peer's, its parts do not agree, or another one was published in that stage.
        """
        self._run(self._node.publish(self._node.prepare(contribution, claims)))

    def collect(
        self, round: int, stage: int, policy: CollectPolicy, *, stopped: Callable[[], bool] = lambda: False
    ) -> Collected:
        """See `CommunicationManager.collect`.

        Raises:
            Temporary: another process runs with this peer's key, and was there before; or the transport has died.
        """
        if self._left:
            raise Temporary(_LEFT)
        ends: Callable[[], bool] = lambda: bool(self.failure) or stopped()  # noqa: E731
        future = self._thread.submit(self._barrier.collect(round, stage, policy, ends))
        self._on_collect_started()
        collected = self._thread.result(future, 2 * policy.deadline_seconds + _CALL_SECONDS)
        self._check_key()
        if self.failure and not _comes_true(stopped, _STOP_SECONDS):
            raise Temporary(self.failure)
        return collected

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        if self._left:
            work.close()
            raise Temporary(_LEFT)
        found = self._thread.run(work)
        self._check_key()
        return found

    def _check_key(self) -> None:
        if self._node.discovery.key_watch.must_end:
            raise Temporary(self._node.discovery.key_watch.must_end)

    @property
    def failure(self) -> str:
        """Why this process has to end, as a sentence: its transport has died, or another process has its key; empty
        while it can go on.
        """
        return self._node.transport.failure or self._node.discovery.key_watch.must_end

    def _on_collect_started(self) -> None:
        """Called when a collect has begun; a hook for tests."""

    def leave(self) -> None:
        """See `CommunicationManager.leave`."""
        if self._left:
            return
        self._left = True
        try:
            self._thread.run(self._node.leave(), _LEAVE_SECONDS)
        finally:
            if self._own_loop:
                self._thread.close()
