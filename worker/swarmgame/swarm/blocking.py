"""The bridge: an ordinary thread's way to an agent that lives on an asyncio loop in a thread of its own.

Every call has a time after which it fails, so that the caller never hangs on the loop. Invariant: no coroutine runs on
the caller's thread, no caller's code on the loop.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
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
_GLANCE = 0.1
_LEFT = "we have left the swarm"


class EventLoopThread:
    """An asyncio loop in a daemon thread."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.set_exception_handler(_quietly)
        self.loop.run_forever()
        pending = asyncio.all_tasks(self.loop)
        for task in pending:
            task.cancel()
        if pending:
            self.loop.run_until_complete(asyncio.wait(pending, timeout=1.0))
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    @property
    def closed(self) -> bool:
        return not self._thread.is_alive()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Starts work on the loop.

        Raises:
            Temporary: the loop is closed.
        """
        try:
            return asyncio.run_coroutine_threadsafe(work, self.loop)
        except RuntimeError as error:
            work.close()
            raise Temporary(_LEFT) from error

    def run(self, work: Coroutine[Any, Any, T], seconds: float = _CALL_SECONDS) -> T:
        """Runs work on the loop and waits for its result.

        Raises:
            Temporary: it took longer than that, or the loop is closed.
        """
        future = self.submit(work)
        try:
            return future.result(seconds)
        except TimeoutError as error:
            future.cancel()
            raise Temporary(f"the exchange did not answer within {seconds:g} s") from error

    def close(self) -> None:
        """Stops the loop and waits for its thread; may be called twice."""
        if not self.closed and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(_LEAVE_SECONDS)


def _quietly(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A connection that a peer's daemon closes while hivemind reads from it is no news; all else is."""
    if isinstance(context.get("exception"), EOFError | ConnectionError):
        logger.debug("a connection was closed: %s", context.get("message"))
    else:
        loop.default_exception_handler(context)


class BlockingCommunication:
    """A `CommunicationManager` over an agent and its loop.

    Args:
        own_loop: whether leaving closes the loop too.
    """

    def __init__(self, agent: SwarmNode, thread: EventLoopThread, *, own_loop: bool) -> None:
        self._agent = agent
        self._collector = StageBarrier(agent)
        self._thread = thread
        self._own_loop = own_loop
        self._left = False

    @property
    def peer(self) -> PeerId:
        return self._agent.peer

    @property
    def run(self) -> str:
        """The name of the run."""
        return self._agent.run

    def join(self, *, expect: Sequence[PeerId] = (), at_least: int = 1, timeout_seconds: float = 120.0) -> None:
        """See `CommunicationManager.join`. A join that fails has closed everything."""
        try:
            self._thread.run(
                self._agent.join(tuple(expect), at_least, timeout_seconds), timeout_seconds + 2 * _CALL_SECONDS
            )
        except BaseException:
            self.leave()
            raise

    def membership(self) -> tuple[Member, ...]:
        """See `CommunicationManager.membership`."""

        async def look() -> tuple[Member, ...]:
            return self._agent.members.members(self._agent.clock.now())

        return self._run(look())

    def announce_progress(self, round: int, stage: int) -> None:
        """See `CommunicationManager.announce_progress`."""

        async def note() -> None:
            self._agent.progress(round, stage)

        self._run(note())

    def publish(self, contribution: Contribution, claims: Sequence[Claim] = ()) -> None:
        """See `CommunicationManager.publish`.

        Raises:
            ValueError: it is not ours, something else was said in that stage already, or its parts do not agree.
        """
        self._run(self._agent.say(self._agent.prepare(contribution, claims)))

    def collect(
        self, round: int, stage: int, policy: CollectPolicy, *, stopped: Callable[[], bool] = lambda: False
    ) -> Collected:
        """See `CommunicationManager.collect`."""
        if self._left:
            raise Temporary(_LEFT)
        stop = asyncio.Event()
        future = self._thread.submit(self._collector.collect(round, stage, policy, stop))
        self._collecting()

        def halt() -> None:
            stop.set()
            self._agent.changed.set()

        try:
            while True:
                try:
                    return future.result(_GLANCE)
                except TimeoutError:
                    if future.done():
                        raise
                if self._thread.closed:
                    raise Temporary(_LEFT)
                if stopped() and not stop.is_set():
                    self._thread.loop.call_soon_threadsafe(halt)
        finally:
            future.cancel()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        if self._left:
            work.close()
            raise Temporary(_LEFT)
        return self._thread.run(work)

    def _collecting(self) -> None:
        """A collect is under way."""

    def leave(self) -> None:
        """See `CommunicationManager.leave`."""
        if self._left:
            return
        self._left = True
        try:
            self._thread.run(self._agent.leave(), _LEAVE_SECONDS)
        finally:
            if self._own_loop:
                self._thread.close()
