"""Services, and the addresses by which the game's pods find each other.

The bootnode's address is known before its pod exists, because the operator generates its key.
"""

from __future__ import annotations

from swarmgame_operator.plan.game_context import CHAIN_PORT, GATEWAY_PORT, HTTP_PORT, GameContext
from swarmgame_operator.plan.plan_types import Child, Manifest
from swarmgame_operator.plan.pod import value
from swarmgame_operator.snapshot import Observed

DEV_CHAIN_ID = 31337
DEV_CONTRACT = "0x5FbDB2315678afecb367f032d93F642f64180aa3"
"""The address of the first contract of anvil's first account: always the same."""


def services(game: GameContext) -> tuple[Child, ...]:
    """Return the game's Services."""
    p2p = _port("p2p", game.spec.communication.port)
    found = [_service(game, "peers", "peer", [p2p, _port("http", HTTP_PORT)], headless=True)]
    if game.has_bootnode:
        found.append(_service(game, "bootnode", "bootnode", [p2p], headless=True))
    if game.has_bootnode and game.spec.bootnode.expose != "ClusterIP":
        found.append(_service(game, "bootnode-external", "bootnode", [p2p], type=game.spec.bootnode.expose))
    if game.has_chain:
        found.append(_service(game, "gateway", "gateway", [_port("http", GATEWAY_PORT)]))
    if game.spec.coordination.mode == "Dev":
        found.append(_service(game, "chain", "chain", [_port("rpc", CHAIN_PORT)]))
    return tuple(found)


def rendezvous(game: GameContext) -> str:
    """Return the rendezvous address of a closed swarm: the pod of peer 0, which an Indexed Job gives a stable name."""
    return f"{game.name('peers')}-0.{game.host('peers')}:{game.spec.communication.port}"


def bootnode_address(game: GameContext) -> str:
    """Return the bootnode's address inside the cluster; empty while it has no key."""
    if not game.bootnode_peer:
        return ""
    kind = "dns6" if game.defaults.ipv6 else "dns4"
    return f"/{kind}/{game.host('bootnode')}/tcp/{game.spec.communication.port}/p2p/{game.bootnode_peer}"


def own_address(game: GameContext) -> str:
    """Return the address that a pod announces, with Kubernetes' reference to its variable POD_IP."""
    return f"/{'ip6' if game.defaults.ipv6 else 'ip4'}/$(POD_IP)/tcp/{game.spec.communication.port}"


def every_address(game: GameContext) -> str:
    """Return the host on which a server in a pod listens."""
    return "::" if game.defaults.ipv6 else "0.0.0.0"


def public_address(game: GameContext, observed: Observed) -> str:
    """Return the bootnode's address for remote peers; its address in the cluster if it is not exposed (yet)."""
    inside = bootnode_address(game)
    external = observed.service(game.name("bootnode-external"))
    if not inside or external is None:
        return inside
    if external.ingress:
        return _multiaddress(game, external.ingress[0], game.spec.communication.port)
    port = external.node_ports.get("p2p")
    host = next((pod.host_ip for pod in observed.pods_of("bootnode") if pod.host_ip), "")
    return _multiaddress(game, host, port) if port and host else inside


def chain_environment(game: GameContext) -> list[Manifest]:
    """Return a peer's variables about the chain. They do not contain the RPC address of mode External, which may
    include a password.
    """
    coordination = game.spec.coordination
    if coordination.mode == "None":
        return []
    gateway = f"http://{game.host('gateway')}:{GATEWAY_PORT}"
    dev = coordination.mode == "Dev"
    return [
        value("SWARMGAME_CHAIN_GATEWAY", gateway),
        value("SWARMGAME_CHAIN_RPC", chain_rpc(game) if dev else f"{gateway}/rpc"),
        value("SWARMGAME_CHAIN_ID", str(DEV_CHAIN_ID if dev else coordination.chain_id)),
        value("SWARMGAME_CHAIN_CONTRACT", contract(game)),
    ]


def chain_rpc(game: GameContext) -> str:
    """Return the RPC address of the game's own chain."""
    return f"http://{game.host('chain')}:{CHAIN_PORT}"


def contract(game: GameContext) -> str:
    """Return the address of the coordinator contract."""
    return game.spec.coordination.contract_address or DEV_CONTRACT


def _multiaddress(game: GameContext, host: str, port: int | None) -> str:
    name = "dns6" if game.defaults.ipv6 else "dns4"
    kind = "ip6" if ":" in host else "ip4" if host.replace(".", "").isdigit() else name
    peer = game.bootnode_peer
    return f"/{kind}/{host}/tcp/{port}/p2p/{peer}"


def _port(name: str, number: int) -> Manifest:
    return {"name": name, "port": number, "targetPort": name, "protocol": "TCP"}


def _service(
    game: GameContext, suffix: str, role: str, ports: list[Manifest], *, headless: bool = False, type: str = "ClusterIP"
) -> Child:
    spec: Manifest = {"selector": game.selector(role), "ports": ports}
    if headless:
        # A peer must be found before it is ready: readiness is having found the others.
        spec |= {"clusterIP": "None", "publishNotReadyAddresses": True}
    elif type != "ClusterIP":
        spec["type"] = type
    return Child({"apiVersion": "v1", "kind": "Service", "metadata": game.metadata(suffix, role), "spec": spec})
