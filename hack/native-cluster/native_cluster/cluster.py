"""Start and stop the cluster on this host, and load the images that it runs.

`up` and `down` can be called in any state, and repeatedly. Invariants: after `up` the node is Ready and names resolve;
after `down` no process, mount, interface, table or control group of the cluster exists, and the images stay.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from native_cluster import control_plane, daemons, dns, docker, layers, network, node, pause, policies, storage, tools
from native_cluster.tools import cache_directory, tool


class ClusterFailed(Exception):
    """The cluster cannot be started here. The message has the reason and the remedy."""


def directory() -> Path:
    """Return the folder of certificates, logs and process files."""
    return cache_directory() / "cluster"


def kubeconfig() -> Path:
    """Return the path of an administrator's kubeconfig."""
    return directory() / "kubeconfig"


def is_up() -> bool:
    """Return whether all its daemons run and the API server answers."""
    return set(daemons.running(directory())) >= _DAEMONS and _kubectl("get", "--raw", "/readyz") == "ok"


_DAEMONS = {
    "containerd",
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "coredns",
    "kube-router",
    "storage",
}


def up() -> Path:
    """Start the cluster unless it runs; return the kubeconfig.

    Raises:
        ClusterFailed, NotBuilt, DaemonFailed, NetworkFailed: what is missing; no process is left running.
    """
    _require()
    with _locked():
        if is_up():
            return kubeconfig()
        _down()
        try:
            _bring_up(directory())
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                shutil.copytree(
                    directory(),
                    cache_directory() / "cluster-failed",
                    dirs_exist_ok=True,
                    ignore=shutil.ignore_patterns("etcd"),
                )
            _down()
            raise
    return kubeconfig()


def down() -> None:
    """Stop the cluster, whatever its state."""
    if os.geteuid() != 0:
        raise ClusterFailed("the native cluster needs root")
    with _locked():
        _down()


def _down() -> None:
    found = daemons.running(directory())
    for name in (
        "storage",
        "kube-router",
        "kubelet",
        "kube-proxy",
        "coredns",
        "kube-scheduler",
        "kube-controller-manager",
        "kube-apiserver",
        "etcd",
    ):
        if name in found:
            found[name].stop()
    if "containerd" in found:
        node.sweep_containers()
        found["containerd"].stop()
    for daemon in daemons.without_file(directory()):
        daemon.stop()
    network.tear_down(directory())
    node.sweep()
    shutil.rmtree(directory(), ignore_errors=True)
    policies.tear_down()  # last: it raises where sets cannot be listed, and the others are removed all the same


def load(names: Sequence[str]) -> None:
    """Build images and import those that containerd does not have; the cluster may run or not."""
    _require()
    with docker.engine() as environment:
        built = docker.build(names, environment)
        with _locked(), containerd():
            _load(built, environment)


def _load(built: Mapping[str, str], environment: dict[str, str]) -> None:
    for name, identity in built.items():
        if _loaded(name) == identity:
            print(f"{docker.IMAGES[name]} is present", flush=True)
            continue
        print(f"importing {docker.IMAGES[name]}", flush=True)
        if not _import_new_layers(docker.IMAGES[name], environment):
            _import(docker.IMAGES[name], environment)
        _record(name).write_text(identity)
        _remove_unnamed()


def has_image(name: str) -> bool:
    """Return whether the running cluster has an image of the project."""
    return docker.IMAGES[name] in (node.ctr("images", "list", "--quiet") or "").split()


@contextlib.contextmanager
def containerd() -> Iterator[None]:
    """Run containerd for the block; a running cluster's containerd is used and kept."""
    if "containerd" in daemons.running(directory()):
        yield
        return
    daemon = node.start_containerd(directory())
    try:
        yield
    finally:
        daemon.stop()
        node.sweep()


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """Hold the lock of this host's cluster; a second process waits."""
    cache_directory().mkdir(parents=True, exist_ok=True)
    with (cache_directory() / "cluster.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _require() -> None:
    if sys.platform != "linux" or os.geteuid() != 0:
        raise ClusterFailed(
            "the native cluster needs Linux and root; with Docker, use kind: make kind-up kind-load e2e E2E=kind"
        )
    absent = [each for each in ("ip", "nft", *policies.PROGRAMS) if shutil.which(each) is None]
    if absent:
        raise ClusterFailed(f"{', '.join(absent)} missing: make cluster-prepare")
    missing = tools.missing([*tools.API_SERVER, *tools.NODE])
    if missing:
        raise tools.NotBuilt(f"{', '.join(missing)} not built: run `make cluster-tools`")


def _bring_up(where: Path) -> None:
    where.mkdir(parents=True)
    network.set_up(where)
    runtime = node.start_containerd(where)
    node.sweep_containers()  # containers of a cluster that was killed
    if node.ctr("images", "import", str(pause.write_archive(node.STATE / "pause.tar"))) is None:
        raise ClusterFailed(f"the image {node.PAUSE} could not be imported\n{runtime.log_tail()}")
    plane = control_plane.start(where, controllers=True, scheduler=True, address=network.ADDRESS)
    node.start(plane, runtime)
    _apply([*dns.objects(), *policies.objects(), *storage.objects()])
    dns.start(plane)
    daemons.start(
        "storage",
        [sys.executable, "-m", "native_cluster.storage", kubeconfig()],
        where,
        environment={"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    _wait(
        "the node was not Ready",
        lambda: (
            _kubectl("get", "node", node.NAME, "-o", "jsonpath={.status.conditions[?(@.type=='Ready')].status}")
            == "True"
        ),
    )
    policies.start(plane)
    _wait(
        "there was no default service account", lambda: _kubectl("get", "serviceaccount", "default", "-o", "name") != ""
    )


def _apply(objects: Sequence[dict[str, object]]) -> None:
    content = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
    done = subprocess.run(
        [tool("kubectl"), "--kubeconfig", kubeconfig(), "apply", "-f", "-"],
        input=content,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ClusterFailed(f"the cluster's own objects were refused: {done.stderr.strip()}")


def _kubectl(*arguments: str) -> str:
    done = subprocess.run(
        [tool("kubectl"), "--kubeconfig", kubeconfig(), *arguments], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else ""


def _wait(otherwise: str, condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise ClusterFailed(
                f"{otherwise} after {seconds:.0f} s; logs are in {cache_directory() / 'cluster-failed'}"
            )
        time.sleep(0.1)


def _import(image: str, environment: dict[str, str]) -> None:
    save = subprocess.Popen([docker.client(), "save", image], env=os.environ | environment, stdout=subprocess.PIPE)
    command: list[str | Path] = [
        tool("ctr"),
        "--address",
        node.SOCKET,
        "--namespace",
        "k8s.io",
        "images",
        "import",
        "-",
    ]
    done = subprocess.run(command, stdin=save.stdout, capture_output=True, text=True, check=False)
    if save.wait() != 0 or done.returncode != 0:
        raise ClusterFailed(f"{image} could not be imported: {done.stderr.strip()}")


def _import_new_layers(image: str, environment: dict[str, str]) -> bool:
    """Import only the layers that containerd lacks. False when the archive cannot be made."""
    inspected = docker.inspect(image, environment)
    kept = (
        cache_directory()
        / "docker/image/overlay2/imagedb/content/sha256"
        / str(inspected["Id"]).removeprefix("sha256:")
    )
    if not environment or not kept.exists():
        return False
    blobs = node.image_store() / "io.containerd.content.v1.content/blobs/sha256"

    def size_of(digest: str) -> int | None:
        blob = blobs / digest.removeprefix("sha256:")
        return blob.stat().st_size if blob.exists() else None

    archive = node.STATE / "image.tar"
    try:
        if not layers.write_archive(archive, image, inspected, kept.read_bytes(), size_of):
            return False
        return node.ctr("images", "import", str(archive)) is not None
    finally:
        archive.unlink(missing_ok=True)


def _remove_unnamed() -> None:
    """Remove images without a name: containerd keeps them under their hash."""
    listed = [line.split() for line in (node.ctr("images", "list") or "").splitlines()[1:]]
    named = {fields[2] for fields in listed if not fields[0].startswith("sha256:")}
    for fields in listed:
        if fields[0].startswith("sha256:") and fields[2] not in named:
            node.ctr("images", "remove", fields[0])


def _record(name: str) -> Path:
    return node.image_store() / f"{name}.id"


def _loaded(name: str) -> str:
    """Return the id of the image in containerd; empty when it has none."""
    return _record(name).read_text() if has_image(name) and _record(name).exists() else ""
