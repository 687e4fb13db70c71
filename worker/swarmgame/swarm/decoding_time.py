"""Decoding time: how much of a round may be spent on decoding bodies of peers that do not count.

Bodies are decoded while the round goes on, beside our own work. Each of these peers may send as much as its memory
allows, and identities are free; so all of them together have a tenth of the usual round. At least one body is decoded
in each round, and the one with which the time is over is decoded completely.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from time import thread_time

SHARE = 0.1
LEAST_SECONDS = 0.02
WINDOW = 9


class DecodingTime:
    """The time of one node."""

    def __init__(self) -> None:
        self._rounds: deque[float] = deque(maxlen=WINDOW)
        self._began: float | None = None
        self._spent = 0.0

    def begin_round(self, now: float) -> None:
        """Note that a round begins.

        Args:
            now: by the clock of the node.
        """
        if self._began is not None:
            self._rounds.append(now - self._began)
        self._began, self._spent = now, 0.0

    @property
    def is_over(self) -> bool:
        """Whether the time of this round is spent. Before the first round has ended there is no bound."""
        return bool(self._rounds) and self._spent >= max(LEAST_SECONDS, SHARE * median(self._rounds))

    @contextmanager
    def measured(self, *, counts: bool) -> Iterator[None]:
        """Add the processor time of a block of this thread, unless it is for a peer that counts: what other threads and
        processes take meanwhile is not its author's.
        """
        began = thread_time()
        try:
            yield
        finally:
            if not counts:
                self._spent += thread_time() - began
