"""Clocks: real time, or virtual time that a test advances.

Both run inside an asyncio loop. `VirtualClock.advance` fires timers one after another in the order of their times, and
lets everything that a timer wakes run to its next wait before the next one fires. A test of minutes takes milliseconds
and always runs the same way.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable
from itertools import count
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

_SINCE_BOOT: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""On Linux the monotonic clock stands still while the machine sleeps."""


class Clock(Protocol):
    """The time functions that a node needs."""

    def now(self) -> float:
        """Return Unix time in seconds. It goes on evenly where the machine's clock is set."""
        ...

    def set_since(self) -> float:
        """Return the seconds by which the machine's clock has been set forward since the first reading."""
        ...

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        """Return when the event is set or the time is over."""
        ...

    async def offload(self, work: Callable[[], T]) -> T:
        """Run work that would block the loop."""
        ...


class RealClock:
    """The machine's clock as it was when this object was made, and the time that has passed since, sleep included.

    With a clock that follows each correction, members would expire at once, or a stage would wait for an hour.
    """

    def __init__(self) -> None:
        self._began = time.time() - time.clock_gettime(_SINCE_BOOT)

    def now(self) -> float:
        return self._began + time.clock_gettime(_SINCE_BOOT)

    def set_since(self) -> float:
        return time.time() - self.now()

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        if event.is_set() or seconds <= 0:
            return
        try:
            # Unlike `wait_for`, this creates no task, and a stage wakes at every message.
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            return

    async def offload(self, work: Callable[[], T]) -> T:
        return await asyncio.to_thread(work)


class VirtualClock:
    """Time that stands still until a test advances it."""

    def __init__(self, start: float = 1_000_000.0) -> None:
        self._now = start
        self._order = count()
        self._timers: list[tuple[float, int, asyncio.Future[Any]]] = []

    def now(self) -> float:
        return self._now

    def set_since(self) -> float:
        return 0.0

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        if event.is_set() or seconds <= 0:
            return
        timer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._timers, (self._now + seconds, next(self._order), timer))
        waiter: asyncio.Future[Any] = asyncio.ensure_future(event.wait())
        try:
            await asyncio.wait({timer, waiter}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiter.cancel()
            timer.cancel()

    async def offload(self, work: Callable[[], T]) -> T:
        return work()

    async def advance(self, seconds: float) -> None:
        """Advance time. Must run on the loop of the waiting tasks."""
        target = self._now + seconds
        await _settle()
        while self._timers and self._timers[0][0] <= target:
            due, _, timer = heapq.heappop(self._timers)
            if timer.done():
                continue
            self._now = max(self._now, due)
            timer.set_result(None)
            await _settle()
        self._now = target
        await _settle()


async def _settle() -> None:
    """Let every task run until it waits for time or for a message."""
    for _ in range(64):
        await asyncio.sleep(0)
