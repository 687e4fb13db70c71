"""The termination message, the death signal of a parent, and metric definitions."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from swarmgame_common.metrics import MetricDefinition, MetricType, make_collectors, metrics_table
from swarmgame_common.termination import MAX_CHARACTERS, write_termination_message


def test_the_termination_message_is_one_bounded_line(tmp_path: Path) -> None:
    file = tmp_path / "termination-log"
    write_termination_message("first\n  second\n\n" + "x" * 5000, {"SWARMGAME_TERMINATION_LOG": str(file)})
    written = file.read_text()
    assert written.startswith("first; second; xxx")
    assert (written.count("\n"), len(written)) == (1, MAX_CHARACTERS + 1)


def test_a_termination_log_that_cannot_be_written_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_termination_message("x", {"SWARMGAME_TERMINATION_LOG": str(tmp_path)})
    assert f"{tmp_path} cannot be written: Is a directory" in capsys.readouterr().err


def test_a_process_that_follows_its_parent_ends_with_it(tmp_path: Path) -> None:
    child = (
        "import os, pathlib, sys, time; from swarmgame_common.parent_death import follow_parent; follow_parent();"
        "pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(60)"
    )
    parent = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', *sys.argv[1:]]); time.sleep(60)"
    file = tmp_path / "pid"
    process = subprocess.Popen(
        [sys.executable, "-c", parent, child, str(file)],
        env={"SWARMGAME_DIE_WITH_PARENT": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    try:
        wait_until(lambda: file.exists() and file.read_text() != "")
    finally:
        process.kill()
        process.wait()
    pid = int(file.read_text())
    wait_until(lambda: not running(pid))


def test_collectors_and_the_table_are_made_from_the_definitions() -> None:
    definitions = (
        MetricDefinition("size", MetricType.GAUGE, "Size in bytes.", "Large.", "Small.", ("kind",)),
        MetricDefinition("requests", MetricType.COUNTER, "Requests."),
        MetricDefinition("seconds", MetricType.HISTOGRAM, "Duration.", low="Fast."),
    )
    registry = CollectorRegistry()
    collectors = make_collectors(definitions, registry, prefix="x_", buckets=(1.0, 2.0))
    collectors["size"].labels("a").set(3)
    collectors["requests"].inc()
    collectors["seconds"].observe(1.5)
    exposed = generate_latest(registry).decode()
    assert 'x_size{kind="a"} 3.0' in exposed
    assert "x_requests_total 1.0" in exposed
    assert 'x_seconds_bucket{le="2.0"} 1.0' in exposed
    assert metrics_table(definitions, "x_")[2:] == [
        "| `x_size{kind}` | gauge | Size in bytes. | Large. | Small. |",
        "| `x_requests_total` | counter | Requests. | — | — |",
        "| `x_seconds` | histogram | Duration. | — | Fast. |",
    ]


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
