"""A calculator of Python's arithmetic: `12*(3+4)`, `sqrt(2)`, `max(3, 5)/7`.

The expression is what a policy wrote, so it is parsed and bounded before it is evaluated (`sandbox.formulas`), in the
sandbox, in a process of its own. Results and errors are the same texts in every version of Python, since peers compare
them: a number that is not whole has as many digits as the configuration tells, and errors have fixed sentences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from swarmgame.config import Config
from swarmgame.environments.toolbox import CallsConfig, ToolEnvironment, ToolName
from swarmgame.game.environment import Tool
from swarmgame.sandbox.formulas import Program, parse

LONGEST = 1000
"""Characters of an expression."""
_MOST_BITS = 1024
"""Of a whole number as a result: 309 digits."""
_MOST_PLACES = 300
_MOST_ITEMS = 2**17
"""Of a sequence: an expression has room for some 60, and a call that takes seconds would stop all of its request."""


def _rounded(number: Any, places: int = 0) -> Any:
    """Round as Python does; without a bound on the places, a power of ten of that size would be computed."""
    if abs(places) > _MOST_PLACES:
        raise ValueError
    return round(number, places) if places else round(number)


def _sum(items: Any, start: Any = 0) -> Any:
    """Add numbers, exactly where all are whole and else rounded once: Python's own rounds otherwise before 3.12, and
    takes quadratic time for sequences.
    """
    numbers = [*items, start]
    kinds = set(map(type, numbers))
    if not kinds <= {bool, int, float}:
        raise TypeError
    return math.fsum(numbers) if float in kinds else sum(numbers)


_NAMES: dict[str, Any] = {
    **{name: getattr(math, name) for name in (
        "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "cos", "cosh", "e", "erf", "exp",
        "factorial", "floor", "gamma", "gcd", "lcm", "log", "pi", "sin", "sinh", "sqrt", "tan", "tanh",
    )},
    "abs": abs, "ceiling": math.ceil, "float": float, "int": int, "ln": math.log, "max": max, "min": min, "pow": pow,
    "range": range, "round": _rounded, "sum": _sum,
}  # fmt: skip


class CalculatorConfig(Config):
    """How results are written."""

    digits: Annotated[int, Field(ge=1, le=15)] = 10
    """Significant digits of a result that is not whole."""


class Calculator(Tool):
    """Evaluates an expression of numbers, operators and functions, such as `sqrt`, `log` and `max`."""

    Config = CalculatorConfig
    config: CalculatorConfig
    parameters = {"expression": "numbers, operators and functions as Python writes them"}  # noqa: RUF012 — its type says so

    def call(self, arguments: Mapping[str, Any]) -> str:
        return calculated(arguments["expression"], self.config.digits)


class CalculatorEnvironmentConfig(CallsConfig, CalculatorConfig):
    """The calculator, and how it is called."""

    name: ToolName = "calculator"
    """The name that the policy calls it by."""


class CalculatorEnvironment(ToolEnvironment):
    """A calculator for the policy. A turn without a call is the answer, which `game.rewards` score."""

    Config = CalculatorEnvironmentConfig
    config: CalculatorEnvironmentConfig

    def make_tools(self) -> Mapping[str, Tool]:
        return {self.config.name: Calculator(CalculatorConfig(digits=self.config.digits), self.context)}


def calculated(expression: object, digits: int) -> str:
    """Return the value of an expression as a text; an error as a text that begins with `error:`.

    Args:
        expression: untrusted.
        digits: significant ones of a value that is not whole.
    """
    if not isinstance(expression, str) or len(expression) > LONGEST:
        return f"error: the expression is no text of at most {LONGEST} characters"
    try:
        tree = parse(expression, _NAMES, only_names=True, most_items=_MOST_ITEMS)
        value = eval(compile(tree, "<call>", "eval"), {"__builtins__": {}}, dict(_NAMES))  # noqa: S307 — it is bounded
        return _as_text(value, digits)
    except Program as program:
        return f"error: not calculated: {program}"
    except SyntaxError:
        return "error: this is no expression"
    except ZeroDivisionError:
        return "error: division by zero"
    except OverflowError:
        return "error: the result is too large"
    except NameError:
        return "error: there is no such name"
    except Exception:  # noqa: BLE001 — of the policy's expression; texts of Python's own differ between versions
        return "error: a function or an operator does not take these values"


def _as_text(value: object, digits: int) -> str:
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        return str(value) if value.bit_length() <= _MOST_BITS else "error: the result is too large"
    if not isinstance(value, float):
        return "error: the result is no number"
    return f"{value:.{digits}g}" if math.isfinite(value) else "error: the result is not finite"
