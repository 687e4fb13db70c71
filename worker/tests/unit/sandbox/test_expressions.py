"""What `eval` takes for a formula while an answer is scored."""

from __future__ import annotations

import builtins
import collections

import pytest

from swarmgame.sandbox.expressions import guarded
from swarmgame.sandbox.formulas import Program


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


@pytest.mark.parametrize("source", [b"1 + 1", bytearray(b"1"), compile("1 + 1", "<string>", "eval")])
def test_a_source_that_is_no_text_is_refused(source: object) -> None:
    with pytest.raises(Program, match="the answer contains a program as"), guarded():
        eval(source)  # noqa: S307 — what scorers do


def test_a_text_that_is_too_deep_is_never_evaluated() -> None:
    done: list[int] = []

    def run() -> int:
        done.append(1)
        return 1

    for depth in (600, 2_900, 2_954, 6_000, 50_000):
        with pytest.raises(Program), guarded():
            eval(f"[run(),{'-' * depth}1]")  # noqa: S307 — what scorers do
    assert done == []


def test_a_text_that_is_no_expression_raises_what_eval_raises() -> None:
    for text in ("", "no python at all", "1 +", "import os", "\0", "(" * 8_000):
        with pytest.raises(SyntaxError), guarded():
            eval(text)  # noqa: S307 — what scorers do


def test_a_function_of_the_scorer_is_neither_called_nor_passed_on() -> None:
    called: list[str] = []
    for text in (
        "called.append",
        "sorted(['x'], key=note)",
        "[note][0]('x')",
        "note('x')",
        "max(['x', 'y'], key=note)",
    ):
        note = called.append
        with pytest.raises(Program), guarded():
            eval(text, {"note": note, "called": called})  # noqa: S307 — what scorers do
    assert called == []
