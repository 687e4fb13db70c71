"""The choice of the cluster for `make e2e`, with stub programs."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "hack" / "e2e-cluster.sh"
RUNNING = "exit 0"
STOPPED = "exit 1"
WITH_NODE_IMAGE = '[ "$1" = images ] && echo 0123456789ab; exit 0'
KIND = dict.fromkeys(("kind", "kubectl", "helm"), RUNNING)
OFFLINE = '[ "$1" = manifest ] && exit 1; exit 0'


def stubs(folder: Path, programs: Mapping[str, str]) -> str:
    """Write stub programs; return a PATH with these and with the tools that the script uses."""
    folder.mkdir(exist_ok=True)
    for name in ("bash", "env", "timeout"):
        found = shutil.which(name)
        if found and not (folder / name).exists():
            (folder / name).symlink_to(found)
    for name, body in programs.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    return str(folder)


@pytest.mark.parametrize(
    ("programs", "cluster", "reason"),
    [
        ({}, "native", "there is no docker command"),
        ({"docker": STOPPED, "kind": RUNNING}, "native", "no Docker daemon answers"),
        ({"docker": RUNNING}, "native", "there is neither kind nor Go to build it"),
        (
            {"docker": RUNNING, "kind": RUNNING, "kubectl": RUNNING},
            "native",
            "there is neither helm nor Go to build it",
        ),
        ({"docker": OFFLINE, **KIND}, "native", "no image registry can be reached"),
        ({"docker": WITH_NODE_IMAGE, **KIND}, "kind", "Docker runs and has kind's node image"),
        ({"docker": RUNNING, **KIND}, "kind", "Docker runs and reaches an image registry"),
        ({"docker": RUNNING, "go": RUNNING}, "kind", "Docker runs and reaches an image registry"),
    ],
)
def test_kind_is_chosen_where_docker_can_run_it_and_one_line_says_why(
    programs: dict[str, str], cluster: str, reason: str, tmp_path: Path
) -> None:
    path = stubs(tmp_path / "bin", programs)
    done = subprocess.run([SCRIPT], env={"PATH": path}, capture_output=True, text=True, check=True)
    assert done.stdout == f"{cluster}\n"
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"e2e: cluster {cluster}, because {reason} (")


def test_a_host_without_timeout_probes_too(tmp_path: Path) -> None:
    path = stubs(tmp_path / "bin", {"docker": WITH_NODE_IMAGE, **KIND})
    (tmp_path / "bin" / "timeout").unlink()
    done = subprocess.run([SCRIPT], env={"PATH": path}, capture_output=True, text=True, check=True)
    assert done.stdout == "kind\n"
    assert len(done.stderr.splitlines()) == 1


def test_a_docker_daemon_that_hangs_is_given_up(tmp_path: Path) -> None:
    path = stubs(tmp_path / "bin", {"docker": "while :; do :; done", "kind": RUNNING})
    variables = {"PATH": path, "SWARMGAME_PROBE_SECONDS": "0.2"}
    done = subprocess.run([SCRIPT], env=variables, capture_output=True, text=True, check=True, timeout=20)
    assert done.stdout == "native\n"
