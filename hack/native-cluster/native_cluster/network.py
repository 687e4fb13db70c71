"""The node's network: one bridge for all pods, and the kernel's settings for it.

Pods reach each other, the host and Services, but no address outside, because nothing is masqueraded. Invariant:
`tear_down` removes the bridge, tables and network namespaces, and restores the settings that `set_up` found.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

BRIDGE = "cni0"
ADDRESS = "10.244.0.1"
PODS = "10.244.0.0/24"
_NETWORK = "swarmgame"
_NAMESPACES = "/run/swarmgame-cluster/"
"""Folder of the pods' network namespaces, which the plugins write into each result."""
_SETTINGS = ("net/ipv4/ip_forward", "net/bridge/bridge-nf-call-iptables")
_TABLES = (("ip", "kube-proxy"), ("ip6", "kube-proxy"))


class NetworkFailed(Exception):
    """The network could not be made. The message has the command that failed."""


def set_up(directory: Path) -> None:
    """Create the bridge, and save the kernel's settings in a file of the directory."""
    found = {
        name: (Path("/proc/sys") / name).read_text().strip()
        for name in _SETTINGS
        if (Path("/proc/sys") / name).exists()
    }
    if _SETTINGS[1] not in found:
        raise NetworkFailed(
            "the kernel has no br_netfilter, without which pods cannot use Services on their bridge: "
            "modprobe br_netfilter"
        )
    (directory / "sysctl.json").write_text(json.dumps(found))
    for name in _SETTINGS:
        (Path("/proc/sys") / name).write_text("1")
    _ip("link", "add", BRIDGE, "type", "bridge")
    _ip("address", "add", f"{ADDRESS}/24", "dev", BRIDGE)
    _ip("link", "set", BRIDGE, "up")


def tear_down(directory: Path) -> None:
    """Undo `set_up`, and remove what kube-proxy and the CNI plugins left. Can be called without a network."""
    if (Path("/sys/class/net") / BRIDGE).exists():
        _ip("link", "delete", BRIDGE)
    for family, table in _TABLES:
        if subprocess.run(["nft", "list", "table", family, table], capture_output=True, check=False).returncode == 0:
            subprocess.run(["nft", "delete", "table", family, table], check=True)
    for file in Path("/var/lib/cni/results").glob("*"):
        if file.name.startswith(f"{_NETWORK}-") or _NAMESPACES in file.read_text(errors="replace"):
            file.unlink()
    saved = directory / "sysctl.json"
    if saved.exists():
        for name, value in json.loads(saved.read_text()).items():
            (Path("/proc/sys") / name).write_text(value)
        saved.unlink()


def cni_configuration(state: Path) -> Mapping[str, object]:
    """Return the configuration that containerd passes to the plugins for each pod."""
    addresses = {
        "type": "host-local",
        "ranges": [[{"subnet": PODS, "gateway": ADDRESS}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": str(state / "addresses"),
    }
    bridge = {"type": "bridge", "bridge": BRIDGE, "isGateway": True, "hairpinMode": True, "ipam": addresses}
    return {"cniVersion": "1.0.0", "name": _NETWORK, "plugins": [bridge]}


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NetworkFailed(f"`ip {' '.join(arguments)}` failed: {done.stderr.strip()}")
