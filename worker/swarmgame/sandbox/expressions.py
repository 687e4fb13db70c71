"""Expressions: while an answer is scored, `eval` accepts formulas, and refuses programs.

Many scorers of reasoning-gym pass the answer's text to `eval`, or to sympy, which calls `eval`. The guard parses and
bounds the text first (`formulas`), and evaluates the tree that it has checked; what it cannot parse or bound, it
refuses. It is the second line of defence: a program that passed it would still run in the sandbox, in a process of its
own, but could forge its own score. Outside of `guarded()` nothing is changed.
"""

from __future__ import annotations

import builtins
import contextlib
import sys
from collections import ChainMap
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

from swarmgame.sandbox.formulas import Program, parse

_LIBRARIES = frozenset({"collections"})
"""Modules that call `eval` on their own code: a module imported late may define a namedtuple."""


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Make `eval` refuse programs in its context. Not safe with several threads.

    Raises:
        Program: at the end, if `eval` met a program. Scorers swallow exceptions, so one raised in `eval` may be lost.
    """
    found: list[str] = []
    original = builtins.eval
    builtins.eval = _guard(original, found)
    try:
        yield
    except Exception:
        if not found:
            raise
    finally:
        builtins.eval = original
    if found:
        raise Program(f"the answer contains {found[0]}")


def _guard(original: Callable[..., Any], found: list[str]) -> Callable[..., Any]:
    def guarded_eval(source: Any, globals_: Any = None, locals_: Any = None, /) -> Any:
        frame = sys._getframe(1)
        if globals_ is None:
            globals_, locals_ = frame.f_globals, frame.f_locals if locals_ is None else locals_
        if frame.f_globals.get("__name__") in _LIBRARIES:
            return original(source, globals_, locals_)
        try:
            code = _checked(source, globals_, globals_ if locals_ is None else locals_)
        except Program as program:
            found.append(str(program))
            raise
        return original(code, globals_, locals_)

    return guarded_eval


def _checked(source: Any, globals_: Any, locals_: Any) -> CodeType:
    """Return the code of a formula.

    Raises:
        SyntaxError: the source is no expression, as `eval` would raise.
        Program: it is more than a formula.
    """
    if not isinstance(source, str):
        raise Program(f"a program as {type(source).__name__}")
    try:
        return compile(parse(source, ChainMap(locals_, globals_)), "<answer>", "eval")
    except (RecursionError, MemoryError):
        raise Program("a formula that is too deep to be compiled") from None
