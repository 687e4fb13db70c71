"""Tests in `e2e` that expect a condition's reason wait for it: a condition may pass through several reasons of one
status, so that a check after the wait for the status alone may see an earlier one.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

E2E = Path(__file__).resolve().parents[3] / "e2e"

CHECKED_AT_ONCE = 'assert game.wait("Suspended", seconds=60)["reason"] == "ScaledToZero"'
CHECKED_LATER = """
found = game.wait("Registered", seconds=300)
assert found["reason"] == "AllRegistered"
"""
WAITED_FOR = """
found = game.wait("Ready", "False", "Unschedulable")
assert "gpu" in found["message"]
game.wait("Registered", reason="AllRegistered")
"""


def reasons_not_waited_for(text: str) -> list[int]:
    """Return the lines that compare the reason of a condition whose status alone was waited for."""
    tree = ast.parse(text)
    named = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and _waits_for_a_status(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        and isinstance(node.ops[0], ast.Eq)
        and isinstance(node.left, ast.Subscript)
        and ast.unparse(node.left.slice) == "'reason'"
        and (
            _waits_for_a_status(node.left.value)
            or (isinstance(node.left.value, ast.Name) and node.left.value.id in named)
        )
    ]


def _waits_for_a_status(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "wait"
        and len(node.args) < 3
        and all(keyword.arg != "reason" for keyword in node.keywords)
    )


@pytest.mark.parametrize(("text", "lines"), [(CHECKED_AT_ONCE, [1]), (CHECKED_LATER, [3]), (WAITED_FOR, [])])
def test_a_reason_that_is_checked_after_a_wait_for_the_status_is_found(text: str, lines: list[int]) -> None:
    assert reasons_not_waited_for(text) == lines


def test_a_reason_that_a_cluster_test_expects_is_waited_for() -> None:
    files = list(E2E.rglob("*.py"))
    assert len(files) > 15
    assert {str(file): found for file in files if (found := reasons_not_waited_for(file.read_text()))} == {}
