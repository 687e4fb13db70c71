"""Poll a condition for a bounded time, and report the last state on failure."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(
    condition: Callable[[], T], seconds: float = 30.0, *, every: float = 0.1, seen: Callable[[], object] | None = None
) -> T:
    """Return the first true value of a condition.

    Args:
        condition: called again and again.
        seconds: how long.
        every: seconds between two calls.
        seen: returns the state for the failure message; without it, the last value is shown.

    Raises:
        AssertionError: the condition was never true.
    """
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"not reached after {seconds:.0f} s; last state: {seen() if seen else value!r}")
        time.sleep(every)
    return value
