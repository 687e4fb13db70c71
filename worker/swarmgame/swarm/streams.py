"""Streams: how many bodies are fetched at once, so that an author that sends slowly holds up no fetch from another.

Anchors, other peers that count, and peers that do not count have places of their own. A fetch from a peer that is no
anchor has its place for a second; then it goes on as a slow one, of which there are few, and a next fetch begins.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from swarmgame.game.state import PeerId
from swarmgame.swarm.clock import Clock

T = TypeVar("T")

PLACES = 4
"""Fetches at once from peers of one kind."""
HOLD_SECONDS = 1.0
"""For so long a fetch from a peer that is no anchor has its place; a body of 256 KiB takes less at the lowest rate."""


class TooSlow(Exception):
    """A fetch takes long, and so many others do that it is given up."""


class Crowded(Exception):
    """So many fetches wait already that this one does not begin."""


@dataclass
class _Author:
    places: asyncio.Semaphore
    fetches: int = 0


@dataclass
class Streams:
    """Places for the fetches from one kind of peers.

    Args:
        per_author: most places of one author.
        slow: fetches that may go on without a place; None: a fetch keeps its place until its end.
        most: fetches that may go on or wait; None: any number.
    """

    clock: Clock
    per_author: int = PLACES
    slow: int | None = None
    most: int | None = None
    _places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(PLACES))
    _authors: dict[PeerId, _Author] = field(default_factory=dict)
    _slow: int = 0
    _fetches: int = 0

    async def run(self, author: PeerId, fetch: Callable[[], Awaitable[T]]) -> T:
        """Fetch from an author when a place is free.

        Raises:
            TooSlow: given up.
            Crowded: not begun.
        """
        if self.slow is None:
            async with self._places:
                return await fetch()
        if self.most is not None and self._fetches >= self.most:
            raise Crowded
        of_author = self._authors.setdefault(author, _Author(asyncio.Semaphore(self.per_author)))
        of_author.fetches += 1
        self._fetches += 1
        try:
            async with of_author.places:
                return await self._run_in_time(fetch, self.slow)
        finally:
            of_author.fetches -= 1
            self._fetches -= 1
            if not of_author.fetches:
                del self._authors[author]

    async def _run_in_time(self, fetch: Callable[[], Awaitable[T]], slow: int) -> T:
        ended = asyncio.Event()
        async with self._places:
            fetching = asyncio.ensure_future(fetch())
            fetching.add_done_callback(lambda _: ended.set())
            try:
                await self.clock.wait(ended, HOLD_SECONDS)
            except BaseException:
                fetching.cancel()
                raise
        try:
            if not fetching.done():
                if self._slow >= slow:
                    raise TooSlow
                self._slow += 1
                try:
                    await asyncio.wait([fetching])
                finally:
                    self._slow -= 1
            return fetching.result()
        finally:
            fetching.cancel()
