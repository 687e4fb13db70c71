"""The tools: Kubernetes and what a node needs, each built once by Go and cached by the hash of its sources.

A module under hack/native-cluster/tools pins a tool's dependencies. Invariant: a returned path exists and was built
from exactly the committed go.mod and go.sum; an interrupted build leaves no file.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MODULES = Path(__file__).resolve().parent.parent / "tools"
_COMPONENT = "k8s.io/component-base/version"
_KUBERNETES = "v1.36.3"


class NotBuilt(Exception):
    """A tool is not in the cache. The message has the command that builds it."""


@dataclass(frozen=True)
class Tool:
    """One binary.

    Args:
        module: folder under hack/native-cluster/tools.
        package: Go import path of its main.
        ldflags: beyond -s -w.
        cgo: needs a C compiler; everything else is static.
        tags: Go build tags.
    """

    module: str
    package: str
    ldflags: str = ""
    cgo: bool = False
    tags: str = ""


def _kubernetes(name: str) -> Tool:
    fields = {"gitVersion": _KUBERNETES, "gitMajor": "1", "gitMinor": "36", "gitTreeState": "clean"}
    version = " ".join(f"-X {_COMPONENT}.{field}={value}" for field, value in fields.items())
    return Tool("kubernetes", f"k8s.io/kubernetes/cmd/{name}", ldflags=version)


def _cni(name: str) -> Tool:
    kind = {"host-local": "ipam", "portmap": "meta"}.get(name, "main")
    return Tool("cni", f"github.com/containernetworking/plugins/plugins/{kind}/{name}")


TOOLS: Mapping[str, Tool] = {
    "etcd": Tool("etcd", "go.etcd.io/etcd/server/v3"),
    **{name: _kubernetes(name) for name in ("kube-apiserver", "kube-controller-manager", "kubectl")},
    **{name: _kubernetes(name) for name in ("kube-scheduler", "kubelet", "kube-proxy")},
    "containerd": Tool("containerd", "github.com/containerd/containerd/v2/cmd/containerd"),
    "containerd-shim-runc-v2": Tool("containerd", "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"),
    "ctr": Tool("containerd", "github.com/containerd/containerd/v2/cmd/ctr"),
    "runc": Tool("runc", "github.com/opencontainers/runc", ldflags="-X main.version=1.5.2", cgo=True, tags="seccomp"),
    **{name: _cni(name) for name in ("bridge", "loopback", "host-local", "portmap")},
    "pause": Tool("pause", "."),
    "coredns": Tool("coredns", "."),
    "kube-router": Tool("kube-router", "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router"),
    "helm": Tool("helm", "helm.sh/helm/v3/cmd/helm"),
    "kwok": Tool("kwok", "sigs.k8s.io/kwok/cmd/kwok"),
    "kubeconform": Tool("kubeconform", "github.com/yannh/kubeconform/cmd/kubeconform"),
    "promtool": Tool("promtool", "github.com/prometheus/prometheus/cmd/promtool", tags="remove_all_sd"),
    "kind": Tool("kind", "sigs.k8s.io/kind"),
}
API_SERVER = ("etcd", "kube-apiserver", "kube-controller-manager", "kubectl")
"""For tests on an API server."""
NODE = (
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "containerd",
    "containerd-shim-runc-v2",
    "ctr",
    "runc",
    "bridge",
    "loopback",
    "host-local",
    "portmap",
    "pause",
    "coredns",
    "kube-router",
)
"""For a cluster with a node, besides."""
CHARTS = ("helm", "kubeconform", "promtool")
"""For the charts' tests."""


def cache_directory() -> Path:
    """Return the folder that is kept between runs, outside the clone so that a new clone finds it."""
    return Path(
        os.environ.get("SWARMGAME_TEST_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "swarmgame"
    )


def tool(name: str) -> Path:
    """Return the path of a built tool.

    Raises:
        NotBuilt: the tool is missing; it is not built here, because a build takes minutes.
    """
    path = _path(name)
    if not path.exists():
        raise NotBuilt(
            f"{name} is not built ({path} does not exist): run `make cluster-tools`; "
            "it needs Go, and about 20 minutes the first time"
        )
    return path


def missing(names: Sequence[str]) -> list[str]:
    """Return the tools that are not built."""
    return [name for name in names if not _path(name).exists()]


def build(names: Sequence[str]) -> None:
    """Build missing tools, one after the other; tools that were built before an interruption stay.

    Raises:
        NotBuilt: there is no Go, or a build failed; Go's output was printed.
    """
    absent = missing(names)
    if absent and shutil.which("go") is None:
        raise NotBuilt(f"there is no `go` on the PATH to build {', '.join(absent)} with: install Go 1.26 or newer")
    for name in absent:
        print(f"building {name}", flush=True)
        _build(name)


def _path(name: str) -> Path:
    return cache_directory() / "tools" / f"{TOOLS[name].module}-{_hash(TOOLS[name].module)}" / "bin" / name


def _hash(module: str) -> str:
    recipe = [str(each) for each in TOOLS.values() if each.module == module]
    files = [
        (MODULES / module / name).read_bytes()
        for name in ("go.mod", "go.sum", "main.go")
        if (MODULES / module / name).exists()
    ]
    return hashlib.sha256(b"\0".join([*files, *(line.encode() for line in recipe)])).hexdigest()[:16]


def _build(name: str) -> None:
    made, target = TOOLS[name], _path(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"CGO_ENABLED": "1" if made.cgo else "0"}
    with tempfile.TemporaryDirectory(prefix=".building-", dir=target.parent) as folder:
        made_here = Path(folder) / name
        command = [
            "go",
            "build",
            "-mod=readonly",
            "-trimpath",
            "-buildvcs=false",
            "-tags",
            made.tags,
            "-ldflags",
            f"-s -w {made.ldflags}",
            "-o",
            str(made_here),
            made.package,
        ]
        if subprocess.run(command, cwd=MODULES / made.module, env=environment, check=False).returncode != 0:
            raise NotBuilt(f"{name} could not be built: `{' '.join(command)}` failed in {MODULES / made.module}")
        made_here.replace(target)
