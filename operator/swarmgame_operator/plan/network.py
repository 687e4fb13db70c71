"""Network policies: which pods may reach which. Created with `networkPolicy.mode: Isolated`; the cluster's network
must enforce them.

| pod | ingress from | egress to |
|---|---|---|
| peers, bootnode | each other (p2p); operator, Prometheus (http) | DNS, each other, gateway, chain, vLLM, trackers |
| initializer | none | DNS; port 443 of any address if the model or the data is on the hub, and the ports of a proxy |
| gateway | peers, operator, Prometheus | DNS, Dev chain; any address in mode External (a Secret holds it) |
| chain (Dev) | gateway, peers | none |

Where the operator reads through the API server's proxy, that one's addresses are admitted too (all, if none is given).

The peers of a closed swarm (TorchDistributed) reach each other on any port: gloo listens on ports of the kernel's
choice. A game that is exposed, or that joins a remote swarm, has remote members: its peers and bootnode accept any
address on the p2p port, and reach any address over TCP. A vLLM server that is named by its url, or a tracker that is a
service (wandb), is reached on its port at any address, because a policy contains no host names; so is a proxy, or a
mirror of the hub, that the pods' variables name. Peers without an initializer load data of the hub themselves. Policies
only add up, so an author can allow more with another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from swarmgame_operator.plan import initializer
from swarmgame_operator.plan.game_context import CHAIN_PORT, GATEWAY_PORT, HTTP_PORT, ROLE_LABEL, GameContext
from swarmgame_operator.plan.plan_types import Child, Manifest

PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
DNS: Manifest = {"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]}
ANY_TCP: list[Manifest] = [{"protocol": "TCP", "port": 1, "endPort": 65_535}]
ANYWHERE_TCP: Manifest = {"ports": ANY_TCP}
WATCHERS: list[Manifest] = [
    {
        "namespaceSelector": {},
        "podSelector": {
            "matchLabels": {"app.kubernetes.io/name": "swarmgame", "app.kubernetes.io/component": "operator"}
        },
    },
    {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}}},
]


def network_policies(game: GameContext) -> tuple[Child, ...]:
    if game.spec.network_policy.mode == "None":
        return ()
    found = [_peers(game)]
    if game.model_on_hub or game.data_on_hub:
        found.append(_hub(game))
    if game.has_chain:
        found.append(_gateway(game))
    if game.spec.coordination.mode == "Dev":
        found.append(_chain(game))
    return tuple(found)


def _peers(game: GameContext) -> Child:
    swarm, p2p = (
        _pods(game, "bootnode", "peer"),
        ANY_TCP if game.closed else _tcp(game.spec.communication.port),
    )
    ingress = [
        {"ports": p2p} if game.exposed else {"from": swarm, "ports": p2p},
        {**_from(game, WATCHERS), "ports": _tcp(HTTP_PORT)},
    ]
    egress = [DNS, {"to": swarm, "ports": p2p}]
    if game.has_chain:
        egress.append({"to": _pods(game, "gateway"), "ports": _tcp(GATEWAY_PORT)})
    if game.spec.coordination.mode == "Dev":
        egress.append({"to": _pods(game, "chain"), "ports": _tcp(CHAIN_PORT)})
    if game.vllm is not None and game.vllm.url:
        egress.append({"ports": _tcp(_port_of(game.vllm.url))})
    ports = {tracker.port for tracker in game.spec.observability.trackers if tracker.port is not None}
    if ports:
        ports |= _ports_named(game, PROXIES)
    egress += [{"ports": _tcp(port)} for port in sorted(ports)]
    if game.exposed:
        egress.append(ANYWHERE_TCP)
    return _policy(game, "peers", "peer", ("bootnode", "initializer", "peer"), ingress, egress)


def _hub(game: GameContext) -> Child:
    roles = ("initializer",) if initializer.is_a_job(game) else ("peer",)
    ports = {443} | _ports_named(game, (*PROXIES, "HF_ENDPOINT"))
    egress: list[Manifest] = [{"ports": [port for number in sorted(ports) for port in _tcp(number)]}]
    return _policy(game, "hub", "initializer", roles, None, egress)


def _gateway(game: GameContext) -> Child:
    ingress = [{**_from(game, [*_pods(game, "peer"), *WATCHERS]), "ports": _tcp(GATEWAY_PORT)}]
    node = (
        {"to": _pods(game, "chain"), "ports": _tcp(CHAIN_PORT)}
        if game.spec.coordination.mode == "Dev"
        else ANYWHERE_TCP
    )
    return _policy(game, "gateway", "gateway", ("gateway",), ingress, [DNS, node])


def _chain(game: GameContext) -> Child:
    ingress = [{"from": _pods(game, "gateway", "peer"), "ports": _tcp(CHAIN_PORT)}]
    return _policy(game, "chain", "chain", ("chain",), ingress, [])


def _from(game: GameContext, pods: list[Manifest]) -> Manifest:
    """Return who may read the HTTP endpoints: these pods, and the API server where the operator reads through it. No
    selector matches an API server, so without its addresses anyone may.
    """
    if not game.defaults.through_api_server:
        return {"from": pods}
    addresses = game.defaults.api_server_addresses
    return {"from": [*pods, *({"ipBlock": {"cidr": each}} for each in addresses)]} if addresses else {}


def _pods(game: GameContext, *roles: str) -> list[Manifest]:
    return [{"podSelector": {"matchLabels": game.selector(role)}} for role in roles]


def _ports_named(game: GameContext, names: Sequence[str]) -> set[int]:
    """Return the ports of the addresses that variables of the peers or the initializer hold as a value."""
    given = [*(each for level in game.pod_levels for each in level.env), *game.spec.peers.env]
    urls = {each.name: each.value for each in given if each.name.upper() in names}
    return {port for url in urls.values() if url and (port := _named_port(url)) is not None}


def _named_port(url: str) -> int | None:
    """Return the port of an address, which may lack its scheme; None where it cannot be read."""
    try:
        return _port_of(url if "://" in url else f"http://{url}")
    except ValueError:
        return None


def _port_of(url: str) -> int:
    found = urlsplit(url)
    return found.port or (443 if found.scheme == "https" else 80)


def _tcp(port: int) -> list[Manifest]:
    return [{"protocol": "TCP", "port": port}]


def _policy(
    game: GameContext,
    suffix: str,
    role: str,
    roles: tuple[str, ...],
    ingress: list[Manifest] | None,
    egress: list[Manifest],
) -> Child:
    selector = game.selector(role)
    selector.pop(ROLE_LABEL)
    spec: Manifest = {
        "podSelector": {
            "matchLabels": selector,
            "matchExpressions": [{"key": ROLE_LABEL, "operator": "In", "values": list(roles)}],
        },
        "policyTypes": ["Egress"] if ingress is None else ["Ingress", "Egress"],
        "egress": egress,
    }
    if ingress is not None:
        spec["ingress"] = ingress
    metadata = game.metadata(suffix, role)
    manifest = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}
    return Child(manifest, manifest)
