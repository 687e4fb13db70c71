"""`swarmgame peers`: which members a running peer counts, from its own endpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarmgame.cli.main import run_command
from swarmgame.cli.peers import WHY
from swarmgame.errors import ExitCode
from swarmgame.observability.http import Endpoints
from swarmgame.observability.metrics import PeerMetrics
from swarmgame.observability.status import PeerStatus
from swarmgame.swarm.counted_peers import COUNTING, Standing

STANDINGS = {f"id-of-{standing}": str(standing) for standing in Standing}

AUTHORS = {
    "id-of-anchor": {"groups": 12, "influence": 0.0834, "refused": {}},
    "id-of-counted": {"groups": 1, "influence": None, "refused": {"implausible": 3, "copied": 1}},
    "gone": {"groups": 0, "influence": None, "refused": {"doubtful-author": 2}},
}


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """A run whose first peer answers."""
    folder = tmp_path / "toys" / "peers" / "0"
    folder.mkdir(parents=True)
    status = PeerStatus()
    status.change(round=6, members=("me", *STANDINGS), missing=("id-of-missed",), standings=STANDINGS, authors=AUTHORS)
    endpoints = Endpoints(status, PeerMetrics(), "127.0.0.1", 0)
    (folder / "http.json").write_text(json.dumps({"port": endpoints.start(), "peer": "me"}))
    yield tmp_path / "toys"
    endpoints.stop()


def test_every_member_is_shown_with_the_reason_why_it_counts_or_not(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["peers", str(run)]) == ExitCode.DONE
    first, *rows = capsys.readouterr().out.splitlines()
    assert first == "peer 0, round 7: 3 of 6 other members count"
    *rows, last = rows
    assert last.endswith("refused: doubtful-author 2")
    assert "…gone" in last
    assert "12 groups used, 8.3% of updates" in rows[list(STANDINGS).index("id-of-anchor")]
    assert rows[list(STANDINGS).index("id-of-counted")].endswith("refused: implausible 3, copied 1")
    for standing, row in zip(Standing, rows, strict=True):
        assert ("does not count" in row) == (standing not in COUNTING)
        assert WHY[standing] in row
        assert ("missing in the last stage" in row) == (standing is Standing.MISSED)


def test_the_rows_are_machine_readable(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["peers", str(run), "--json"]) == ExitCode.DONE
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["member"]: row["standing"] for row in rows} == {**STANDINGS, "gone": "no-member"}
    assert {row["member"]: row["groups"] for row in rows if row["groups"]} == {"id-of-anchor": 12, "id-of-counted": 1}
    assert [row["refused"] for row in rows if row["member"] == "id-of-counted"] == [{"implausible": 3, "copied": 1}]
    assert {row["standing"] for row in rows if row["counts"]} == set(map(str, COUNTING))


def test_a_run_that_is_over_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "toys" / "peers" / "0").mkdir(parents=True)
    assert run_command(["peers", str(tmp_path / "toys")]) == ExitCode.TEMPORARY
    assert "no peer of the run toys answers: it is over, or has not begun" in capsys.readouterr().err
