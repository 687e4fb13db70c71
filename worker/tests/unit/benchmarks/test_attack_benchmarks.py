"""The benchmarks of attacks: what is kept of a long run, and the rows of their tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[4] / "benchmarks"
MODULES = ("harness", "attack_table", "influence", "flood_rows", "channel", "strangers")


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] in MODULES]:
        del sys.modules[name]


def run_of(held_out: float) -> dict[str, Any]:
    """The figures of one arm and seed."""
    return {
        "held_out": held_out,
        "own_reward": 0.5,
        "payload": 0.01,
        "influence": 0.4,
        "outcomes": {"accepted": 3},
        "seconds": 1.0,
    }


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, int]]:
    """The arms and seeds that were played, in place of playing them; results go to a folder of the test."""
    import harness
    import influence

    found: list[tuple[str, int]] = []

    def play(arm: influence.Arm, seed: int, rounds: int, cache: Path) -> dict[str, Any]:
        found.append((str(arm), seed))
        return run_of(0.7 + seed / 100)

    monkeypatch.setattr(influence, "play", play)
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "results")
    return found


def run(monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    import influence

    monkeypatch.setattr(sys, "argv", ["influence.py", *options])
    influence.main()


def test_a_run_that_was_stopped_goes_on_where_it_was(
    monkeypatch: pytest.MonkeyPatch, played: list[tuple[str, int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import harness
    import influence

    parts = str(tmp_path / "parts")
    arms = len(influence.ARMS)
    defended = sum(arm.defended for arm in influence.ARMS)
    with pytest.raises(SystemExit, match=rf"{arms + 2 * defended} arms are not finished"):
        run(monkeypatch, "--parts", parts, "--seeds", "3", "--undefended", "1", "--minutes", "-1")
    run(monkeypatch, "--parts", parts, "--seeds", "3", "--undefended", "1", "--only", "1")
    assert played == [(str(arm), 1) for arm in influence.ARMS if arm.defended]
    assert harness.result("influence") is None, "a part of the seeds is no result"
    run(monkeypatch, "--parts", parts, "--seeds", "3", "--undefended", "1")
    assert len(played) == len(set(played)) == arms + 2 * defended
    found = harness.result("influence")
    assert found is not None
    assert (found["shape"]["seeds"], found["arms"]["none"]["by_seed"]) == (3, [0.7, 0.71, 0.72])
    assert found["arms"]["copies, undefended"]["seeds"] == 1
    assert len(found["claims"]) == 7
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_parts_of_other_code_or_of_another_length_are_refused(
    monkeypatch: pytest.MonkeyPatch, played: list[tuple[str, int]], tmp_path: Path
) -> None:
    import influence

    parts = tmp_path / "parts"
    run(monkeypatch, "--parts", str(parts), "--seeds", "1", "--undefended", "0", "--only", "0")
    with pytest.raises(SystemExit, match=r"0\.json was made by .*name another folder"):
        run(monkeypatch, "--parts", str(parts), "--seeds", "1", "--rounds", "12")
    monkeypatch.setattr(influence, "code_digest", lambda: "another")
    with pytest.raises(SystemExit, match="name another folder"):
        run(monkeypatch, "--parts", str(parts), "--seeds", "1")
    assert [path.name for path in parts.iterdir()] == ["0.json"]
    assert json.loads((parts / "0.json").read_text())["made_by"]["rounds"] == 24


def test_the_table_of_attacks_has_a_row_for_each_attack_on_learning() -> None:
    import attack_table

    def arm(score: float, payload: float) -> dict[str, Any]:
        return {"held_out": {"mean": score, "low": score - 0.02, "high": score + 0.02}, "payload": {"mean": payload}}

    arms = {"none": arm(0.76, 0.0)}
    for name in attack_table.ATTACKS:
        arms |= {f"{name}, defended": arm(0.75, 0.01), f"{name}, undefended": arm(0.31, 0.13)}
    rows = list(attack_table.influence_rows({"arms": arms}))
    assert rows[0] == (
        "4 untrusted peers send junk behind answers, with low claims",
        "held-out reward, 0.76 (0.74 to 0.78) without them",
        "0.31",
        "0.75",
    )
    assert [row[2:] for row in rows if "payload" in row[1]] == [("13.0%", "1.0%")] * 2
    assert len(rows) == 7
    assert list(attack_table.influence_rows(None)) == []


def test_the_attacks_of_the_table_are_those_that_are_played() -> None:
    import attack_table
    import influence
    import table

    assert {arm.attack for arm in influence.ARMS} == {"none", *attack_table.ATTACKS}
    assert attack_table.HOLE == influence.HOLE
    assert list(table._influence(None)) == []


def test_a_contribution_of_thousands_of_rollouts_is_not_decoded() -> None:
    import flood_rows

    row = flood_rows.bomb_row()
    assert (row["without"], row["defended"], row["at_most"]) == (8000.0, 0.0, 0)
    assert int(row["attack"].split()[-2]) < 2000
