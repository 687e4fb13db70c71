"""What counts as a formula, and how large it may be."""

from __future__ import annotations

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmgame.sandbox.formulas import MAX_BITS, Program, parse


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
        "10**1000",
        "e**(-x**2)",
        "exp(-x**2/2)*erf(x)",
        "5*x**3*exp(-12*x + 7)/6 + cos(3*x)",
        "exp(2*(3*x + 5)**2)",
        "exp(-(x - 3)**2/4)",
        "exp(-x**2/(2*3**2))",
        "exp(10*x**4 - 3*x + 2)",
        "factorial(20)",
        "[0]*8",
        "list(range(100))",
        str(list(range(10_000))),
        "+".join("1" * 400),
    ],
)
def test_formulas_and_literals_are_formulas(text: str) -> None:
    assert isinstance(parse(text), ast.Expression)


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
        "max(**{})",
        "sorted(['1'], key=eval)",
        "sin(\"__import__('os')\")",
        "unknown(1)",
        "test()",
        "Float('0.1', 10**8)",
    ],
)
def test_all_else_is_a_program(text: str) -> None:
    with pytest.raises(Program):
        parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9",
        "10**10**10",
        "9**99999",
        "(9**9)**(9**9)",
        "pow(9, pow(9, 9))",
        "Integer (9 )**Integer (9 )**Integer (9 )",
        "x**x**x**x",
        "exp(10**6)",
        "2**(10**9 + (0 and x))",
        "2**(10**9 + 0*x)",
        "exp(10**9 + x - x)",
        "pow(9, 10**9 + x*0)",
        "1 << 10**9 + 0*x",
        "1 << 10**9",
        "sum([9])**(9**9)",
        "int('9' * 5000)",
        "Float('1e999999999')",
        "Rational('1E-999999999')",
        "factorial(10**7)",
        "factorial(factorial(9))",
        "range(10**12)",
        "sum(range(42000000))",
        "range(x)",
        "'a' * 10**10",
        "[0] * 10**9",
        "[[0] * 10000] * 10000",
        "max([1] * 1000, [2]) * 10**6",
        "str(10**4000) * 10**6",
        "'%1000000000d' % 1",
        "-" * 2_954 + "1",
        "1+" * 600 + "1",
        "1," * 100_000,
    ],
)
def test_what_would_be_too_large_is_refused_before_it_is_computed(text: str) -> None:
    with pytest.raises(Program):
        parse(text)


@pytest.mark.parametrize("text", ["", "no python at all", "1 +", "(" * 8_000, "import os", "\0", "9" * 5_000])
def test_what_is_no_expression_is_a_syntax_error(text: str) -> None:
    with pytest.raises(SyntaxError):
        parse(text)


def test_values_that_a_formula_names_are_bounded_too() -> None:
    parse("n + 1", {"n": 8})
    for names in ({"n": 10**9}, {"n": "x" * 10**6}):
        with pytest.raises(Program):
            parse("9**n * 9**n * n*1000", names)


SCALARS = st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)


@given(st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4), max_leaves=20))
def test_every_literal_is_a_formula(value: object) -> None:
    assert ast.literal_eval(parse(repr(value))) == value


NUMBERS = st.integers(0, 99).map(str)
FORMULAS = st.recursive(
    NUMBERS,
    lambda inner: st.tuples(inner, st.sampled_from(["+", "-", "*", "**", "//", "%", "<<"]), inner).map(
        lambda part: f"({part[0]}){part[1]}({part[2]})"
    ),
    max_leaves=6,
)


@given(FORMULAS)
def test_no_number_of_a_formula_is_larger_than_its_bound(text: str) -> None:
    try:
        tree = parse(text)
        value = eval(compile(tree, "<answer>", "eval"))  # noqa: S307 — its size is what is tested
    except (Program, ZeroDivisionError, ValueError, OverflowError):
        return
    assert isinstance(value, float | complex) or value.bit_length() <= MAX_BITS
