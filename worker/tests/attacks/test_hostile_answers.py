"""Hostile answers to reasoning-gym's scorers: none is executed, none changes another score, none ends the peer."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from weakened_sandbox import weakened

from swarmgame.data.environment_catalog import LENIENT
from swarmgame.sandbox.client import CallResult, Sandbox

MODULE = "swarmgame.data.environments"
EVALUATING = (
    "string_insertion", "spiral_matrix", "binary_matrix", "n_queens", "simple_integration", "intermediate_integration",
    "polynomial_multiplication", "countdown", "puzzle24",
)  # fmt: skip
OTHERS = ("products", "number_sorting", "game_of_life_halting", "graph_color", "boxnet", "sudoku")
PARTLY = 0.5
"""More than any scorer gives to a text that has some letters or digits of the answer."""


def hostile(marker: Path) -> dict[str, str]:
    """Return texts that would make a file where they are executed, or would take all time or memory."""
    call = f"open({str(marker)!r}, 'w')"
    system = f"__import__('os').system('touch {marker}')"
    return {
        "call": call,
        "list": f"[{call}]",
        "import": system,
        "too deep to parse": f"[{system},{'-' * 2_954}1]",
        "too deep at any stack": f"[{system},{'-' * 20_000}1]",
        "attributes": "().__class__.__base__.__subclasses__()",
        "lambdify": f'lambdify((), "{system}")()',
        "text in a function": f'sin("{system}")',
        "text in a symbol": f'Symbol("{system}")',
        "key": f"sorted([{system!r}], key=eval)",
        "format": "%s%n{0.__class__.__mro__}{}%(x)s",
        "tower": "9**9**9**9",
        "symbolic tower": "x**x**x**x",
        "factorial": "factorial(10**8)",
        "range": "sum(range(10**12))",
        "repeat": "'a'*(10**10)",
        "digits": "9" * 8_000,
        "exponent": "1e999999999",
        "brackets": "[" * 4_000 + "]" * 4_000,
        "strange": "\ud800\0\U0001f0a1" * 100,
    }


def scored(box: Sandbox, name: str, seed: int, answers: list[str], deadline: float = 20.0) -> list[CallResult]:
    calls = [[name, {}, seed, answer] for answer in answers]
    return box.call_untrusted(f"{MODULE}:score", calls, deadline=deadline, before=f"{MODULE}:ready", shared=3)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "scorer" in metafunc.fixturenames:
        names: list[str] = [*EVALUATING, *OTHERS]
        if metafunc.config.getoption("--all-scorers"):
            box = Sandbox()
            rows = box.call_trusted("swarmgame.data.environment_catalog:catalog")
            box.close()
            names = [row["name"] for row in rows if row["category"] not in ("composite", "own")]
        metafunc.parametrize("scorer", names)


def test_no_scorer_executes_a_hostile_answer_or_changes_another_score(
    sandbox: Sandbox, tmp_path: Path, scorer: str
) -> None:
    sandbox.prepare(f"{MODULE}:keep", scorer, {})
    seed = 777
    made = sandbox.call_untrusted(f"{MODULE}:make", [[scorer, {}, seed]], deadline=60, together=True)[0]
    right = made.value["answer"]
    alone = [result.value for result in scored(sandbox, scorer, seed, [right, "garbage"])]
    attacks = hostile(tmp_path / "marker")
    texts = [text for attack in attacks.values() for text in (attack, "garbage")]
    first, *results = scored(sandbox, scorer, seed, [right, *texts])
    assert first.value == alone[0]
    for kind, attack, after in zip(attacks, results[::2], results[1::2], strict=True):
        assert attack.breach in ("", "program", "exception", "timeout", "memory"), kind
        assert after.value == alone[1], kind
        score = attack.value if not attack.breach else 0.0
        assert isinstance(score, int | float), kind
        assert math.isfinite(score), kind
        assert score <= PARTLY or scorer in LENIENT, kind
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("environment", ["spiral_matrix", "n_queens"])
def test_without_the_guard_the_answer_is_executed_and_pays_itself(environment: str, sandbox: Sandbox) -> None:
    frame = b'{"value": 1.0}'
    forged = len(frame).to_bytes(4, "little") + frame
    pays = f"[__import__('os').write(3, {forged!r}), __import__('os')._exit(0)]"
    assert [(r.value or 0.0) < 1.0 for r in scored(sandbox, environment, 5, [pays])] == [True]
    weak = weakened(["guard"])(deadline=20.0)
    try:
        attack, other = scored(weak, environment, 5, [pays, "garbage"])
    finally:
        weak.close()
    assert attack.value == 1.0
    assert other.value == 0.0, "without the guard it touches no other score than its own"


def test_no_depth_gets_past_the_guard(sandbox: Sandbox) -> None:
    texts = [f"[__import__('os')._exit(42),{'-' * depth}1]" for depth in range(2_880, 2_990, 2)]
    assert {result.breach for result in scored(sandbox, "spiral_matrix", 5, texts)} == {"program"}
