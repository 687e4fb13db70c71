"""The choice of the cluster for `make e2e`, and the commands of README.md for a kind cluster, with stub programs."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "hack" / "e2e-cluster.sh"
RUNNING = "exit 0"
STOPPED = "exit 1"
WITH_NODE_IMAGE = '[ "$1" = images ] && echo 0123456789ab; exit 0'
OFFLINE = '[ "$1" = manifest ] && exit 1; exit 0'


def stubs(folder: Path, programs: Mapping[str, str]) -> str:
    """Write stub programs; return a PATH with these and with the tools that the scripts use."""
    folder.mkdir(exist_ok=True)
    for name in ("bash", "env", "timeout", "dirname", "mkdir", "grep", "sed", "cat", "uname"):
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
        ({"docker": OFFLINE, "kind": RUNNING}, "native", "no image registry can be reached"),
        ({"docker": WITH_NODE_IMAGE, "kind": RUNNING}, "kind", "Docker runs and has kind's node image"),
        ({"docker": RUNNING, "kind": RUNNING}, "kind", "Docker runs and reaches an image registry"),
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


def test_a_docker_daemon_that_hangs_is_given_up(tmp_path: Path) -> None:
    path = stubs(tmp_path / "bin", {"docker": "while :; do :; done", "kind": RUNNING})
    variables = {"PATH": path, "SWARMGAME_PROBE_SECONDS": "0.2"}
    done = subprocess.run([SCRIPT], env=variables, capture_output=True, text=True, check=True, timeout=20)
    assert done.stdout == "native\n"


def test_the_readmes_commands_make_a_kind_cluster_and_load_the_three_images(tmp_path: Path) -> None:
    """`make` and `docker` are stubs that record their arguments, and so is kind, which remembers its clusters."""
    log = tmp_path / "log"
    record = f'echo "$(basename "$0") $*" >> {log}'
    kind = f'{record}\n[ "$1 $2" = "get clusters" ] && sed -n "s/.*create cluster --name //p" {log}; exit 0'
    path = stubs(tmp_path / "bin", {"kind": kind, "docker": record, "make": record, "basename": 'echo "${1##*/}"'})
    readme = (ROOT / "README.md").read_text()
    (block,) = (each for each in re.findall(r"```sh\n(.*?)```", readme, re.DOTALL) if each.startswith("kind "))
    variables = {"PATH": path, "HOME": str(tmp_path)}
    subprocess.run(["bash", "-euo", "pipefail", "-c", block], cwd=ROOT, env=variables, check=True, capture_output=True)
    lines = log.read_text().splitlines()
    assert [line for line in lines if "create cluster" in line] == ["kind create cluster --name swarmgame"]
    loaded = [line.rsplit("/", 1)[1] for line in lines if line.startswith("kind load docker-image --name swarmgame ")]
    built = [re.sub(r".*--tag \S*/(\S+) .*", r"\1", line) for line in lines if line.startswith("docker build ")]
    assert [image.partition(":")[0] for image in loaded] == ["operator", "worker", "chain"]
    assert built == loaded
