"""forge's own suites, the gas snapshot, the coverage and the artifact; the toolchain is installed by npm when it is
not there.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

CONTRACTS = Path(__file__).resolve().parents[2]
FORGE = CONTRACTS / "node_modules" / ".bin" / "forge"


@pytest.fixture(scope="module", autouse=True)
def toolchain() -> None:
    if not FORGE.exists():
        subprocess.run(
            ["npm", "install", "--no-package-lock"], cwd=CONTRACTS, check=True, capture_output=True, timeout=280
        )


def run(*command: str | Path) -> str:
    done = subprocess.run(command, cwd=CONTRACTS, capture_output=True, text=True, timeout=290, check=False)
    assert done.returncode == 0, done.stdout[-4_000:] + done.stderr[-2_000:]
    return done.stdout


def test_forges_unit_fuzz_and_invariant_tests_pass() -> None:
    assert re.search(r"Ran 5 test suites .*: 49 tests passed, 0 failed, 0 skipped", run(FORGE, "test"))


def test_gas_is_within_two_percent_of_the_snapshot() -> None:
    run(FORGE, "snapshot", "--match-contract", "GasTest", "--check", ".gas-snapshot", "--tolerance", "2")


def test_nearly_every_line_of_the_contract_is_covered() -> None:
    # Invariant tests add minutes to an unoptimized build, and no line.
    table = run(FORGE, "coverage", "--no-match-coverage", "test", "--no-match-contract", "Invariants|Gas")
    total = re.search(r"\| Total\s+\|\s+([\d.]+)%", table)
    assert total is not None, table
    assert float(total[1]) >= 95, table


def test_the_committed_artifact_is_what_the_sources_give() -> None:
    assert "is what the sources give" in run(sys.executable, "artifact.py", "--check")


def test_sources_are_formatted_and_the_lock_file_names_no_host() -> None:
    run(FORGE, "fmt", "--check")
    assert "resolved" not in (CONTRACTS / "package-lock.json").read_text()
