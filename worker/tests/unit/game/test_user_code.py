"""What the author's code raises and returns: the author's own line, and every kind of single number."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from swarmgame.user_code import CodeError, as_number, definition, describe, kind_of, printable


def module_of(path: Path, text: str) -> ModuleType:
    path.write_text(text)
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1.0),
        (True, 1.0),
        (0.5, 0.5),
        (Fraction(1, 2), 0.5),
        (Decimal("0.25"), 0.25),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3.0),
        (np.bool_(True), 1.0),
        (np.array(2.0), 2.0),
        (torch.tensor(1.5), 1.5),
        (torch.tensor(True), 1.0),
        (torch.tensor(0.5, dtype=torch.bfloat16, requires_grad=True), 0.5),
        (10**400, math.inf),
        (-(10**400), -math.inf),
    ],
)
def test_every_kind_of_single_number_counts(value: object, expected: float) -> None:
    assert as_number(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        None,
        "1.0",
        b"1",
        1j,
        [1.0],
        {},
        object(),
        np.array([1.0]),
        np.array("1.0"),
        np.array(None, dtype=object),
        np.complex64(1),
        np.datetime64("2026-01-01"),
        torch.tensor([1.0]),
        torch.tensor(1j),
    ],
)
def test_text_arrays_and_other_things_are_no_number(value: object) -> None:
    assert as_number(value) is None


def test_nan_stays_nan() -> None:
    assert math.isnan(as_number(np.float64("nan")) or 0.0)


def test_an_error_names_the_authors_own_line_below_which_a_library_failed(tmp_path: Path) -> None:
    module = module_of(
        tmp_path / "author.py", "import json\n\ndef score(question, text):\n    return json.loads(text)\n"
    )
    with pytest.raises(ValueError) as caught:  # noqa: PT011 — whichever json raises
        module.score({}, "{")
    error = describe(caught.value, module.score)
    assert error.kind == "JSONDecodeError"
    assert error.where == f"{tmp_path}/author.py:4"
    assert "in score" in error.trace
    assert "json/decoder.py" not in error.trace


def test_a_wrong_number_of_arguments_is_at_the_functions_first_line(tmp_path: Path) -> None:
    module = module_of(tmp_path / "author.py", "\ndef score(question):\n    return 1.0\n")
    with pytest.raises(TypeError) as caught:
        module.score({}, "x")
    caught.value.__traceback__ = None
    error = describe(caught.value, module.score)
    assert (error.where, error.trace) == (f"{tmp_path}/author.py:2", "")


def test_a_syntax_error_is_where_the_file_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(SyntaxError) as caught:
        compile("x = 1\ny = (\n", str(tmp_path / "author.py"), "exec")
    assert describe(caught.value).where == f"{tmp_path}/author.py:2"


def test_an_exception_whose_text_raises_is_still_described() -> None:
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert describe(Unspeakable()) == CodeError("Unspeakable", "")


def test_control_characters_of_a_model_do_not_reach_the_terminal() -> None:
    assert describe(ValueError("\x1b[31mred\nline")).message == " [31mred line"
    assert printable("a\x1b\nb", 10, lines=True) == "a \nb"
    assert printable("x" * 600, 500) == "x" * 499 + "…"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "None"), ("good", "'good' (str)"), (2.5, "2.5"), (np.zeros((2, 3)), "ndarray of shape (2, 3)")],
)
def test_a_value_is_described_by_what_it_is(value: object, shown: str) -> None:
    assert kind_of(value) == shown


def test_a_callable_object_is_defined_at_its_call(tmp_path: Path) -> None:
    text = "class Score:\n    def __call__(self, question, text):\n        return 1.0\n\nscore = Score()\n"
    score: Callable[..., float] = module_of(tmp_path / "author.py", text).score
    assert definition(score) == f"{tmp_path}/author.py:2"
    assert definition(3) == ""
