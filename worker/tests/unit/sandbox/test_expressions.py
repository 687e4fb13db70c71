"""What `eval` takes for a formula while an answer is scored."""

from __future__ import annotations

import builtins
import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmgame.sandbox.expressions import Program, guarded, why_program


@pytest.mark.parametrize(
    "text",
    [
        "1 + 2 * (3 - 4) / 5 ** 2",
        "-7",
        "[['Q', '_'], ['_', 'Q']]",
        "{'a': (1, 2)}",
        "Integer (2 )*Symbol ('x' )**Integer (3 )",
        "sqrt(2) + Rational(1, 3)",
        "max(1, 2, sum([3, 4]))",
        "1 < 2 and not 3 == 4",
        "  12",
    ],
)
def test_formulas_and_literals_are_formulas(text: str) -> None:
    assert why_program(text) == ""


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "open('x')",
        "exec('1')",
        "eval('1')",
        "getattr(1, 'real')",
        "(1).real",
        "[x for x in (1,)]",
        "(lambda: 1)()",
        "f'{1}'",
        "[1][0]",
        "(1).__class__",
        "_hidden",
        "lambdify((), 'x')",
        "print",
        "globals()",
        "(yield)",
        "(x := 1)",
        "max(*[1])",
        "max(1, 2)(3)",
    ],
)
def test_all_else_is_a_program(text: str) -> None:
    assert why_program(text) != ""


@pytest.mark.parametrize("text", ["", "no python at all", "1 +", "(" * 1000, "import os", "\0", "x" * 100_000])
def test_what_is_no_expression_is_left_to_eval_to_refuse(text: str) -> None:
    assert why_program(text) == ""


def test_a_program_is_reported_even_when_the_scorer_swallows_the_exception() -> None:
    def scorer() -> float:
        try:
            return float(eval("__import__('os').getpid()"))  # noqa: S307 — what scorers do
        except Exception:  # noqa: BLE001 — what scorers do
            return 0.5

    with pytest.raises(Program, match="the answer contains"), guarded():
        scorer()
    assert scorer() > 0.5, "outside the guard nothing has changed"


def test_formulas_see_the_names_of_the_scorer_around_them() -> None:
    secret = 20
    with guarded():
        assert eval("secret + 1") == 21  # noqa: S307 — what scorers do
        assert eval("x * 2", {"x": 4}) == 8  # noqa: S307 — what scorers do
    assert secret == 20


def test_other_errors_pass_through_and_eval_is_given_back() -> None:
    original = builtins.eval
    with pytest.raises(ZeroDivisionError), guarded():
        eval("1 / 0")  # noqa: S307 — what scorers do
    assert builtins.eval is original


def test_libraries_may_define_their_classes() -> None:
    with guarded():
        assert collections.namedtuple("Pair", "left right")(1, 2).right == 2


SCALARS = st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)


@given(st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4), max_leaves=20))
def test_every_literal_is_a_formula(value: object) -> None:
    assert why_program(repr(value)) == ""
