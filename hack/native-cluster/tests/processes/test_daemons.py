"""Daemons: which processes are signalled, and the report of one that died."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from native_cluster import daemons

SLEEPER = [sys.executable, "-c", "import time; print('hello', flush=True); time.sleep(600)"]


def test_a_daemon_that_dies_during_wait_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    daemon = daemons.start("short", [sys.executable, "-c", "raise SystemExit('the disk is full')"], tmp_path)
    with pytest.raises(daemons.DaemonFailed, match=r"short ended before it was ready(.|\n)*the disk is full"):
        daemon.wait(lambda: False, 20.0)


def test_wait_ends_for_a_daemon_that_is_never_ready(tmp_path: Path) -> None:
    daemon = daemons.start("slow", SLEEPER, tmp_path)
    try:
        with pytest.raises(daemons.DaemonFailed, match="slow was not ready after 0 s"):
            daemon.wait(lambda: False, 0.2)
    finally:
        daemon.stop()


def test_a_daemon_that_outlives_its_starter_is_found_and_stopped_by_another_process(tmp_path: Path) -> None:
    script = (
        "from native_cluster import daemons; import pathlib; "
        f"daemons.start('d', {SLEEPER!r}, pathlib.Path({str(tmp_path)!r}))"
    )
    environment = {"PYTHONPATH": str(Path(daemons.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    found = daemons.running(tmp_path)["d"]
    assert found.alive
    found.stop()
    assert not found.alive
    assert daemons.running(tmp_path) == {}


def test_a_process_with_the_id_of_a_dead_daemon_is_not_signalled(tmp_path: Path) -> None:
    other = subprocess.Popen(SLEEPER, start_new_session=True)
    try:
        (tmp_path / "old.pid").write_text(json.dumps({"pid": other.pid, "started": 1}))
        daemons.Daemon("old", other.pid, 1, tmp_path).stop()
        assert daemons.running(tmp_path) == {}
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_daemon_without_its_file_is_found_by_its_directory(tmp_path: Path) -> None:
    directory = tmp_path / "cluster"
    lost = daemons.start("lost", SLEEPER, directory)
    other = daemons.start("other", SLEEPER, tmp_path / "another")
    try:
        shutil.rmtree(directory)
        assert daemons.running(directory) == {}
        (found,) = daemons.without_file(directory)
        assert found.pid == lost.pid
        found.stop()
        assert (lost.alive, other.alive) == (False, True)
    finally:
        lost.stop()
        other.stop()


@pytest.mark.parametrize("ignores", [False, True], ids=["SIGTERM ends them", "they ignore SIGTERM"])
def test_children_of_a_daemon_end_with_it(ignores: bool, tmp_path: Path) -> None:
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN); " if ignores else ""
    child = f"import signal, time; {ignore}print('ready', flush=True); time.sleep(600)"
    parent = (
        "import subprocess, sys, time; "
        f"p = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE); "
        "p.stdout.readline(); print(p.pid, flush=True); time.sleep(600)"
    )
    daemon = daemons.start("parent", [sys.executable, "-c", parent], tmp_path)
    daemon.wait(lambda: daemon.log.read_text().endswith("\n"), 240.0)
    pid = int(daemon.log.read_text())
    daemon.stop(grace_seconds=1.0)
    stat = Path(f"/proc/{pid}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] in "ZX"
