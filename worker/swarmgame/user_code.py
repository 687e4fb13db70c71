"""What the code of a game's author returns and raises, made readable and safe to show.

`describe` finds the author's own line in a traceback: the last frame that is neither in this package nor in Python or
an installed library. Texts of exceptions may contain what a model wrote, so `printable` removes control characters
before they reach a terminal. `as_number` accepts every kind of single number that authors return. It runs inside the
sandbox too, so it imports nothing but the standard library.
"""

from __future__ import annotations

import math
import numbers
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import CodeType
from typing import Any

MAX_TEXT = 500
MAX_TRACE = 2000
MAX_FRAMES = 8
_OWN = f"{Path(__file__).resolve().parent}{os.sep}"
_PYTHON = tuple({f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "platstdlib")})
_LIBRARIES = tuple({f"{sysconfig.get_path(name)}{os.sep}" for name in ("purelib", "platlib")})


@dataclass(frozen=True, slots=True)
class CodeError:
    """An exception of the author's code.

    Args:
        kind: name of its class.
        message: its text, at most 500 characters.
        where: `file:line` of the author's code; empty where it is not known.
        trace: the frames of the author's code, as Python prints them; at most the last 8, and 2,000 characters.
    """

    kind: str
    message: str
    where: str = ""
    trace: str = ""

    def __str__(self) -> str:
        text = f"{self.kind}: {self.message}" if self.message else self.kind
        return f"{text} at {short_path(self.where)}" if self.where else text

    @property
    def below(self) -> str:
        """The trace as further lines of a message; empty without one."""
        return f"\n{self.trace}" if self.trace else ""


def describe(error: BaseException, called: Callable[..., Any] | None = None) -> CodeError:
    """Return an exception as text; never raises, although its `__str__` may.

    Args:
        called: the author's function. An error of the call itself, such as a wrong number of arguments, has no frame
            of it; its first line is then the place.
    """
    kind = printable(type(error).__name__, 100)
    try:
        message = printable(str(error), MAX_TEXT)
    except Exception:  # noqa: BLE001 — its `__str__` is the author's code, or a model's
        message = ""
    if isinstance(error, SyntaxError) and error.filename:
        return CodeError(kind, message, printable(f"{error.filename}:{error.lineno}", MAX_TEXT))
    frames = traceback.extract_tb(error.__traceback__, limit=-200)
    first = _first_author_frame(frames)
    if first is None:
        return CodeError(kind, message, printable(definition(called) if called is not None else "", MAX_TEXT))
    own = [frame for frame in frames if _rank(frame.filename) == _rank(frames[first].filename)]
    trace = "".join(traceback.format_list(own[-MAX_FRAMES:]))
    where = f"{own[-1].filename}:{own[-1].lineno}"
    return CodeError(kind, message, printable(where, MAX_TEXT), printable(trace, MAX_TRACE, lines=True).rstrip())


def definition(function: object) -> str:
    """Return `file:line` of a function or of an object's `__call__`; empty where Python does not know it."""
    plain = getattr(function, "__func__", function)
    code = getattr(plain, "__code__", None)
    if not isinstance(code, CodeType):
        code = getattr(vars(type(function)).get("__call__"), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if isinstance(code, CodeType) else ""


def as_number(value: object) -> float | None:
    """Return a single number as a float; None for anything else.

    Python's numbers, bool and Decimal count, and so do scalars and 0-d arrays or tensors of numpy, torch and their
    like. Text, complex numbers and dates do not. NaN and infinity are returned: the caller decides.
    """
    try:
        if not isinstance(value, numbers.Real | Decimal):
            item = getattr(value, "item", None)
            value = item() if getattr(value, "shape", None) == () and callable(item) else None
        return _as_float(value) if isinstance(value, numbers.Real | Decimal) else None
    except Exception:  # noqa: BLE001 — the methods of a value are its author's code; a signalling NaN raises too
        return None


def kind_of(value: object) -> str:
    """Return what a value is, for a message: `None`, `'good' (str)`, `Tensor of shape (3,)`."""
    if value is None:
        return "None"
    try:
        shape = getattr(value, "shape", None)
        if isinstance(shape, tuple):
            return f"{type(value).__name__} of shape {tuple(shape)}"
        text = printable(repr(value), 60)
    except Exception:  # noqa: BLE001 — its `shape` and `__repr__` are the author's code
        return type(value).__name__
    return text if isinstance(value, int | float) else f"{text} ({type(value).__name__})"


def printable(text: str, limit: int, *, lines: bool = False) -> str:
    """Return a text without control characters, at most `limit` characters long; newlines stay where `lines`."""
    cleaned = "".join(c if c.isprintable() or (lines and c == "\n") else " " for c in text[: limit + 1])
    return cleaned if len(cleaned) <= limit else f"{cleaned[: limit - 1]}…"


def short_path(where: str) -> str:
    """Return a path below the working directory relative to it, any other as it is."""
    folder = f"{Path.cwd()}{os.sep}"
    return where.removeprefix(folder) if folder != os.sep * 2 else where


def _first_author_frame(frames: Sequence[traceback.FrameSummary]) -> int | None:
    """Return the index of the first frame of the author's code; None where there is none.

    A game that is installed like a library counts, but only where no other file does.
    """
    for accepted in (0, 1):
        for index, frame in enumerate(frames):
            if _rank(frame.filename) == accepted:
                return index
    return None


def _rank(filename: str) -> int:
    """Return 0 for the author's files, 1 for an installed library, 2 for Python and this package."""
    if filename.startswith(("<", _OWN)):
        return 2
    if filename.startswith(_LIBRARIES):
        return 1
    return 2 if filename.startswith(_PYTHON) or filename == sys.executable else 0


def _as_float(value: numbers.Real | Decimal) -> float:
    try:
        return float(value)
    except OverflowError:
        return -math.inf if str(value).startswith("-") else math.inf
