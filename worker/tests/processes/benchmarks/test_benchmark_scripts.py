"""Each benchmark with a smoke mode runs in it and prints one line of JSON; nothing is timed here, and no result is
written.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from forked import run_script

pytestmark = pytest.mark.timeout(600)
BENCHMARKS = Path(__file__).parents[4] / "benchmarks"


NAMES = [
    "attacks",
    "round_vs_genrl",
    "exchange_vs_genrl",
    "generation",
    "step_vs_trl",
    "trl_overhead",
    "ppo_step",
    "step_turns",
    "overlap",
    "soak",
    "rollout_archive",
    "sandbox",
    "time_to_first_round",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_smoke_run_prints_one_line_of_json_and_writes_nothing(name: str, tmp_path: Path) -> None:
    written = BENCHMARKS / "results" / f"{name}.json"
    before = written.read_bytes() if written.exists() else None
    ran = run_script(BENCHMARKS / f"{name}.py", "--smoke", folder=tmp_path, seconds=560)
    assert ran.returncode == 0, ran.stderr[-2000:]
    (line,) = ran.stdout.strip().splitlines()
    run = json.loads(line)
    assert (run["benchmark"], run["smoke"]) == (name, True)
    assert {"claims", "machine", "date"} <= run.keys()
    assert {"cpu", "cores", "load", "load_at_end", "python", "versions", "commit"} <= run["machine"].keys()
    assert (written.read_bytes() if written.exists() else None) == before
