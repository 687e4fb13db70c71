"""Daemons: who is signalled, and what is said of one that died."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from native_cluster import daemons

SLEEPER = [sys.executable, "-c", "import time; print('hello', flush=True); time.sleep(600)"]


def test_one_that_dies_while_it_is_waited_for_is_reported_with_its_last_words(tmp_path: Path) -> None:
    daemon = daemons.start("short", [sys.executable, "-c", "raise SystemExit('the disk is full')"], tmp_path)
    with pytest.raises(daemons.DaemonFailed, match=r"short ended before it was ready(.|\n)*the disk is full"):
        daemon.wait(lambda: False, 20.0)


def test_one_that_is_never_ready_is_given_up(tmp_path: Path) -> None:
    daemon = daemons.start("slow", SLEEPER, tmp_path)
    try:
        with pytest.raises(daemons.DaemonFailed, match="slow was not ready after 0 s"):
            daemon.wait(lambda: False, 0.2)
    finally:
        daemon.stop()


def test_one_that_outlives_its_starter_is_found_and_stopped_by_another(tmp_path: Path) -> None:
    script = f"from native_cluster import daemons; import pathlib; daemons.start('d', {SLEEPER!r}, pathlib.Path({str(tmp_path)!r}))"
    environment = {"PYTHONPATH": str(Path(daemons.__file__).parents[2])}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    found = daemons.running(tmp_path)["d"]
    assert found.alive
    found.stop()
    assert not found.alive
    assert daemons.running(tmp_path) == {}


def test_a_process_that_has_taken_over_the_id_of_a_dead_one_is_not_touched(tmp_path: Path) -> None:
    stranger = subprocess.Popen(SLEEPER, start_new_session=True)
    try:
        (tmp_path / "old.pid").write_text(json.dumps({"pid": stranger.pid, "started": 1}))
        daemons.Daemon("old", stranger.pid, 1, tmp_path).stop()
        assert daemons.running(tmp_path) == {}
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_one_whose_file_is_lost_is_found_by_where_it_belongs(tmp_path: Path) -> None:
    directory = tmp_path / "cluster"
    lost = daemons.start("lost", SLEEPER, directory)
    other = daemons.start("other", SLEEPER, tmp_path / "another")
    try:
        shutil.rmtree(directory)
        assert daemons.running(directory) == {}
        (found,) = daemons.strays(directory)
        assert found.pid == lost.pid
        found.stop()
        assert (lost.alive, other.alive) == (False, True)
    finally:
        lost.stop()
        other.stop()


@pytest.mark.parametrize("deaf", [False, True], ids=["who listen", "who do not listen"])
def test_children_of_a_daemon_end_with_it(deaf: bool, tmp_path: Path) -> None:
    deafness = "signal.signal(signal.SIGTERM, signal.SIG_IGN); " if deaf else ""
    child = f"import signal, time; {deafness}print('ready', flush=True); time.sleep(600)"
    parent = (
        f"import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE); "
        "p.stdout.readline(); print(p.pid, flush=True); time.sleep(600)"
    )
    daemon = daemons.start("parent", [sys.executable, "-c", parent], tmp_path)
    daemon.wait(lambda: daemon.log.read_text().endswith("\n"), 20.0)
    pid = int(daemon.log.read_text())
    daemon.stop(grace_seconds=1.0)
    stat = Path(f"/proc/{pid}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] in "ZX"
