"""Expressions: while an answer is scored, `eval` accepts formulas and literals, and refuses programs.

Many scorers of reasoning-gym pass the answer's text to `eval`, or to sympy, which calls `eval`. The guard first parses
the text: literals, operators, names, and calls of plain names are formulas; attributes, comprehensions, lambdas,
subscripts, names with a leading underscore and dangerous builtins are programs. It is the second line of defence: a
program that passed it would still run in the sandbox, but could forge its own score. Outside of `guarded()` nothing is
changed.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

_FORMULA = (
    ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Call, ast.keyword, ast.UnaryOp, ast.BinOp, ast.BoolOp,
    ast.Compare, ast.Tuple, ast.List, ast.Set, ast.Dict, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
)  # fmt: skip
_HARMLESS_BUILTINS = {
    "abs", "bool", "complex", "dict", "divmod", "False", "float", "frozenset", "int", "len", "list", "max", "min",
    "None", "pow", "range", "reversed", "round", "set", "sorted", "str", "sum", "True", "tuple",
}  # fmt: skip
_PROGRAMS_OF_SYMPY = frozenset(
    {"lambdify", "preview", "source", "init_printing", "init_session", "interactive_traversal"}
)
_LIBRARIES = frozenset({"collections"})
"""Modules that call `eval` on their own code: a module imported late may define a namedtuple."""


class Program(Exception):
    """An answer that contains a program."""

    breach = "program"


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


def why_program(text: str, known: frozenset[str] | set[str] = frozenset()) -> str:
    """Return why a text is more than a formula; empty when it is a formula, or not Python.

    Args:
        text: the argument of `eval`.
        known: names that the caller of `eval` defines itself, which hide a builtin of the same name.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    for node in ast.walk(tree):
        if not isinstance(node, _FORMULA):
            return f"a {type(node).__name__}"
        if isinstance(node, ast.Call) and not isinstance(node.func, ast.Name):
            return "a call of something that is not a name"
        if isinstance(node, ast.Name):
            name = node.id
            if name.startswith(("_", "plot")) or name in _PROGRAMS_OF_SYMPY:
                return f"the name {name[:40]}"
            if hasattr(builtins, name) and name not in _HARMLESS_BUILTINS and name not in known:
                return f"the name {name[:40]}"
    return ""


def _guard(original: Callable[..., Any], found: list[str]) -> Callable[..., Any]:
    def guarded_eval(source: Any, globals_: Any = None, locals_: Any = None, /) -> Any:
        frame = sys._getframe(1)
        if globals_ is None:
            globals_, locals_ = frame.f_globals, frame.f_locals
        if isinstance(source, str) and frame.f_globals.get("__name__") not in _LIBRARIES:
            known = {name for scope in (globals_, locals_ or {}) for name, value in _own(scope)}
            reason = why_program(source, known)
            if reason:
                found.append(reason)
                raise Program(reason)
        return original(source, globals_, locals_)

    return guarded_eval


def _own(scope: Any) -> Iterator[tuple[str, Any]]:
    """Iterate over builtin names that have a different value in this scope."""
    for name in _builtin_names:
        if name in scope and scope[name] is not getattr(builtins, name, None):
            yield name, scope[name]


_builtin_names = tuple(dir(builtins))
