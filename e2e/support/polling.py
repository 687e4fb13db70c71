"""Waiting for a cluster: ask again until it is so, for a bounded time, and say what was seen last."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(
    condition: Callable[[], T], seconds: float = 30.0, *, every: float = 0.1, seen: Callable[[], object] | None = None
) -> T:
    """The first true value of a condition.

    Args:
        condition: asked again and again.
        seconds: to give it.
        every: seconds between two questions.
        seen: what to show when the time is up; without it, the last value.

    Raises:
        AssertionError: it never was true.
    """
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"not so after {seconds:.0f} s; seen last: {seen() if seen else value!r}")
        time.sleep(every)
    return value
