"""Formulas: what a text must be for `eval` to see it while an answer is scored.

A formula is a literal, or arithmetic of numbers, names and calls of known functions of mathematics. Everything else is
a program: attributes, comprehensions, lambdas, subscripts, calls of any other name. So is a formula whose value would
be too large: `parse` bounds every number, sequence and power from below upwards without computing it. Pure functions.
Invariant: a text that cannot be parsed or bounded is refused, and what is evaluated is the tree that was checked.
"""

from __future__ import annotations

import ast
import builtins
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

MAX_CHARACTERS = 200_000
MAX_NODES = 60_000
MAX_DEPTH = 500
MAX_BITS = 16_384
"""Bits of the largest number: about 4,900 digits."""
MAX_ITEMS = 1_000_000
"""Characters and items of the longest sequence."""
MAX_POWERS = 2
"""Powers in the exponent of a power, itself included: `e**(-x**2)` has two."""
MAX_ARGUMENT_BITS = 10
"""Of the number that a factorial is taken of."""

_NODES = (
    ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Call, ast.keyword, ast.UnaryOp, ast.BinOp, ast.BoolOp,
    ast.Compare, ast.Tuple, ast.List, ast.Set, ast.Dict, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
)  # fmt: skip
_SEQUENCES = {"dict", "frozenset", "len", "list", "reversed", "set", "sorted", "str", "tuple"}
_NUMBERS = {
    "abs", "bool", "complex", "divmod", "float", "int", "max", "min", "round",
    # of sympy, whose parser writes the first four around every name and number
    "Float", "Integer", "Rational", "Symbol", "Abs", "Max", "Min", "Mod", "acos", "acosh", "acot", "acoth", "acsc",
    "arg", "asec", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "ceiling", "conjugate", "cos", "cosh", "cot",
    "coth", "csc", "csch", "erf", "erfc", "erfi", "expand", "factor", "floor", "fresnelc", "fresnels", "gcd", "im",
    "lcm", "li", "ln", "log", "re", "real_root", "root", "sec", "sech", "sign", "simplify", "sin", "sinc", "sinh",
    "sqrt", "tan", "tanh", "together", "And", "Chi", "Ci", "Derivative", "Ei", "Eq", "Ge", "Gt", "Heaviside",
    "Integral", "LambertW", "Le", "Lt", "Ne", "Not", "Or", "Piecewise", "Shi", "Si", "expint", "lowergamma", "polylog",
    "uppergamma",
}  # fmt: skip
_FACTORIALS = {"binomial", "factorial", "factorial2", "gamma"}
_CALLS = {*_SEQUENCES, *_NUMBERS, *_FACTORIALS, "exp", "pow", "range", "sum"}
_FROM_TEXT = {*_SEQUENCES, "int", "float", "complex", "bool", "max", "min", "Float", "Integer", "Rational", "Symbol"}
"""Functions that take a text. All others of sympy would parse it, as a formula of its own."""
_KEYWORDS = {"evaluate", "integer", "negative", "nonnegative", "positive", "real", "reverse"}
_EXPONENT = re.compile(r"[eE][+-]?(\d+)")


class Program(Exception):
    """A text that is more than a formula."""

    breach = "program"


@dataclass(frozen=True, slots=True)
class _Bound:
    """What a part of a formula is at most.

    Args:
        bits: of its number, or of the largest number in it.
        items: of its sequence, with everything inside; 0 for a number.
        powers: nested in each other's exponents.
        symbolic: it has a name without a value.
    """

    bits: float = 1.0
    items: float = 0.0
    powers: int = 0
    symbolic: bool = False


def parse(
    text: str, names: Mapping[str, Any] | None = None, *, only_names: bool = False, most_items: int = MAX_ITEMS
) -> ast.Expression:
    """Return the tree of a formula.

    Args:
        names: values that the formula may name.
        only_names: others are an error; else they are those of Python, or symbols.
        most_items: characters and items of the longest sequence.

    Raises:
        SyntaxError: it is no expression.
        NameError: there is no such name, and `only_names`.
        Program: it is more than a formula, or too large, with the reason.
    """
    if len(text) > MAX_CHARACTERS:
        raise Program(f"a formula of more than {MAX_CHARACTERS} characters")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except ValueError as error:  # a null character, or a number of too many digits
        raise SyntaxError(str(error)) from None
    except (RecursionError, MemoryError):
        raise Program("a formula that is too deep to be parsed") from None
    nodes = _nodes(tree)
    bounds: dict[ast.AST, _Bound] = {}
    for node in reversed(nodes):  # the parts before what they are part of
        if not isinstance(node, _NODES):
            raise Program(f"a {type(node).__name__}")
        if isinstance(node, ast.expr):
            if only_names and isinstance(node, ast.Name):
                bounds[node] = bound = _of_given_name(node.id, names or {})
            else:
                bounds[node] = bound = _bound(node, bounds, names or {})
            _check(bound, most_items)
    return tree


def _nodes(tree: ast.Expression) -> list[ast.AST]:
    """Return all nodes, the outer ones first.

    Raises:
        Program: there are too many, or they are too deep.
    """
    level: list[ast.AST] = [tree]
    found: list[ast.AST] = []
    for _ in range(MAX_DEPTH):
        found += level
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        if len(found) + len(level) > MAX_NODES:
            raise Program(f"a formula of more than {MAX_NODES} parts")
        if not level:
            return found
    raise Program(f"a formula that is more than {MAX_DEPTH} levels deep")


def _check(bound: _Bound, most_items: int) -> None:
    if not bound.bits <= MAX_BITS:
        raise Program(f"a number that may have more than {MAX_BITS} bits")
    if not bound.items <= most_items:
        raise Program(f"a sequence that may have more than {most_items} items")
    if bound.powers > MAX_POWERS:
        raise Program("a tower of powers")


def _bound(node: ast.expr, bounds: Mapping[ast.AST, _Bound], names: Mapping[str, Any]) -> _Bound:
    if isinstance(node, ast.Constant):
        return _of_value(node.value)
    if isinstance(node, ast.Name):
        return _of_name(node.id, names)
    if isinstance(node, ast.Call):
        return _of_call(node, bounds)
    if isinstance(node, ast.BinOp):
        return _OPERATORS.get(type(node.op), _either)(bounds[node.left], bounds[node.right])
    parts = [bounds[child] for child in ast.iter_child_nodes(node) if child in bounds]
    if isinstance(node, ast.Tuple | ast.List | ast.Set | ast.Dict):
        return _of_parts(parts, items=sum(1 + part.items for part in parts))
    return _of_parts(parts, items=max((part.items for part in parts), default=0.0))


def _of_parts(parts: Sequence[_Bound], *, items: float) -> _Bound:
    return _Bound(
        max((part.bits for part in parts), default=1.0),
        items,
        max((part.powers for part in parts), default=0),
        any(part.symbolic for part in parts),
    )


def _of_value(value: object) -> _Bound:
    """Return the bound of a value; that of an unknown one is symbolic."""
    if isinstance(value, int):
        return _Bound(max(1.0, math.log2(abs(value) or 1)))
    if isinstance(value, float | complex):
        return _Bound(max(1.0, math.log2(abs(value) + 1)) if abs(value) < math.inf else 1024.0)
    if isinstance(value, str | bytes):
        return _Bound(items=len(value))
    if isinstance(value, list | tuple | set | dict):
        return _Bound(bits=64.0, items=len(value))
    return _Bound(symbolic=value is not None)


def _of_name(name: str, names: Mapping[str, Any]) -> _Bound:
    """Return the bound of what a name stands for.

    Raises:
        Program: it is private, or a function that is not a known one: `sorted` would call it.
    """
    if name.startswith("_"):
        raise Program(f"the name {name[:40]}")
    value = names.get(name, getattr(builtins, name, None))
    if name not in _CALLS and callable(value) and not _is_expression(value):
        raise Program(f"the name {name[:40]}")
    return _of_value(value) if name in names or hasattr(builtins, name) else _Bound(symbolic=True)


def _of_given_name(name: str, names: Mapping[str, Any]) -> _Bound:
    """Return the bound of a name that has to be a given one. A function is no number, and no symbol either."""
    if name not in names and not name.startswith("_"):
        raise NameError(name)
    return replace(_of_name(name, names), symbolic=False)


def _is_expression(value: object) -> bool:
    """Return whether a value is one of sympy: a symbol can be called too, which makes an expression."""
    return type(value).__module__.startswith("sympy.") and not isinstance(value, type)


def _of_call(node: ast.Call, bounds: Mapping[ast.AST, _Bound]) -> _Bound:
    if not isinstance(node.func, ast.Name):
        raise Program("a call of something that is not a name")
    name = node.func.id
    if name not in _CALLS:
        raise Program(f"a call of {name[:40]}")
    if any(keyword.arg not in _KEYWORDS for keyword in node.keywords):
        raise Program(f"a call of {name} with other keywords than {', '.join(sorted(_KEYWORDS))}")
    if name == "Float" and len(node.args) > 1:
        raise Program("a Float of any precision")
    given = [*node.args, *(keyword.value for keyword in node.keywords)]
    texts = [part.value for part in given if isinstance(part, ast.Constant) and isinstance(part.value, str | bytes)]
    if texts and name not in _FROM_TEXT:
        raise Program(f"a text as argument of {name}")
    exponent = max((int(digits[:9]) for text in texts for digits in _EXPONENT.findall(str(text))), default=0)
    parts = [bounds[part] for part in given]
    if name == "pow":
        return _power(*parts[:2]) if len(parts) >= 2 else _of_parts(parts, items=0.0)
    if name == "exp":
        return _power(_Bound(2.0), parts[0]) if parts else _Bound()
    if name in ("range", *_FACTORIALS):
        return _of_growing_call(name, parts)
    items = sum(part.items for part in parts)
    if name == "len":
        return _Bound(math.log2(items + 2))
    found = _of_parts(parts, items=items if name in _SEQUENCES or name in ("max", "min", "sum") else 0.0)
    if name not in ("str", "int", "sum", *_NUMBERS):
        return found
    # A text has at most four bits a digit; a sum has as many bits more as its number of terms has.
    more = math.log2(items + 1) if name == "sum" else 4 * (items + exponent)
    bits = sum(part.bits for part in parts) + more
    return _Bound(bits, found.items + (bits if name == "str" else 0), found.powers, found.symbolic)


def _of_growing_call(name: str, parts: Sequence[_Bound]) -> _Bound:
    bits = max((part.bits for part in parts), default=1.0)
    if name == "range":
        if any(part.symbolic for part in parts) or bits > 2 * MAX_ARGUMENT_BITS:
            raise Program("a range that may be too long")
        return _Bound(bits, items=2.0**bits)
    symbolic = any(part.symbolic for part in parts)
    if not symbolic and bits > MAX_ARGUMENT_BITS:
        raise Program(f"the {name} of a number that may have more than {MAX_ARGUMENT_BITS} bits")
    return _Bound(bits * 2.0 ** min(bits, MAX_ARGUMENT_BITS), 0.0, max(part.powers for part in parts), symbolic)


def _either(left: _Bound, right: _Bound) -> _Bound:
    return _of_parts((left, right), items=max(left.items, right.items))


def _sum(left: _Bound, right: _Bound) -> _Bound:
    found = _of_parts((left, right), items=left.items + right.items)
    return _Bound(found.bits + 1, found.items, found.powers, found.symbolic)


def _product(left: _Bound, right: _Bound) -> _Bound:
    bits = left.bits + right.bits
    items = max(left.items, right.items) * 2.0 ** min(max(left.bits, right.bits), 64.0)
    return _Bound(bits, items, max(left.powers, right.powers), left.symbolic or right.symbolic)


def _quotient(left: _Bound, right: _Bound) -> _Bound:
    if left.items:
        raise Program("a text with % or /")  # formatting can make a text of any length
    return _product(left, right)


def _power(base: _Bound, exponent: _Bound) -> _Bound:
    # An exponent with a symbol is no exception: `0*x`, `x - x` and `0 and x` leave the number beside it.
    growth = 2.0 ** min(exponent.bits, 64.0)
    powers = max(base.powers, exponent.powers + 1)
    bits = max(base.bits * growth, exponent.bits)
    return _Bound(bits, max(base.items, exponent.items), powers, base.symbolic or exponent.symbolic)


def _shifted(left: _Bound, right: _Bound) -> _Bound:
    return _Bound(left.bits + 2.0 ** min(right.bits, 64.0), 0.0, max(left.powers, right.powers), left.symbolic)


_OPERATORS: dict[type[ast.operator], Callable[[_Bound, _Bound], _Bound]] = {
    ast.Add: _sum, ast.Sub: _sum, ast.Mult: _product, ast.MatMult: _product, ast.Div: _quotient,
    ast.FloorDiv: _quotient, ast.Mod: _quotient, ast.Pow: _power, ast.LShift: _shifted,
}  # fmt: skip
