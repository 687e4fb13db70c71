"""The node's network: one bridge for all pods, and what the kernel must do for it.

Pods reach each other, the host and Services; nothing outside, as nothing is masqueraded. Invariant: `tear_down` gives
the host back as it was: no bridge, no tables, no names of network namespaces, kernel settings as `set_up` found them.
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
"""Where the network namespaces of our pods are, as the plugins note with each result."""
_SETTINGS = ("net/ipv4/ip_forward", "net/bridge/bridge-nf-call-iptables")
_TABLES = (("ip", "kube-proxy"), ("ip6", "kube-proxy"))


class NetworkFailed(Exception):
    """The host does not let us make the network. Says which command failed."""


def set_up(directory: Path) -> None:
    """Makes the bridge, and remembers the kernel's settings in a file of the directory."""
    found = {
        name: (Path("/proc/sys") / name).read_text().strip()
        for name in _SETTINGS
        if (Path("/proc/sys") / name).exists()
    }
    if _SETTINGS[1] not in found:
        raise NetworkFailed(
            "the kernel has no br_netfilter, without which pods cannot use Services on their own bridge: modprobe br_netfilter"
        )
    (directory / "sysctl.json").write_text(json.dumps(found))
    for name in _SETTINGS:
        (Path("/proc/sys") / name).write_text("1")
    _ip("link", "add", BRIDGE, "type", "bridge")
    _ip("address", "add", f"{ADDRESS}/24", "dev", BRIDGE)
    _ip("link", "set", BRIDGE, "up")


def tear_down(directory: Path) -> None:
    """Undoes `set_up`, and removes what kube-proxy and the CNI plugins left. Nothing happens if nothing is there."""
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
    """What containerd hands to the plugins for each pod."""
    addresses = {
        "type": "host-local",
        "ranges": [[{"subnet": PODS, "gateway": ADDRESS}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": str(state / "addresses"),
    }
    bridge = {"type": "bridge", "bridge": BRIDGE, "isGateway": True, "hairpinMode": True, "ipam": addresses}
    return {"cniVersion": "1.0.0", "name": _NETWORK, "plugins": [bridge]}


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NetworkFailed(f"`ip {' '.join(words)}` failed: {done.stderr.strip()}")
