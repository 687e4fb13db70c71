"""The node: containerd, kubelet and kube-proxy on this host, and the removal of everything that they start.

It needs root, and a control plane that listens on the bridge's address. Invariant: after `sweep` no container, shim,
mount, control group or socket of this node exists, whatever its state was; only containerd's image store stays.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from native_cluster import control_plane, daemons, network
from native_cluster.tools import cache_directory, tool

NAME = "node0"
RUNTIME = Path("/run/swarmgame-cluster")
"""Sockets and mounts."""
SOCKET = RUNTIME / "containerd.sock"
STATE = Path("/var/lib/swarmgame-cluster")
"""Files of kubelet and the plugins, removed with the cluster."""
PAUSE = "localhost/swarmgame-pause:e2e"
DNS_SERVICE = "10.96.0.10"
_CGROUPS = ("kubepods", "k8s.io")
_DEVICE_SOCKET = Path("/var/lib/kubelet/device-plugins/kubelet.sock")
_FIXED = (
    "/var/lib/kubelet/device-plugins",
    "/run/containerd/runc/k8s.io",
    "/run/containerd/s",
    "/var/lib/cni/results",
    "/var/log/containers",
)
"""Folders that the programs create whatever their settings; removed, with their parents, once they are empty."""


@dataclass(frozen=True)
class Node:
    """The daemons of a running node."""

    containerd: daemons.Daemon
    kubelet: daemons.Daemon
    proxy: daemons.Daemon


def image_store() -> Path:
    """Return the folder where containerd keeps images between clusters."""
    return cache_directory() / "containerd"


def start_containerd(directory: Path) -> daemons.Daemon:
    """Start only containerd, which is enough to import images."""
    for folder in (RUNTIME, STATE, image_store()):
        folder.mkdir(parents=True, exist_ok=True)
    plugins = RUNTIME / "cni"
    plugins.mkdir(exist_ok=True)
    for name in ("bridge", "loopback", "host-local", "portmap"):
        with contextlib.suppress(FileExistsError):
            (plugins / name).symlink_to(tool(name))
    settings = STATE / "cni"
    settings.mkdir(exist_ok=True)
    (settings / "10-swarmgame.conflist").write_text(json.dumps(network.cni_configuration(STATE)))
    configuration = STATE / "containerd.toml"
    configuration.write_text(containerd_configuration(plugins, settings))
    programs = os.pathsep.join([str(tool("containerd").parent), str(tool("runc").parent), os.environ["PATH"]])
    daemon = daemons.start(
        "containerd", [tool("containerd"), "--config", configuration], directory, environment={"PATH": programs}
    )
    daemon.wait(lambda: ctr("version") is not None, 30.0)
    return daemon


def start(plane: control_plane.ControlPlane, containerd: daemons.Daemon) -> Node:
    """Join this host to a control plane as its only node; return when the daemons answer, before the node is Ready."""
    directory = plane.directory
    plane.authority.kubeconfig(STATE / "kubelet.kubeconfig", plane.url, f"system:node:{NAME}", ["system:nodes"])
    plane.authority.kubeconfig(STATE / "proxy.kubeconfig", plane.url, "system:kube-proxy")
    (STATE / "resolv.conf").write_text("")
    kubelet_port, kubelet_health, proxy_health, proxy_metrics = control_plane.free_ports(4)
    (STATE / "kubelet.yaml").write_text(yaml.safe_dump(kubelet_configuration(directory, kubelet_port, kubelet_health)))
    (STATE / "proxy.yaml").write_text(yaml.safe_dump(proxy_configuration(proxy_health, proxy_metrics)))
    kubelet = daemons.start(
        "kubelet",
        [
            tool("kubelet"),
            f"--config={STATE / 'kubelet.yaml'}",
            f"--kubeconfig={STATE / 'kubelet.kubeconfig'}",
            f"--root-dir={STATE / 'kubelet'}",
            f"--cert-dir={STATE / 'kubelet-certificates'}",
            f"--hostname-override={NAME}",
            f"--node-ip={network.ADDRESS}",
        ],
        directory,
    )
    kubelet.wait(control_plane.answers(f"http://127.0.0.1:{kubelet_health}/healthz"), 60.0)
    proxy = daemons.start(
        "kube-proxy", [tool("kube-proxy"), f"--config={STATE / 'proxy.yaml'}", f"--hostname-override={NAME}"], directory
    )
    proxy.wait(control_plane.answers(f"http://127.0.0.1:{proxy_health}/livez"), 60.0)
    return Node(containerd, kubelet, proxy)


def ctr(*arguments: str) -> str | None:
    """Return the output of containerd's client; None when it failed."""
    command = [str(tool("ctr")), "--address", str(SOCKET), "--namespace", "k8s.io", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None


def sweep_containers() -> None:
    """Kill and remove every container. Kubelet must be stopped, and containerd running."""
    for container in (ctr("containers", "list", "--quiet") or "").split():
        ctr("tasks", "delete", "--force", container)
        ctr("containers", "delete", container)


def sweep() -> None:
    """Remove what stopped daemons have left."""
    for pid in (*_shims(), *_contained()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for mount in _mounts_below(RUNTIME, STATE):
        subprocess.run(["umount", "--lazy", mount], check=False)
    for folder in (RUNTIME, STATE):
        shutil.rmtree(folder, ignore_errors=False) if folder.exists() else None
    for link in Path("/var/log/containers").glob("*.log"):
        if str(link.readlink() if link.is_symlink() else "").startswith(str(STATE)):
            link.unlink()
    _DEVICE_SOCKET.unlink(missing_ok=True)
    for address in Path("/run/containerd/s").glob("*"):
        if not _listens(address):
            address.unlink(missing_ok=True)
    for fixed in _FIXED:
        _remove_empty(Path(fixed))
    for name in _CGROUPS:
        for root in _cgroups(name):
            _remove_cgroup(root)


def containerd_configuration(plugins: Path, settings: Path) -> str:
    """Return containerd's configuration, version 3.

    `restrict_oom_score_adj` lets it run where root may not lower a process's score: without it every sandbox dies.
    """
    return f"""version = 3
root = "{image_store()}"
state = "{RUNTIME / "containerd"}"
[grpc]
address = "{SOCKET}"
[ttrpc]
address = "{SOCKET}.ttrpc"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "{PAUSE}"
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
disable_apparmor = true
netns_mounts_under_state_dir = true
tolerate_missing_hugetlb_controller = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["{plugins}"]
conf_dir = "{settings}"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = "{tool("runc")}"
SystemdCgroup = false
Root = "{RUNTIME / "runc"}"
"""


def kubelet_configuration(directory: Path, port: int, health_port: int) -> dict[str, object]:
    """Return the configuration of a kubelet that accepts cgroup v1, swap and a full disk, and evicts no pod."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": network.ADDRESS,
        "port": port,
        "healthzBindAddress": "127.0.0.1",
        "healthzPort": health_port,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(directory / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": f"unix://{SOCKET}",
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "failSwapOn": False,
        "clusterDNS": [DNS_SERVICE],
        "clusterDomain": "cluster.local",
        "resolvConf": str(STATE / "resolv.conf"),
        "podLogsDir": str(STATE / "logs"),
        "makeIPTablesUtilChains": False,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "maxPods": 200,
        "nodeStatusUpdateFrequency": "5s",
        "syncFrequency": "10s",
        "serializeImagePulls": False,
    }


def proxy_configuration(health_port: int, metrics_port: int) -> dict[str, object]:
    """Return kube-proxy's configuration: nftables, and unchanged limits of the kernel's connection tracking."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clusterCIDR": network.PODS,
        "clientConnection": {"kubeconfig": str(STATE / "proxy.kubeconfig")},
        "conntrack": {"maxPerCore": 0, "min": 0},
        "nodePortAddresses": ["primary"],
        "healthzBindAddress": f"127.0.0.1:{health_port}",
        "metricsBindAddress": f"127.0.0.1:{metrics_port}",
    }


def _shims() -> Iterator[int]:
    """Yield the processes of containerd-shim-runc-v2 that serve this node's socket."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
            if arguments[0].endswith(b"containerd-shim-runc-v2") and any(
                each.startswith(str(SOCKET).encode()) for each in arguments
            ):
                yield int(folder.name)


def _listens(address: Path) -> bool:
    """Return whether a process listens on a socket; a killed shim leaves its socket file."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(address))
        except ConnectionRefusedError:
            return False
        except OSError:
            return True  # full, or no permission: a process holds it
    return True


def _contained() -> Iterator[int]:
    """Yield the processes in the control groups of pods: they outlive a killed runtime."""
    for name in _CGROUPS:
        for root in _cgroups(name):
            for file in root.rglob("cgroup.procs"):
                with contextlib.suppress(FileNotFoundError):
                    yield from map(int, file.read_text().split())


def _cgroups(name: str) -> list[Path]:
    """Return a top control group in each hierarchy that has it."""
    return [*Path("/sys/fs/cgroup").glob(f"*/{name}"), *Path("/sys/fs/cgroup").glob(name)]


def _mounts_below(*folders: Path) -> list[str]:
    """Return the mount points below folders, deepest first."""
    mounts = [
        line.split()[1].encode().decode("unicode_escape") for line in Path("/proc/self/mounts").read_text().splitlines()
    ]
    return sorted((each for each in mounts if any(each.startswith(f"{folder}/") for folder in folders)), reverse=True)


def _remove_empty(folder: Path) -> None:
    """Remove a folder and its parents as long as they are empty and not the system's."""
    for each in (folder, *folder.parents):
        if str(each) in {"/run", "/var/lib", "/var/log"}:
            break
        try:
            each.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            break


def _remove_cgroup(root: Path) -> None:
    """Remove a control group and those below it; they are busy until the kernel has removed their last process."""
    end = time.monotonic() + 5.0
    for folder in sorted(
        (path for path in [root, *root.rglob("*")] if path.is_dir()), key=lambda path: -len(path.parts)
    ):
        while folder.exists():
            try:
                folder.rmdir()
            except OSError:
                if time.monotonic() > end:
                    return
                time.sleep(0.02)
