"""Services, and the addresses under which the game's parts find one another.

The bootnode's address is known before its pod is, because its key is ours. Invariant: a Service selects by game and
role alone.
"""

from __future__ import annotations

from swarmgame_operator.observed import Observed
from swarmgame_operator.plan.outcome import Child, Manifest
from swarmgame_operator.plan.pod import value
from swarmgame_operator.plan.setting import CHAIN_PORT, GATEWAY_PORT, HTTP_PORT, Setting

DEV_CHAIN_ID = 31337
DEV_CONTRACT = "0x5FbDB2315678afecb367f032d93F642f64180aa3"
"""Where the first contract of anvil's first account always is."""


def services(setting: Setting) -> tuple[Child, ...]:
    """The Services that the game asks for."""
    p2p = _port("p2p", setting.spec.communication.port)
    found = [_service(setting, "peers", "peer", [p2p, _port("http", HTTP_PORT)], headless=True)]
    if setting.has_bootnode:
        found.append(_service(setting, "bootnode", "bootnode", [p2p], headless=True))
    if setting.has_bootnode and setting.spec.bootnode.expose != "ClusterIP":
        found.append(_service(setting, "bootnode-external", "bootnode", [p2p], type=setting.spec.bootnode.expose))
    if setting.has_chain:
        found.append(_service(setting, "gateway", "gateway", [_port("http", GATEWAY_PORT)]))
    if setting.spec.coordination.mode == "Dev":
        found.append(_service(setting, "chain", "chain", [_port("rpc", CHAIN_PORT)]))
    return tuple(found)


def rendezvous(setting: Setting) -> str:
    """Where the peers of a closed world meet: the pod of peer 0, which a Job of indexes gives a name."""
    return f"{setting.name('peers')}-0.{setting.host('peers')}:{setting.spec.communication.port}"


def bootnode_address(setting: Setting) -> str:
    """Where peers of this cluster find the bootnode; empty while it has no key."""
    if not setting.bootnode_peer:
        return ""
    return f"/dns4/{setting.host('bootnode')}/tcp/{setting.spec.communication.port}/p2p/{setting.bootnode_peer}"


def public_address(setting: Setting, observed: Observed) -> str:
    """Where outsiders find the bootnode; inside the cluster where it is not exposed, or not yet."""
    inside = bootnode_address(setting)
    external = observed.service(setting.name("bootnode-external"))
    if not inside or external is None:
        return inside
    if external.ingress:
        return _multiaddress(external.ingress[0], setting.spec.communication.port, setting.bootnode_peer)
    port = external.node_ports.get("p2p")
    host = next((pod.host_ip for pod in observed.pods_of("bootnode") if pod.host_ip), "")
    return _multiaddress(host, port, setting.bootnode_peer) if port and host else inside


def chain_environment(setting: Setting) -> list[Manifest]:
    """What a peer is told of the chain. It never sees the RPC endpoint of mode External, whose address may hold a
    password.
    """
    coordination = setting.spec.coordination
    if coordination.mode == "None":
        return []
    gateway = f"http://{setting.host('gateway')}:{GATEWAY_PORT}"
    dev = coordination.mode == "Dev"
    return [
        value("SWARMGAME_CHAIN_GATEWAY", gateway),
        value("SWARMGAME_CHAIN_RPC", chain_rpc(setting) if dev else f"{gateway}/rpc"),
        value("SWARMGAME_CHAIN_ID", str(DEV_CHAIN_ID if dev else coordination.chain_id)),
        value("SWARMGAME_CHAIN_CONTRACT", contract(setting)),
    ]


def chain_rpc(setting: Setting) -> str:
    """The node of the game's own chain."""
    return f"http://{setting.host('chain')}:{CHAIN_PORT}"


def contract(setting: Setting) -> str:
    """The coordinator contract."""
    return setting.spec.coordination.contract_address or DEV_CONTRACT


def _multiaddress(host: str, port: int | None, peer: str) -> str:
    kind = "ip6" if ":" in host else "ip4" if host.replace(".", "").isdigit() else "dns4"
    return f"/{kind}/{host}/tcp/{port}/p2p/{peer}"


def _port(name: str, number: int) -> Manifest:
    return {"name": name, "port": number, "targetPort": name, "protocol": "TCP"}


def _service(
    setting: Setting, ending: str, role: str, ports: list[Manifest], *, headless: bool = False, type: str = "ClusterIP"
) -> Child:
    spec: Manifest = {"selector": setting.selector(role), "ports": ports}
    if headless:
        # A peer must be found before it is ready: readiness is having found the others.
        spec |= {"clusterIP": "None", "publishNotReadyAddresses": True}
    elif type != "ClusterIP":
        spec["type"] = type
    return Child({"apiVersion": "v1", "kind": "Service", "metadata": setting.metadata(ending, role), "spec": spec})
