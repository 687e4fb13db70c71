"""Nine scorers of reasoning-gym evaluate the answer. An answer that is a program scores nothing and does nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarmgame.sandbox.client import CallResult, Sandbox
from swarmgame.seeds import derive_seed

DANGEROUS = (
    "string_insertion",
    "spiral_matrix",
    "binary_matrix",
    "n_queens",
    "simple_integration",
    "intermediate_integration",
    "polynomial_multiplication",
    "countdown",
    "puzzle24",
)
PROGRAMS = {
    "file": "[open({path!r}, 'w').write('x')]",
    "shell": "[__import__('os').system('touch {path}')]",
    "socket": "[__import__('socket').socket()]",
    "fork bomb": "[__import__('os').fork() for _ in iter(int, 1)]",
    "loop": "[0 for _ in iter(int, 1)]",
    "memory": "['x' * 10**12]",
    "attributes": "().__class__.__base__.__subclasses__()",
    "lambdify": "lambdify((), \"__import__('os').system('touch {path}')\")()",
    "nested": "sin(\"__import__('os').system('touch {path}')\")",
}
LITTLE = 0.01
"""What countdown and puzzle24 give for anything at all."""


def score(sandbox: Sandbox, name: str, *answers: str, seed: int = 5) -> list[CallResult]:
    return sandbox.call_untrusted(
        "swarmgame.data.environments:score", [[name, {}, derive_seed(name, seed), answer] for answer in answers]
    )


@pytest.mark.parametrize("name", DANGEROUS)
def test_a_program_scores_nothing_leaves_no_file_and_stops_no_other_answer(
    sandbox: Sandbox, tmp_path: Path, name: str
) -> None:
    target = tmp_path / "breach"
    programs = [program.format(path=str(target)) for program in PROGRAMS.values()]
    seed = derive_seed(name, 5)
    right = sandbox.call_untrusted("swarmgame.data.environments:make", [[name, {}, seed]], deadline=10)[0].value[
        "answer"
    ]
    outcomes = score(sandbox, name, *programs, right)
    assert max(outcome.value or 0.0 for outcome in outcomes[:-1]) <= LITTLE
    assert list(tmp_path.iterdir()) == []
    assert outcomes[-1].value == 1.0
    # The texts reach `eval`: the guard refused and reported them.
    assert "program" in {outcome.breach for outcome in outcomes[:-1]}


def test_a_formula_that_would_never_end_is_not_evaluated(sandbox: Sandbox) -> None:
    outcomes = score(sandbox, "n_queens", "9 ** 9 ** 9 ** 9", "['x' * 10 ** 12]", "garbage")
    assert [outcome.value or 0.0 for outcome in outcomes] == [0.0, 0.0, 0.0]
    assert [outcome.breach for outcome in outcomes] == ["program", "program", ""]
