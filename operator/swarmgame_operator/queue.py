"""The work queue of keys to reconcile, as in client-go, and turns at what must not be done too often.

A key that is added twice before a worker takes it is processed once; one that is added while a worker processes it is
processed again afterwards; failures back off. So an added key is processed at least once after the addition, and never
by two workers at once. Urgent keys go before the others, which still get one turn in four.

Source: k8s.io/client-go/util/workqueue. Delays use the running loop's clock, so tests use a loop with virtual time.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from swarmgame_common.logs import get_logger
from swarmgame_operator.errors import LeadershipLost, Retry

log = get_logger(__name__)

Key = TypeVar("Key", bound=Hashable)
Work = Callable[[Key], Awaitable[float | None]]
"""Processes a key. Returns the seconds until the key is due again, or None."""
URGENT_IN_A_ROW = 3
"""Urgent keys that are taken while others wait; then one of the others is."""


class WorkQueue(Generic[Key]):
    """Keys to process.

    Args:
        first_delay, longest_delay: seconds of back-off after the first failure in a row, and at most; it doubles in
            between.
        jitter: a number in [0, 1); it lengthens a delay by up to half, so that failures do not repeat in lockstep.
        waited: called with the seconds that a key was due before a worker took it.
        urgent: whether a key that becomes due goes before others that are.
    """

    def __init__(
        self,
        *,
        first_delay: float = 0.25,
        longest_delay: float = 120.0,
        jitter: Callable[[], float] = random.random,
        waited: Callable[[float], None] = lambda seconds: None,
        urgent: Callable[[Key], bool] = lambda key: False,
    ) -> None:
        self._ready: deque[Key] = deque()
        self._urgent: deque[Key] = deque()
        self._in_a_row = 0
        self._due: dict[Key, float] = {}
        self._again: set[Key] = set()
        self._working: dict[Key, float] = {}
        self._later: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}
        self._takers: deque[asyncio.Future[None]] = deque()
        self._first, self._longest, self._jitter, self._waited = first_delay, longest_delay, jitter, waited
        self._is_urgent = urgent
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def depth(self) -> int:
        """Keys that are due and not taken."""
        return len(self._ready) + len(self._urgent)

    @property
    def delayed(self) -> int:
        """Keys that will be due later."""
        return len(self._later)

    @property
    def oldest(self) -> float:
        """Seconds since the oldest key that is due or being processed was due; 0 if there is none. Thread-safe."""
        since = [when for times in (self._due, self._working) for when in list(times.values())[:1]]
        return max(0.0, self._loop.time() - min(since)) if since and self._loop is not None else 0.0

    def add(self, key: Key) -> None:
        """Make the key due now."""
        if (timer := self._later.pop(key, None)) is not None:
            timer.cancel()
        if key in self._working:
            self._again.add(key)
        elif key not in self._due:
            self._loop = asyncio.get_running_loop()
            self._due[key] = self._loop.time()
            (self._urgent if self._is_urgent(key) else self._ready).append(key)
            self._wake()

    def add_after(self, key: Key, seconds: float) -> None:
        """Make the key due later, unless it is due earlier already."""
        if seconds <= 0:
            self.add(key)
            return
        if key in self._due or key in self._again:
            return
        loop = asyncio.get_running_loop()
        when = loop.time() + seconds
        if (timer := self._later.get(key)) is not None:
            if timer.when() <= when:
                return
            timer.cancel()
        self._later[key] = loop.call_at(when, self._now, key)

    def forget(self, key: Key) -> None:
        """Reset the key's failures. A key that is due stays due."""
        self._failures.pop(key, None)

    def backoff(self, key: Key) -> float:
        """Count a failure. Return the seconds to wait."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        delay = min(self._longest, self._first * 2.0 ** min(failures - 1, 32))
        return delay * (1 + self._jitter() / 2)

    async def take(self) -> Key:
        """Wait for the next key that is due. It is taken until `done`."""
        while not self.depth:
            taker: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._takers.append(taker)
            try:
                await taker
            except asyncio.CancelledError:
                if taker.done() and not taker.cancelled():
                    self._wake()  # this taker was woken and will not take the key: wake another
                raise
        key = self._next()
        now = asyncio.get_running_loop().time()
        self._waited(now - self._due.pop(key))
        self._working[key] = now
        return key

    def done(self, key: Key) -> None:
        """Release a key that was taken."""
        del self._working[key]
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    async def work(self, work: Work[Key], failed: Callable[[str], None] = lambda reason: None) -> None:
        """Take and process keys forever. Several of these may run at once.

        Args:
            failed: called with the reason of every failure.
        """
        while True:
            key = await self.take()
            try:
                again = await work(key)
                self.forget(key)
                if again is not None:
                    self.add_after(key, again)
            except LeadershipLost:
                raise
            except Retry as error:
                failed(error.reason)
                delay = self.backoff(key)
                delay = delay if error.after is None else max(error.after, 0.01)
                log.info("retry", key=key, reason=error.reason, message=error.message, seconds=round(delay, 2))
                self.add_after(key, delay)
            except Exception as error:
                failed(getattr(error, "reason", type(error).__name__))
                delay = self.backoff(key)
                log.error("failed", key=key, seconds=round(delay, 2), exc_info=error)
                self.add_after(key, delay)
            finally:
                self.done(key)

    def _next(self) -> Key:
        if self._urgent and (not self._ready or self._in_a_row < URGENT_IN_A_ROW):
            self._in_a_row += 1
            return self._urgent.popleft()
        self._in_a_row = 0
        return self._ready.popleft()

    def _now(self, key: Key) -> None:
        self._later.pop(key, None)
        self.add(key)

    def _wake(self) -> None:
        while self._takers:
            taker = self._takers.popleft()
            if not taker.done():
                taker.set_result(None)
                return


class Turns(Generic[Key]):
    """Turns at something that takes a slow server's time: together they last for no more than a share of the time.

    Args:
        share: of the time, in [0, 1].
        reserve: seconds that a quiet time saves up. Twice as many are owed at most: a server that hangs for minutes
            is asked again soon afterwards.
        longest: seconds after which one that waits asks again at the latest.
    """

    def __init__(self, share: float, reserve: float, longest: float) -> None:
        self._share, self._reserve, self._longest = share, reserve, longest
        self._left, self._then = reserve, -math.inf
        self._usual = 0.01 * reserve
        self._waiting: set[Key] = set()

    def take(self, key: Key, now: float) -> float:
        """Take a turn. Return 0, and call `took` afterwards; or return the seconds after which to ask again."""
        self._left, self._then = min(self._reserve, self._left + (now - self._then) * self._share), now
        if self._left > 0:
            self._left -= self._usual  # others may take their turns before this one ends
            self._waiting.discard(key)
            return 0.0
        self._waiting.add(key)
        return min(self._longest, max(0.1, (len(self._waiting) * self._usual - self._left) / self._share))

    def took(self, seconds: float) -> None:
        """Account for a turn that has ended."""
        self._left = max(self._left - (seconds - self._usual), -2.0 * self._reserve)
        self._usual += 0.2 * (seconds - self._usual)

    def leave(self, key: Key) -> None:
        """Wait no longer."""
        self._waiting.discard(key)
