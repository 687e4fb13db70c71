"""Code that a test runs inside the sandbox in place of a scorer: it does what a hostile answer would do."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def system_call(number: int, *arguments: Any) -> int:
    """Make a system call; return its result, or its error number below 0."""
    converted = [ctypes.c_long(part) if isinstance(part, int) else part for part in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *converted))
    return result if result >= 0 else -ctypes.get_errno()


def attempt(code: str) -> Any:
    """Run a program; return its variable `done`, or the exception as text."""
    names: dict[str, Any] = {"os": os, "sys": sys, "time": time, "ctypes": ctypes, "system_call": system_call}
    try:
        exec(code, names)  # noqa: S102 — what an attack does
    except Exception as error:  # noqa: BLE001 — the test reads it
        return f"{type(error).__name__}: {error}"[:200]
    return names.get("done")


def spend(question: dict[str, Any], answer: str) -> float:
    """Score an answer `SECONDS TEXT` by its length, after that much processor time."""
    seconds, _, text = answer.partition(" ")
    until = time.process_time() + float(seconds)
    while time.process_time() < until:
        pass
    return float(len(text))


def as_integer(question: dict[str, Any], answer: str) -> int:
    """Score an answer by the number in it."""
    return int(answer)


_seen: list[str] = []


def careless(answer: str) -> list[Any]:
    """Score an answer as a careless scorer would: what looks like a program is run, and every error is swallowed.

    Returns:
        its process, what the answer is worth, and how many answers this process has run before it.
    """
    worth: Any = len(answer)
    before = len(_seen)
    if "(" in answer:
        try:
            worth = eval(answer, {"seen": _seen})  # noqa: S307 — what an attack needs
        except:  # noqa: E722 — scorers do this
            worth = -1
    return [os.getpid(), worth, before]


def endless(answer: str) -> int:
    """Take for ever, or much memory, without running anything."""
    while answer == "for ever":
        pass
    return len(b"x" * (200 * 2**20)) if answer == "much memory" else len(answer)


_prepared: list[str] = []


def prepare(name: str) -> None:
    """Make what the next answer takes."""
    _prepared[:] = [name]


def take(name: str, answer: str) -> str | None:
    """Score an answer by taking what was prepared, which only one can; None where it is gone."""
    taken = _prepared.pop() if _prepared else None
    if answer == "eval":
        eval("1")  # noqa: S307 — ends a trial
    return taken
