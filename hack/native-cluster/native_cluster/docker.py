"""Build the project's images with the running Docker engine, or with one that is started for the build.

`hack/images.sh` builds them, as for kind and for a registry. Where no registry can be reached, the base image is made
by debootstrap from the host's Debian mirror. Invariant: mirror, package index and certificates of this host are read at
run time, and no image contains them.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from native_cluster import daemons
from native_cluster.tools import cache_directory

ROOT = Path(__file__).resolve().parents[3]
RUNTIME = Path("/run/swarmgame-docker")
_VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
IMAGES = {name: f"ghcr.io/swarmgame/{name}:{_VERSION}" for name in ("operator", "worker", "chain")}
"""The chart's default names, so that `helm install` needs no values where these are loaded."""
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_ANVIL = ROOT / f"contracts/node_modules/@foundry-rs/anvil-linux-{_ARCHITECTURES.get(platform.machine(), 'amd64')}"
_SUITE = "bookworm"
_BASE_PACKAGES = ("python3", "python3-venv", "ca-certificates", "tini")
_BUILD_PACKAGES = (*_BASE_PACKAGES, "gcc", "libc6-dev", "python3-dev")


class ImageFailed(Exception):
    """An image could not be made; the tool's output was printed."""


@contextlib.contextmanager
def engine() -> Iterator[dict[str, str]]:
    """Yield the environment in which `docker` works. Without a running daemon, start one without network rules, and
    stop it afterwards.
    """
    if _works({}):
        yield {}
        return
    cache_directory().mkdir(parents=True, exist_ok=True)
    with (cache_directory() / "docker.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two daemons may not share a folder; the second process waits
        yield from _own_engine()


def _own_engine() -> Iterator[dict[str, str]]:
    if shutil.which("dockerd") is None or os.geteuid() != 0:
        raise ImageFailed("docker does not answer, and there is no dockerd to start as root")
    socket = RUNTIME / "docker.sock"
    environment = {"DOCKER_HOST": f"unix://{socket}"}
    command: list[str | Path] = [
        "dockerd",
        "--data-root",
        cache_directory() / "docker",
        "--exec-root",
        RUNTIME / "exec",
        "--host",
        f"unix://{socket}",
    ]
    command += [
        "--pidfile",
        RUNTIME / "docker.pid",
        "--bridge=none",
        "--iptables=false",
        "--ip6tables=false",
        "--ip-forward=false",
        "--storage-driver=overlay2",
    ]
    daemon = daemons.start("dockerd", command, RUNTIME)
    try:
        daemon.wait(lambda: _works(environment), 60.0)
        yield environment
    finally:
        daemon.stop(grace_seconds=30.0)
        _unmount_below(RUNTIME)
        shutil.rmtree(RUNTIME, ignore_errors=True)


def build(names: Sequence[str], environment: dict[str, str]) -> dict[str, str]:
    """Build images of the project; unchanged layers come from Docker's cache.

    Returns:
        The id of each image, which differs when the image changed.
    """
    bases = _bases(environment)
    # Without a bridge an engine of this module's own has only the host's network.
    always = environment | {"DOCKER": client(), "ANVIL": str(_ANVIL), "BUILD_NETWORK": "host"}
    for name in names:
        variables = always | _base_variables(name, bases) | {"BUILDKIT_PROGRESS": "plain"}
        _run([ROOT / "hack/images.sh", "build", name], variables)
    return {name: image_id(IMAGES[name], environment) for name in names}


def image_id(image: str, environment: dict[str, str]) -> str:
    """Return an image's id; empty when there is no such image."""
    command = [client(), "image", "inspect", "--format", "{{.Id}}", image]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False
    ).stdout.strip()


def inspect(image: str, environment: dict[str, str]) -> dict[str, Any]:
    """Return the output of `docker image inspect`."""
    done = subprocess.run(
        [client(), "image", "inspect", image], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout)[0])


def import_archive(archive: Path, image: str, environment: dict[str, str]) -> None:
    """Make an image of one layer from a tar of its file system."""
    _run([client(), "import", archive, image], environment)


def _bases(environment: dict[str, str]) -> dict[str, str]:
    """Return the base images as build arguments; empty where the Dockerfiles' defaults can be pulled."""
    if os.environ.get("SWARMGAME_E2E_PUBLIC_BASE") == "true":
        return {}
    made = {
        "BASE_IMAGE": ("localhost/debian-python:e2e", _BASE_PACKAGES),
        "BUILD_IMAGE": ("localhost/debian-python-build:e2e", _BUILD_PACKAGES),
    }
    for image, packages in made.values():
        if not image_id(image, environment):
            _bootstrap(image, packages, environment)
    return {name: image for name, (image, _) in made.items()}


def _base_variables(name: str, bases: Mapping[str, str]) -> dict[str, str]:
    """Return the base images of one image, as variables of hack/images.sh. The worker's image needs a C compiler, which
    the build image has: a build reaches no Debian mirror.
    """
    return {**bases, "BASE_IMAGE": bases["BUILD_IMAGE"]} if bases and name == "worker" else dict(bases)


def _bootstrap(image: str, packages: Sequence[str], environment: dict[str, str]) -> None:
    if shutil.which("debootstrap") is None or os.geteuid() != 0:
        raise ImageFailed(
            f"{image} is made by debootstrap, as root: apt-get install debootstrap; "
            "or set SWARMGAME_E2E_PUBLIC_BASE=true to pull it"
        )
    downloads = cache_directory() / "debs"
    downloads.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="debootstrap-", dir=cache_directory()) as folder:
        root = Path(folder) / "root"
        print(f"making {image} with debootstrap", flush=True)
        options = ["--variant=minbase", f"--include={','.join(packages)}", f"--cache-dir={downloads}"]
        _run(["debootstrap", *options, _SUITE, root, _mirror()], {}, quiet=True)
        for leftover in (
            "etc/apt/sources.list",
            "var/cache/apt/archives",
            "var/lib/apt/lists",
            "var/log",
            "usr/share/doc",
            "usr/share/man",
            "usr/share/locale",
        ):
            _remove(root / leftover)
        archive = Path(folder) / "root.tar"
        _run(["tar", "--numeric-owner", "-C", root, "-cf", archive, "."], {})
        import_archive(archive, image, environment)


def _mirror() -> str:
    """Return the Debian mirror that this host's apt uses.

    Raises:
        ImageFailed: apt has no mirror of this release.
    """
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"]
    for line in subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines():
        address, release, component = line.split()
        if release == _SUITE and component == "main":
            return address
    raise ImageFailed(
        f"apt on this host has no mirror of Debian {_SUITE}, from which the base images are made: "
        "run `apt-get update`, "
        "or set SWARMGAME_E2E_PUBLIC_BASE=true to pull them"
    )


@functools.cache
def client() -> str:
    """Return a docker command that can use BuildKit: built in before version 23, by the plugin buildx since."""
    for folder in os.environ["PATH"].split(os.pathsep):
        path = shutil.which("docker", path=folder)
        if path is None:
            continue
        version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
        major = re.search(r"version (\d+)\.", version)
        if (major and int(major[1]) < 23) or subprocess.run(
            [path, "buildx", "version"], capture_output=True, check=False
        ).returncode == 0:
            return path
    raise ImageFailed(
        "there is no docker that can use BuildKit: install docker-buildx, "
        "or on Debian 12: apt-get install docker.io debootstrap"
    )


def _works(environment: dict[str, str]) -> bool:
    return (
        subprocess.run([client(), "info"], env=os.environ | environment, capture_output=True, check=False).returncode
        == 0
    )


def _run(command: Sequence[str | Path], environment: dict[str, str], *, quiet: bool = False) -> None:
    arguments = [str(each) for each in command]
    done = subprocess.run(arguments, env=os.environ | environment, capture_output=quiet, text=True, check=False)
    if done.returncode != 0:
        output = (done.stdout + done.stderr)[-2000:] if quiet else ""
        raise ImageFailed(f"`{' '.join(arguments[:3])} …` failed with {done.returncode}\n{output}")


def _remove(path: Path) -> None:
    if path.is_dir():
        for each in path.iterdir():
            shutil.rmtree(each) if each.is_dir() and not each.is_symlink() else each.unlink()
    else:
        path.unlink(missing_ok=True)


def _unmount_below(folder: Path) -> None:
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for mount in sorted((each for each in mounts if each.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "--lazy", mount], check=False)
