"""Clocks: the time that an agent lives by, real or moved by a test.

Both run inside an asyncio loop. Invariant of the virtual clock: `advance` fires timers one after another in the order
of their times, and lets everything that a timer wakes run to its next wait before the next one fires, so that a test of
minutes takes milliseconds and always goes the same way.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable
from itertools import count
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Clock(Protocol):
    """What an agent needs of time."""

    def now(self) -> float:
        """Unix time, seconds."""
        ...

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        """Returns when the event is set or the time is over."""
        ...

    async def offload(self, work: Callable[[], T]) -> T:
        """Runs work that would keep the loop busy."""
        ...


class RealClock:
    """The machine's time."""

    def now(self) -> float:
        return time.time()

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        if event.is_set() or seconds <= 0:
            return
        try:
            # Unlike `wait_for`, this takes no task, and a stage wakes at every word that comes.
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            return

    async def offload(self, work: Callable[[], T]) -> T:
        return await asyncio.to_thread(work)


class VirtualClock:
    """Time that stands still until a test moves it."""

    def __init__(self, start: float = 1_000_000.0) -> None:
        self._now = start
        self._order = count()
        self._timers: list[tuple[float, int, asyncio.Future[Any]]] = []

    def now(self) -> float:
        return self._now

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
        """Moves time. Call it on the loop of those who wait."""
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
    """Lets every task run until it waits for time or for a message that nobody has sent."""
    for _ in range(64):
        await asyncio.sleep(0)
